//! Whether the kernel still says what the agent made it say: compared bit by bit, for as long as the agent runs.
//!
//! Nobody but the agent writes the maps of services, so that every difference between them and the books ([`crate::plan::Books`])
//! is a fault: another hand, a bug, a lost write. And no flow may lead a client to one backend while its answers are another
//! flow's. A step looks at some small maps or a part of a large one, between two rounds of the one task that
//! changes the books, and a step is short; a round of steps has seen everything. What is found is counted, told to the Service that it is about, and
//! repaired: the books are made again from the maps, and so compared with what the API says. Bits of the filter and flow
//! entries, which no plan looks at, are repaired where they are found.

mod flows;
mod maps;

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    filter::Filter,
    kernel::maps::{Maps, TableError},
    plan::{Books, model::ServiceKey},
};

/// How often there is a step.
pub const STEP_INTERVAL: Duration = Duration::from_secs(2);
/// A step that has taken so long begins no further part. A round of a small cluster is a handful of steps.
const STEP_TIME: Duration = Duration::from_millis(2);
/// Elements of an array that one part reads: a few milliseconds.
pub const STEP_ELEMENTS: u32 = 65_536;
/// Differences of one step that are described; all are counted.
const DESCRIBED: usize = 32;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A frontend is missing, says something else, or is nobody's.
    Frontend,
    /// The same of a backend.
    Backend,
    /// An address is known as a cluster IP, or not, against the books.
    ClusterIp,
    /// A lookup table holds other backends.
    Table,
    /// Packets are let by, or looked up, that should not be.
    Filter,
    /// A port of the node is guarded, or not, against the books.
    NodePort,
    /// The same of who may use a load balancer.
    SourceRange,
    /// A flow leads to what is no backend.
    FlowBackend,
    /// A flow's answers are another flow's.
    FlowHalf,
}

impl Kind {
    /// As the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Backend => "backend",
            Self::ClusterIp => "cluster-ip",
            Self::Table => "table",
            Self::Filter => "filter",
            Self::NodePort => "node-port",
            Self::SourceRange => "source-range",
            Self::FlowBackend => "flow-backend",
            Self::FlowHalf => "flow-half",
        }
    }

    /// Whether the next plans of the services repair it.
    fn is_planned(self) -> bool {
        !matches!(self, Self::Filter | Self::FlowBackend | Self::FlowHalf)
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error(
    "the kernel's maps said otherwise about {what} ({}) than this agent had written; they are written anew. See what else writes below its run directory",
    kind.name()
)]
pub struct Drift {
    /// What differs.
    pub kind: Kind,
    /// Where.
    pub what: String,
}

/// What a step found.
#[derive(Debug, Default)]
pub struct Found {
    /// How many differences of each kind.
    pub counts: std::collections::BTreeMap<Kind, u64>,
    /// The first of them, with the objects that they are about.
    pub described: Vec<(Option<ServiceKey>, Drift)>,
}

impl Found {
    /// Counts a difference, and describes it if not too many are: whose it is takes a search.
    fn add<'a>(&mut self, kind: Kind, describe: impl FnOnce() -> (Option<&'a ServiceKey>, String)) {
        *self.counts.entry(kind).or_default() += 1;
        if self.described.len() < DESCRIBED {
            let (owner, what) = describe();
            self.described.push((owner.cloned(), Drift { kind, what }));
        }
    }

    /// Whether the books must be made anew.
    pub fn starts_over(&self) -> bool {
        self.counts.keys().any(|kind| kind.is_planned())
    }
}

/// A part of a round that is still to be looked at.
#[derive(Debug)]
enum Part {
    Frontends {
        ipv4: bool,
    },
    ClusterIps {
        ipv4: bool,
    },
    Backends {
        ipv4: bool,
        from: u32,
    },
    /// Tables that were in use when the round began.
    Tables(Vec<u32>),
    Filter,
    NodePorts,
    SourceRanges {
        ipv4: bool,
    },
    Flows {
        ipv4: bool,
        from: Option<Vec<u8>>,
    },
}

/// Where the round stands.
#[derive(Debug, Default)]
pub struct Checker {
    parts: VecDeque<Part>,
    /// Objects that this round told of something: one Event each.
    told: BTreeSet<ServiceKey>,
    rounds: u64,
}

/// What a step compares.
pub struct Compared<'a> {
    /// The kernel.
    pub maps: &'a Maps,
    /// The agent.
    pub books: &'a Books,
    /// Its filter.
    pub filter: &'a Filter,
    /// The tick now and how many there are in a second, if that is known yet.
    pub clock: Option<(u32, f64)>,
}

impl Checker {
    /// Rounds that were finished.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Whether an object has not been told in this round, and is now.
    pub fn tells(&mut self, owner: &ServiceKey) -> bool {
        self.told.insert(owner.clone())
    }

    /// One step.
    pub fn step(&mut self, compared: &Compared<'_>) -> Result<Found, TableError> {
        if self.parts.is_empty() {
            self.begin(compared.books);
        }
        let began = Instant::now();
        let mut found = Found::default();
        while let Some(part) = self.parts.pop_front() {
            if let Some(rest) = look(part, compared, &mut found)? {
                self.parts.push_front(rest);
            }
            if began.elapsed() >= STEP_TIME {
                break;
            }
        }
        self.rounds += u64::from(self.parts.is_empty());
        Ok(found)
    }

    fn begin(&mut self, books: &Books) {
        self.told.clear();
        self.parts.extend([true, false].map(|ipv4| Part::Frontends { ipv4 }));
        self.parts.extend([true, false].map(|ipv4| Part::ClusterIps { ipv4 }));
        self.parts.extend([true, false].map(|ipv4| Part::Backends { ipv4, from: 0 }));
        self.parts.push_back(Part::Tables(books.tables().collect()));
        self.parts.extend([Part::Filter, Part::NodePorts]);
        self.parts.extend([true, false].map(|ipv4| Part::SourceRanges { ipv4 }));
        self.parts.extend([true, false].map(|ipv4| Part::Flows { ipv4, from: None }));
    }
}

/// Looks at a part, or at the beginning of it. What is left of it.
fn look(part: Part, it: &Compared<'_>, found: &mut Found) -> Result<Option<Part>, TableError> {
    let (v4, v6) = (&it.maps.v4, &it.maps.v6);
    Ok(match part {
        Part::Frontends { ipv4: true } => maps::frontends(v4, it.books, found).map(|()| None)?,
        Part::Frontends { ipv4: false } => maps::frontends(v6, it.books, found).map(|()| None)?,
        Part::ClusterIps { ipv4: true } => maps::cluster_ips(v4, it.books, found).map(|()| None)?,
        Part::ClusterIps { ipv4: false } => maps::cluster_ips(v6, it.books, found).map(|()| None)?,
        Part::Backends { ipv4, from } => {
            let end = if ipv4 {
                maps::backends(v4, it.books, from, found)?
            } else {
                maps::backends(v6, it.books, from, found)?
            };
            end.map(|from| Part::Backends { ipv4, from })
        }
        Part::Tables(mut left) => {
            maps::tables(it.maps, it.books, &mut left, found)?;
            (!left.is_empty()).then_some(Part::Tables(left))
        }
        Part::Filter => maps::filter(it.maps, it.books, it.filter, found).map(|()| None)?,
        Part::NodePorts => maps::node_ports(it.maps, it.books, found).map(|()| None)?,
        Part::SourceRanges { ipv4: true } => maps::source_ranges(v4, it.books, found).map(|()| None)?,
        Part::SourceRanges { ipv4: false } => maps::source_ranges(v6, it.books, found).map(|()| None)?,
        Part::Flows { ipv4, from } => {
            let rest = if ipv4 {
                flows::flows(v4, it.books, it.clock, from, found)?
            } else {
                flows::flows(v6, it.books, it.clock, from, found)?
            };
            rest.map(|from| Part::Flows { ipv4, from: Some(from) })
        }
    })
}
