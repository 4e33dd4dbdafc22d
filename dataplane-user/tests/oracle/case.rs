//! What a case file says: API objects, and what becomes of connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde::Deserialize;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// What it shows.
    pub(crate) description: String,
    /// The objects.
    pub(crate) services: Vec<Service>,
    #[serde(default)]
    pub(crate) slices: Vec<EndpointSlice>,
    /// Connections, and what they must come to.
    pub(crate) connections: Vec<Connection>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Client {
    /// A machine outside the cluster.
    Outside,
    /// A pod of the node that is no endpoint.
    Pod,
    /// The pod `a`, which is an endpoint of most services.
    PodA,
    /// A process of the node itself.
    Node,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Protocol {
    #[default]
    Tcp,
    Udp,
}

/// Many tries of one connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Connection {
    pub(crate) from: Client,
    pub(crate) to: SocketAddr,
    #[serde(default)]
    pub(crate) protocol: Protocol,
    pub(crate) outcome: Expectation,
    /// Why more than one way to end is right.
    #[serde(default)]
    pub(crate) because: Option<String>,
}

/// One connection, as it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) from: Client,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
}

impl Connection {
    pub(crate) fn question(&self) -> Question {
        let Self { from, to, protocol, .. } = *self;
        Question { from, to, protocol }
    }
}

/// What is right.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Expectation {
    /// An endpoint answers; over many tries each of these does, and no other.
    Delivered {
        endpoints: BTreeSet<String>,
        /// Whom it sees; several where more than one is right.
        #[serde(rename = "seen-as")]
        seen_as: BTreeSet<Source>,
        /// One client always reaches the same of them.
        #[serde(default)]
        sticky: bool,
    },
    /// It fails in one of these ways.
    Fails(BTreeSet<Failure>),
    /// Any of these.
    OneOf(Vec<Expectation>),
}

/// The source address that an endpoint sees.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// The client's own.
    Client,
    /// One of the node's.
    Node,
}

/// How a connection fails.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Failure {
    /// By a RST or a "port unreachable".
    Refused,
    /// By another ICMP error: no host, no network.
    Unreachable,
    /// The system call is not permitted.
    Denied,
    /// Without an answer.
    Silent,
}

/// What one try came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Try {
    Delivered { endpoint: String, seen_as: Source },
    Failed(Failure),
}

/// What all tries of a connection came to, each way once.
pub(crate) type Outcome = BTreeSet<Try>;

impl Expectation {
    /// What is wrong with an outcome.
    pub(crate) fn check(&self, outcome: &Outcome) -> Result<(), String> {
        match self {
            Self::Delivered { endpoints, seen_as, sticky } => {
                let mut reached = BTreeSet::new();
                for one in outcome {
                    let Try::Delivered { endpoint, seen_as: source } = one else {
                        return Err(format!("it failed: {one:?}"));
                    };
                    if !seen_as.contains(source) {
                        return Err(format!("{endpoint} saw the {source:?}"));
                    }
                    reached.insert(endpoint.clone());
                }
                let complete = if *sticky {
                    reached.len() == 1 && reached.is_subset(endpoints)
                } else {
                    reached == *endpoints
                };
                if complete { Ok(()) } else { Err(format!("it reached {reached:?}")) }
            }
            Self::Fails(ways) => {
                let right = outcome.iter().all(|one| matches!(one, Try::Failed(way) if ways.contains(way)));
                if right { Ok(()) } else { Err(format!("it came to {outcome:?}")) }
            }
            Self::OneOf(all) => {
                let wrong: Vec<String> = all.iter().map_while(|one| one.check(outcome).err()).collect();
                if wrong.len() < all.len() { Ok(()) } else { Err(wrong.join("; ")) }
            }
        }
    }

    /// Whether more than one way to end is right.
    fn is_open(&self) -> bool {
        match self {
            Self::Delivered { seen_as, .. } => seen_as.len() > 1,
            Self::Fails(ways) => ways.len() > 1,
            Self::OneOf(_) => true,
        }
    }
}

/// All case files of a directory, by name.
pub(crate) fn read_all(directory: &Path) -> BTreeMap<String, Case> {
    let files = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let case = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let case: Case = serde_yaml::from_str(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for connection in &case.connections {
            assert!(
                connection.outcome.is_open() == connection.because.is_some(),
                "{name}: {connection:?}: what may end in several ways says why, and nothing else does"
            );
        }
        (name, case)
    };
    files.map(case).collect()
}
