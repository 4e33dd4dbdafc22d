//! From the store to the maps: plans, carries out, and starts again from the maps when a write fails.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use tracing::warn;
use weir_dataplane_ebpf::{Backend, Frontend, FrontendKey, Protocol, node_port_at};

use crate::{
    check::{Checker, Compared, Drift},
    filter::{Bits, Filter},
    flows::{self, Lost},
    health_checks::HealthCheckError,
    kernel::maps::{Family, FamilyMaps, Maps, TableError, backend_address, frontend_address, source_range},
    metrics::Metrics,
    names::NameTable,
    paths::Paths,
    plan::{
        Adopted, AdoptedBackend, Batch, Books, Limits, Plan, PortName, Problem, Step, any_port,
        model::{NodePort, ServiceKey},
    },
    sockets::{Peer, PortInUse},
    takeover::Takeover,
    watch::{Store, Unserved},
};

/// Why a round failed. The next one starts from what the maps really hold.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The names of service ids.
    #[error("keep the names of services: {0}")]
    Names(#[source] io::Error),
}

/// Something of a Service or Pod that is not served as asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Complaint {
    /// The plan could not.
    #[error(transparent)]
    Problem(Problem),
    /// The dataplane does not do that.
    #[error(transparent)]
    Unserved(Unserved),
    /// A process has its port.
    #[error(transparent)]
    PortInUse(PortInUse),
    /// The maps were damaged.
    #[error(transparent)]
    Drift(Drift),
    /// Load balancers cannot ask for it.
    #[error(transparent)]
    HealthCheck(HealthCheckError),
}

impl Complaint {
    /// Whether another node may have nothing to complain about.
    pub fn is_of_node(&self) -> bool {
        !matches!(
            self,
            Self::Unserved(_) | Self::Problem(Problem::Twice { .. } | Problem::TooManyEndpoints { .. })
        )
    }
}

/// What a round has to say.
#[derive(Debug, Default)]
pub struct Outcome {
    /// New complaints, for Events.
    pub complaints: Vec<(ServiceKey, Complaint)>,
    /// Services that wait for room: to be planned again later.
    pub blocked: BTreeSet<ServiceKey>,
    /// Ports of the node that are services' from now on, with their owners.
    pub guarded: Vec<(ServiceKey, NodePort)>,
    /// Service ids of UDP ports that have lost endpoints: flows to those are over ([`Reconciler::lost`]).
    pub lost: BTreeSet<u32>,
    /// Map writes.
    pub steps: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    maps: Arc<Maps>,
    names: NameTable,
    /// Nothing until the maps have been read, and again after a failed write.
    books: Option<(Books, Filter)>,
    /// Nodes whose tunnelled packets are taken, as the maps say; nothing until they were written.
    peers: Option<BTreeSet<IpAddr>>,
    complaints: HashMap<ServiceKey, BTreeSet<Complaint>>,
    checker: Checker,
    epoch: Instant,
    metrics: Metrics,
    takeover: Option<Takeover>,
}

impl Reconciler {
    /// Over the pinned maps.
    pub fn new(paths: &Paths, maps: Arc<Maps>, metrics: Metrics) -> Result<Self, SyncError> {
        let names = NameTable::open(&paths.names()).map_err(SyncError::Names)?;
        Ok(Self {
            maps,
            names,
            books: None,
            peers: None,
            complaints: HashMap::new(),
            epoch: Instant::now(),
            metrics,
            checker: Checker::default(),
            takeover: None,
        })
    }

    /// Lets the first round take over what rules have decided, if it finds the maps empty.
    pub fn take_over(&mut self, takeover: Takeover) {
        self.takeover = Some(takeover);
    }

    /// What service ids mean.
    pub fn names(&self) -> &HashMap<u32, PortName> {
        self.names.names()
    }

    /// What of an object is not served as asked, as far as the last round that looked at it found.
    pub fn complaints(&self, key: &ServiceKey) -> impl Iterator<Item = &Complaint> {
        self.complaints.get(key).into_iter().flatten()
    }

    /// Whether the next round looks at everything.
    pub fn starts_over(&self) -> bool {
        self.books.is_none()
    }

    /// Makes the maps say what the store says about the services in `dirty`; about all of them in the first round.
    pub fn sync(&mut self, store: &Store, dirty: BTreeSet<ServiceKey>) -> Result<Outcome, SyncError> {
        let result = self.try_sync(store, dirty);
        let result = result.and_then(|outcome| self.sync_peers(store).map(|()| outcome));
        if let Ok(outcome) = &result {
            self.metrics.steps.inc_by(outcome.steps as u64);
        } else {
            self.books = None;
            self.metrics.sync_failures.inc();
        }
        result
    }

    /// Which of these sockets talk to a backend that is gone: for UDP from the service that they asked for, as kube-proxy
    /// forgets its flows; for TCP, whose connections may drain, from everywhere.
    pub fn stale(&self, store: &Store, peers: Vec<Peer>) -> Vec<Peer> {
        let Some((books, _)) = &self.books else { return Vec::new() };
        let mut serving = HashMap::<u32, HashSet<SocketAddr>>::new();
        let stale = peers.into_iter().filter(|peer| {
            if peer.protocol == Protocol::TCP {
                return books.backend(peer.backend).is_none();
            }
            let of_service = serving.entry(peer.service).or_insert_with(|| {
                let Some(name) = books.name(peer.service) else { return HashSet::new() };
                let ports = store.desired(&name.service).into_iter();
                let port = ports.filter(|port| port.protocol.0 == name.protocol && port.label() == name.port);
                let backends = port.flat_map(|port| port.backends);
                backends.filter(|(_, listed)| listed.serving).map(|(address, _)| address).collect()
            });
            !of_service.contains(&peer.backend)
        });
        stale.collect()
    }

    /// Who serves these UDP ports, which have lost endpoints, as the maps say now. Nobody is judged while those must be read
    /// first: the round that does so names every port that may have lost something.
    pub fn lost(&self, services: &BTreeSet<u32>) -> Lost {
        let Some((books, _)) = &self.books else { return Lost::default() };
        let serving = |id: &u32| (*id, books.serving(*id).cloned().unwrap_or_default());
        Lost::new(services.iter().map(serving))
    }

    fn try_sync(&mut self, store: &Store, dirty: BTreeSet<ServiceKey>) -> Result<Outcome, SyncError> {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let limits = Limits::default();
        let first = self.books.is_none();
        let (mut books, mut filter) = match self.books.take() {
            Some(books) => books,
            None => (
                Books::adopt(limits, adopt(&self.maps, self.names.names())?),
                read_filter(&self.maps, now_ms)?,
            ),
        };
        let takeover = self.takeover.take().filter(|_| first && books.usage().frontends == [0, 0]);
        let mut round = Round::default();
        let mut queue: Vec<ServiceKey> = if first {
            let wanted: BTreeSet<&ServiceKey> = store.keys().collect();
            // What is gone goes first: somebody may want its addresses.
            let gone: Vec<_> = books.services().filter(|key| !wanted.contains(key)).cloned().collect();
            gone.into_iter().chain(wanted.into_iter().cloned()).collect()
        } else {
            dirty.into_iter().collect()
        };
        queue.reverse();
        while let Some(key) = queue.pop() {
            let plan = books.plan(&key, &store.desired(&key), now_ms);
            queue.extend(plan.again.iter().cloned());
            round.complain(&mut self.complaints, store, &key, &plan.problems);
            round.add(&key, plan);
        }
        if first {
            let plan = books.sweep(now_ms);
            queue.extend(plan.again.iter().cloned());
            round.add_steps(plan);
            for key in queue {
                let plan = books.plan(&key, &store.desired(&key), now_ms);
                round.complain(&mut self.complaints, store, &key, &plan.problems);
                round.add(&key, plan);
            }
        }
        let outcome = round.carry_out(&self.maps, &mut self.names, &mut filter, now_ms, takeover)?;
        self.metrics.set_usage(&books.usage(), &limits);
        self.metrics.unserved.set(self.complaints.len() as i64);
        self.books = Some((books, filter));
        Ok(outcome)
    }

    /// Takes tunnelled packets from the nodes that there are, and from no others.
    fn sync_peers(&mut self, store: &Store) -> Result<(), SyncError> {
        let peers = store.peers();
        if self.peers.as_ref() != Some(&peers) {
            self.maps.v4.write_peers(&peers)?;
            self.maps.v6.write_peers(&peers)?;
            self.peers = Some(peers);
        }
        Ok(())
    }

    /// One step of comparing the maps with the books. What differs is counted and complained about; the next round starts
    /// over where that repairs it. Nothing while it does so anyway.
    pub fn check(&mut self, clock: Option<(u32, f64)>) -> Result<Vec<(ServiceKey, Complaint)>, TableError> {
        let Some((books, filter)) = &self.books else { return Ok(Vec::new()) };
        let found = self.checker.step(&Compared { maps: &self.maps, books, filter, clock })?;
        for (kind, count) in &found.counts {
            self.metrics.add_drift(kind.name(), *count);
        }
        self.metrics.checks.inc_by(self.checker.rounds() - self.metrics.checks.get());
        if found.starts_over() {
            self.books = None;
        }
        let mut complaints = Vec::new();
        for (owner, drift) in found.described {
            match owner {
                Some(owner) if self.checker.tells(&owner) => {
                    complaints.push((owner, Complaint::Drift(drift)));
                }
                _ => warn!("{drift}"),
            }
        }
        Ok(complaints)
    }

    /// Rounds of such steps that are over.
    pub fn checks(&self) -> u64 {
        self.checker.rounds()
    }

    /// Clears what is left in the filter of services that are long gone, but for what live flows use. Costs nothing while
    /// none has gone.
    pub fn narrow_filter(&mut self, live: Bits) -> Result<(), TableError> {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let Some((books, filter)) = &mut self.books else { return Ok(()) };
        let changed = filter.narrow(books.addresses(), live, now_ms);
        // A bit too many does no harm, and the next removal clears it.
        self.maps.write_filter(&changed)
    }
}

#[derive(Debug, Default)]
struct Round {
    batch: Batch,
    new_names: Vec<(u32, Option<PortName>)>,
    old_names: Vec<(u32, Option<PortName>)>,
    outcome: Outcome,
}

impl Round {
    fn add(&mut self, key: &ServiceKey, plan: Plan) {
        self.outcome.guarded.extend(plan.steps.iter().filter_map(|step| match step {
            Step::WriteNodePort { port } => Some((key.clone(), *port)),
            _ => None,
        }));
        self.add_steps(plan);
    }

    fn add_steps(&mut self, plan: Plan) {
        self.batch.push(plan.steps);
        self.outcome.lost.extend(plan.lost);
        for name in plan.names {
            if name.1.is_some() { self.new_names.push(name) } else { self.old_names.push(name) }
        }
    }

    fn complain(
        &mut self,
        known: &mut HashMap<ServiceKey, BTreeSet<Complaint>>,
        store: &Store,
        key: &ServiceKey,
        problems: &[Problem],
    ) {
        let unserved = store.unserved(key);
        let now: BTreeSet<Complaint> = problems
            .iter()
            .cloned()
            .map(Complaint::Problem)
            .chain(unserved.into_iter().map(Complaint::Unserved))
            .collect();
        if problems.iter().any(|problem| !matches!(problem, Problem::Taken { .. })) {
            self.outcome.blocked.insert(key.clone());
        }
        let before = if now.is_empty() { known.remove(key) } else { known.insert(key.clone(), now.clone()) };
        let before = before.unwrap_or_default();
        self.outcome
            .complaints
            .extend(now.difference(&before).map(|complaint| (key.clone(), complaint.clone())));
    }

    /// Names that are new come before the maps use them, names that are over go after; so do bits of the filter.
    fn carry_out(
        self,
        maps: &Maps,
        names: &mut NameTable,
        filter: &mut Filter,
        now_ms: u64,
        takeover: Option<Takeover>,
    ) -> Result<Outcome, SyncError> {
        let steps = self.batch.into_steps();
        names.update(&self.new_names).map_err(SyncError::Names)?;
        maps.write_filter(&filter.widen(steps.iter().filter_map(Step::serves)))?;
        match takeover {
            None => maps.execute(&steps)?,
            Some(takeover) => {
                let connections = takeover.carry_out(maps, &steps)?;
                tracing::info!(connections, "taken over from rules of the kernel's NAT");
            }
        }
        if steps.iter().any(Step::ends) {
            filter.leave_over(now_ms);
        }
        names.update(&self.old_names).map_err(SyncError::Names)?;
        Ok(Outcome { steps: steps.len(), ..self.outcome })
    }
}

/// Lets packets of what an earlier agent programmed through the filter, for programs that are about to be attached: that
/// agent may not have known the filter.
pub fn prepare_filter(maps: &Maps) -> Result<(), TableError> {
    let mut adopted = Adopted::default();
    adopt_family(&maps.v4, &mut adopted)?;
    adopt_family(&maps.v6, &mut adopted)?;
    let frontends = adopted.frontends.iter().map(|(it, _)| SocketAddr::new(it.address, it.port));
    let cluster_ips = adopted.cluster_ips.iter().map(|address| any_port(*address));
    let frontends = frontends.chain(cluster_ips);
    let backends = adopted.backends.iter().map(|backend| backend.address);
    let mut filter = read_filter(maps, 0)?;
    // A flow outlives its frontend, whose bit nobody has set in a new map.
    let uses = if filter.is_empty() { flows::all_uses(maps)? } else { Vec::new() };
    maps.write_filter(&filter.widen(frontends.chain(backends).chain(uses)))
}

fn read_filter(maps: &Maps, now_ms: u64) -> Result<Filter, TableError> {
    let words = maps.filter.entries()?.into_iter().map(|(_, word)| word).collect();
    Ok(Filter::adopt(words, now_ms))
}

/// Reads everything that an earlier agent wrote.
pub(crate) fn adopt(maps: &Maps, names: &HashMap<u32, PortName>) -> Result<Adopted, TableError> {
    let mut adopted = Adopted { names: names.clone(), ..Adopted::default() };
    adopt_family(&maps.v4, &mut adopted)?;
    adopt_family(&maps.v6, &mut adopted)?;
    for (index, taken) in maps.node_ports.entries()? {
        if taken != 0 {
            let (protocol, port) = node_port_at(index);
            adopted.node_ports.push(NodePort { protocol: protocol.0, port: port.get() });
        }
    }

    // One reading of the whole map, some thousand slots at a time, instead of a call for each region.
    let mut wanted = BTreeMap::<u32, u32>::new();
    for (_, frontend) in adopted.frontends.iter().filter(|(_, frontend)| frontend.backends > 0) {
        wanted.insert(frontend.maglev_offset, frontend.maglev_mask.saturating_add(1));
    }
    let mut reader = RegionReader::new(wanted);
    for batch in maps.maglev.batches() {
        if reader.is_done() {
            break;
        }
        reader.take(&batch?);
    }
    adopted.regions = reader.found;
    Ok(adopted)
}

/// Picks regions out of slots that come in order.
struct RegionReader {
    /// Size by offset, for those that have not begun.
    ahead: BTreeMap<u32, u32>,
    /// Regions that have begun, by offset: their sizes. Damaged frontends may name overlapping ones.
    open: Vec<(u32, u32)>,
    found: HashMap<(u32, u32), Vec<u32>>,
}

impl RegionReader {
    fn new(wanted: BTreeMap<u32, u32>) -> Self {
        Self { ahead: wanted, open: Vec::new(), found: HashMap::new() }
    }

    fn is_done(&self) -> bool {
        self.ahead.is_empty() && self.open.is_empty()
    }

    fn take(&mut self, slots: &[(u32, u32)]) {
        for (slot, id) in slots {
            if let Some(size) = self.ahead.remove(slot) {
                self.open.push((*slot, size));
                self.found.insert((*slot, size), Vec::new());
            }
            self.open.retain(|(offset, size)| {
                let contents = self.found.get_mut(&(*offset, *size)).expect("it was opened");
                contents.push(*id);
                contents.len() < *size as usize
            });
        }
    }
}

fn adopt_family<A: Family>(maps: &FamilyMaps<A>, adopted: &mut Adopted) -> Result<(), TableError> {
    let frontends: Vec<(FrontendKey<A>, Frontend)> = maps.frontends.entries()?;
    adopted.frontends.extend(frontends.into_iter().map(|(key, value)| (frontend_address(key), value)));
    let cluster_ips = maps.cluster_ips.entries()?;
    adopted.cluster_ips.extend(cluster_ips.into_iter().map(|(address, _)| address.ip()));
    let ranges = maps.source_ranges.entries()?;
    adopted.source_ranges.extend(ranges.into_iter().map(|(key, _)| source_range(key)));
    for (id, backend) in maps.backends.entries()? {
        if backend.flags & Backend::<A>::FLAG_ACTIVE != 0 {
            let local = backend.flags & Backend::<A>::FLAG_LOCAL != 0;
            let node = Some(backend.node.ip()).filter(|node| !node.is_unspecified());
            adopted.backends.push(AdoptedBackend { id, address: backend_address(&backend), local, node });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_found_across_batches() {
        let slots: Vec<(u32, u32)> = (0..64).map(|slot| (slot, slot + 100)).collect();
        let mut reader = RegionReader::new(BTreeMap::from([(0, 4), (16, 16), (24, 4), (60, 8)]));
        for batch in slots.chunks(10) {
            reader.take(batch);
        }
        let region = |offset: u32, size: u32| reader.found[&(offset, size)].clone();
        assert_eq!(region(0, 4), [100, 101, 102, 103]);
        assert_eq!(region(16, 16), (116..132).collect::<Vec<_>>());
        assert_eq!(region(24, 4), [124, 125, 126, 127], "inside another");
        assert_eq!(region(60, 8), [160, 161, 162, 163], "as far as there are slots");
        assert!(!reader.is_done());
    }
}
