//! What the maps hold, and how to get from there to what a service should be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
};

use weir_dataplane_ebpf::{Frontend, Protocol, maps};

use super::{
    desired::{DesiredFrontend, DesiredPort},
    ids::Ids,
    maglev,
    model::{FrontendAddress, ServiceKey},
    regions::Regions,
    source_ranges::SourceRanges,
    step::Step,
};
use crate::cidr::Cidr;

/// How long a freed region or backend id rests before it means something else: a program that read a frontend a moment
/// ago is done with it after microseconds; a second also covers a virtual machine that is not scheduled.
pub const GRACE_MS: u64 = 1_000;

/// Bounds of the maps; the ABI's, except in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frontends of each family.
    pub frontends: u32,
    /// Backends of each family.
    pub backends: u32,
    /// Slots of all tables together.
    pub slots: u32,
    /// Source ranges of each family.
    pub source_ranges: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frontends: maps::FRONTENDS,
            backends: maps::BACKENDS,
            slots: maps::MAGLEV_SLOTS,
            source_ranges: maps::SOURCE_RANGES,
        }
    }
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frontends, IPv4 and IPv6.
    pub frontends: [u32; 2],
    /// Backends, IPv4 and IPv6, those at rest included.
    pub backends: [u32; 2],
    /// Slots, those at rest included.
    pub slots: u32,
    /// Source ranges, IPv4 and IPv6.
    pub source_ranges: [u32; 2],
}

/// Input that cannot be served as asked; everything else of the service is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// Two services want one address and port.
    #[error("{frontend} is served by {owner} already; give one of the two another address or port")]
    Taken {
        /// What both want.
        frontend: FrontendAddress,
        /// Who has it.
        owner: ServiceKey,
    },
    /// `frontends_*` is full.
    #[error(
        "{left_out} addresses are not served: this node has room for {bound} frontends; delete services that nobody uses"
    )]
    FrontendsFull {
        /// How many have no room.
        left_out: usize,
        /// The map's bound.
        bound: u32,
    },
    /// `backends_*` is full.
    #[error(
        "{left_out} endpoints get no connections: this node has room for {bound} backends; spread the endpoints over fewer services"
    )]
    BackendsFull {
        /// How many have no room.
        left_out: usize,
        /// The map's bound.
        bound: u32,
    },
    /// `source_ranges_*` is full.
    #[error(
        "clients of {left_out} source ranges are refused: this node has room for {bound} ranges; give larger ranges, or fewer ports"
    )]
    SourceRangesFull {
        /// How many have no room.
        left_out: usize,
        /// The map's bound.
        bound: u32,
    },
    /// `maglev` is full.
    #[error(
        "a change of endpoints cannot take effect: all {bound} slots of the lookup tables are in use; delete services that nobody uses"
    )]
    SlotsFull {
        /// The map's bound.
        bound: u32,
    },
}

/// What to do for one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Map writes, in order.
    pub steps: Vec<Step>,
    /// What cannot be served, and why.
    pub problems: Vec<Problem>,
    /// Service ids that mean something new (a label) or nothing any more.
    pub names: Vec<(u32, Option<PortName>)>,
    /// Services that wanted a frontend which this plan gave up.
    pub again: BTreeSet<ServiceKey>,
}

/// A service port's name, as far as it identifies the port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name, or its number when it has none.
    pub port: Box<str>,
    /// IANA protocol number.
    pub protocol: u8,
}

/// A backend found in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedBackend {
    /// Its id.
    pub id: u32,
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
}

/// Everything found in the maps when the agent starts.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// All frontends.
    pub frontends: Vec<(FrontendAddress, Frontend)>,
    /// All backends in use.
    pub backends: Vec<AdoptedBackend>,
    /// Contents of the regions that frontends name, by offset and size.
    pub regions: HashMap<(u32, u32), Vec<u32>>,
    /// All source ranges, by service id.
    pub source_ranges: Vec<(u32, Cidr)>,
    /// What service ids mean.
    pub names: HashMap<u32, PortName>,
}

#[derive(Clone, Debug)]
struct Backend {
    id: u32,
    local: bool,
    /// Services that list it as an endpoint.
    services: u32,
}

#[derive(Clone, Debug)]
struct Region {
    size: u32,
    fingerprint: u64,
    /// Frontends that point to it.
    frontends: u32,
}

/// What one service has in the maps.
#[derive(Clone, Debug, Default)]
struct Programmed {
    frontends: Vec<FrontendAddress>,
    backends: Vec<SocketAddr>,
    ports: Vec<(PortName, u32)>,
}

#[derive(Clone, Copy, Debug)]
enum Retired {
    Region { offset: u32, size: u32 },
    Backend { ipv4: bool, id: u32 },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Books {
    limits: Limits,
    services: HashMap<ServiceKey, Programmed>,
    /// Owner by service id, for frontends that two services want.
    owners: HashMap<u32, ServiceKey>,
    frontends: HashMap<FrontendAddress, Frontend>,
    frontend_counts: [u32; 2],
    waiting: HashMap<FrontendAddress, BTreeSet<ServiceKey>>,
    backends: HashMap<SocketAddr, Backend>,
    backend_ids: [Ids; 2],
    /// Second ids of one backend, left by an agent that ended between two writes; tables may still hold them.
    twins: Vec<(SocketAddr, u32)>,
    regions: HashMap<u32, Region>,
    slots: Regions,
    source_ranges: SourceRanges,
    retired: VecDeque<(u64, Retired)>,
    next_service: u32,
}

impl Books {
    /// Of empty maps.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            services: HashMap::new(),
            owners: HashMap::new(),
            frontends: HashMap::new(),
            frontend_counts: [0; 2],
            waiting: HashMap::new(),
            backends: HashMap::new(),
            backend_ids: [Ids::new(limits.backends), Ids::new(limits.backends)],
            twins: Vec::new(),
            regions: HashMap::new(),
            slots: Regions::new(limits.slots),
            source_ranges: SourceRanges::new(limits.source_ranges),
            retired: VecDeque::new(),
            next_service: 1,
        }
    }

    /// Of maps that an earlier agent filled. A frontend whose region cannot be its own (damaged or foreign) is taken as
    /// it is and replaced by the next plan of its service.
    pub fn adopt(limits: Limits, adopted: Adopted) -> Self {
        let mut books = Self::new(limits);
        for backend in adopted.backends {
            if books.backend_ids[family(backend.address)].reserve(backend.id) {
                let known = Backend { id: backend.id, local: backend.local, services: 0 };
                if let Some(twin) = books.backends.insert(backend.address, known) {
                    books.twins.push((backend.address, twin.id));
                }
            }
        }
        for (address, value) in adopted.frontends {
            books.next_service = books.next_service.max(value.service.saturating_add(1));
            if value.backends > 0 {
                let (offset, size) = (value.maglev_offset, value.maglev_mask.wrapping_add(1));
                let known = books.regions.get(&offset).is_some_and(|region| region.size == size);
                if known || books.slots.reserve(offset, size) {
                    let contents = adopted.regions.get(&(offset, size)).map_or(&[][..], Vec::as_slice);
                    let fingerprint = fingerprint(contents);
                    let region =
                        books.regions.entry(offset).or_insert(Region { size, fingerprint, frontends: 0 });
                    region.frontends += 1;
                }
            }
            books.frontend_counts[usize::from(!address.address.is_ipv4())] += 1;
            books.frontends.insert(address, value);
            if let Some(name) = adopted.names.get(&value.service) {
                books.owners.insert(value.service, name.service.clone());
                let programmed = books.services.entry(name.service.clone()).or_default();
                programmed.frontends.push(address);
            }
        }
        for (id, range) in adopted.source_ranges {
            // Also one that nobody owns: its id must not be given out while the range stands.
            books.next_service = books.next_service.max(id.saturating_add(1));
            books.source_ranges.adopt(id, range);
        }
        for (id, name) in adopted.names {
            books.next_service = books.next_service.max(id.saturating_add(1));
            books.services.entry(name.service.clone()).or_default().ports.push((name, id));
        }
        books
    }

    /// Services that have something in the maps.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// How full the maps are.
    pub fn usage(&self) -> Usage {
        Usage {
            frontends: self.frontend_counts,
            backends: [self.backend_ids[0].used(), self.backend_ids[1].used()],
            slots: self.slots.used(),
            source_ranges: self.source_ranges.used(),
        }
    }

    /// Ids of backends that are in use, by family, for those who ask whether a flow's backend still is.
    pub fn backend(&self, address: SocketAddr) -> Option<u32> {
        self.backends.get(&address).map(|backend| backend.id)
    }

    /// Changes the maps' picture of one service to `ports`; no ports means that the service is gone.
    pub fn plan(&mut self, key: &ServiceKey, ports: &[DesiredPort], now_ms: u64) -> Plan {
        self.reclaim(now_ms);
        let mut plan = Plan::default();
        let old = self.services.remove(key).unwrap_or_default();
        let mut new = Programmed::default();

        self.take_backends(ports, &mut new, &mut plan);
        for port in ports {
            let service = self.service_id(key, port, &old, &mut new, &mut plan);
            self.admit(service, &port.source_ranges, &mut plan);
            self.point_frontends(key, port, service, &mut new, &mut plan, now_ms);
        }
        let kept: BTreeSet<FrontendAddress> = new.frontends.iter().copied().collect();
        for address in old.frontends.iter().filter(|address| !kept.contains(address)) {
            self.remove_frontend(*address, &mut plan, now_ms);
        }
        for (_, id) in old.ports.iter().filter(|(name, _)| !new.ports.iter().any(|(kept, _)| kept == name)) {
            self.owners.remove(id);
            self.admit(*id, &BTreeSet::new(), &mut plan);
            plan.names.push((*id, None));
        }
        self.drop_backends(&old.backends, &mut plan, now_ms);
        if !ports.is_empty() {
            self.services.insert(key.clone(), new);
        }
        plan.steps.sort_by_key(Step::phase);
        plan.problems.sort();
        plan
    }

    /// Removes what no service owns: for the end of the first pass after [`Books::adopt`].
    pub fn sweep(&mut self, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        let owned: BTreeSet<FrontendAddress> =
            self.services.values().flat_map(|service| service.frontends.iter().copied()).collect();
        let orphans: Vec<_> = self.frontends.keys().filter(|a| !owned.contains(a)).copied().collect();
        for address in orphans {
            self.remove_frontend(address, &mut plan, now_ms);
        }
        let owned: BTreeSet<u32> =
            self.services.values().flat_map(|service| service.ports.iter().map(|(_, id)| *id)).collect();
        let orphans: Vec<_> = self.source_ranges.services().filter(|id| !owned.contains(id)).collect();
        for id in orphans {
            self.admit(id, &BTreeSet::new(), &mut plan);
        }
        let unused: Vec<_> =
            self.backends.iter().filter(|(_, b)| b.services == 0).map(|(address, _)| *address).collect();
        for address in unused {
            self.retire_backend(address, &mut plan, now_ms);
        }
        for (address, id) in std::mem::take(&mut self.twins) {
            plan.steps.push(Step::RetireBackend { id, address });
            self.retired.push_back((now_ms, Retired::Backend { ipv4: address.is_ipv4(), id }));
        }
        plan.steps.sort_by_key(Step::phase);
        plan
    }

    /// Makes ids and regions whose rest is over free again.
    fn reclaim(&mut self, now_ms: u64) {
        while self.retired.front().is_some_and(|(when, _)| when.saturating_add(GRACE_MS) <= now_ms) {
            match self.retired.pop_front() {
                Some((_, Retired::Region { offset, size })) => self.slots.release(offset, size),
                Some((_, Retired::Backend { ipv4, id })) => self.backend_ids[usize::from(!ipv4)].release(id),
                None => {}
            }
        }
    }

    /// Makes sure that every endpoint of the service has an id.
    fn take_backends(&mut self, ports: &[DesiredPort], new: &mut Programmed, plan: &mut Plan) {
        let mut wanted = BTreeMap::<SocketAddr, bool>::new();
        for (address, local) in ports.iter().flat_map(|port| &port.backends) {
            *wanted.entry(*address).or_default() |= local;
        }
        let mut left_out = 0;
        for (address, local) in wanted {
            let write = if let Some(backend) = self.backends.get_mut(&address) {
                backend.services += 1;
                let changed = backend.local != local;
                backend.local = local;
                changed.then_some(backend.id)
            } else if let Some(id) = self.backend_ids[family(address)].allocate() {
                self.backends.insert(address, Backend { id, local, services: 1 });
                Some(id)
            } else {
                left_out += 1;
                continue;
            };
            new.backends.push(address);
            plan.steps.extend(write.map(|id| Step::WriteBackend { id, address, local }));
        }
        if left_out > 0 {
            plan.problems.push(Problem::BackendsFull { left_out, bound: self.limits.backends });
        }
    }

    /// Lets go of the endpoints that the service listed before; those that it lists again were taken once more.
    fn drop_backends(&mut self, addresses: &[SocketAddr], plan: &mut Plan, now_ms: u64) {
        for address in addresses {
            let backend = self.backends.get_mut(address).expect("a listed backend is in the books");
            backend.services -= 1;
            if backend.services == 0 {
                self.retire_backend(*address, plan, now_ms);
            }
        }
    }

    fn retire_backend(&mut self, address: SocketAddr, plan: &mut Plan, now_ms: u64) {
        if let Some(backend) = self.backends.remove(&address) {
            plan.steps.push(Step::RetireBackend { id: backend.id, address });
            self.retired.push_back((now_ms, Retired::Backend { ipv4: address.is_ipv4(), id: backend.id }));
        }
    }

    /// The port's id: the one that it has, or the next.
    fn service_id(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        old: &Programmed,
        new: &mut Programmed,
        plan: &mut Plan,
    ) -> u32 {
        let label = if port.name.is_empty() { port.port.to_string().into() } else { port.name.clone() };
        let name = PortName { service: key.clone(), port: label, protocol: port.protocol.0 };
        let id = if let Some((_, id)) = old.ports.iter().find(|(known, _)| *known == name) {
            *id
        } else {
            let id = self.next_service;
            // Four billion service ports outlast the machine; wrapping would only confuse names.
            self.next_service = self.next_service.saturating_add(1);
            plan.names.push((id, Some(name.clone())));
            id
        };
        self.owners.insert(id, key.clone());
        new.ports.push((name, id));
        id
    }

    /// Makes `wanted` the ranges of a service port. One that has no room admits nobody.
    fn admit(&mut self, service: u32, wanted: &BTreeSet<Cidr>, plan: &mut Plan) {
        let left_out = self.source_ranges.set(service, wanted, &mut plan.steps);
        if left_out > 0 {
            plan.problems.push(Problem::SourceRangesFull { left_out, bound: self.limits.source_ranges });
        }
    }

    /// Points every frontend of the port to the right table.
    fn point_frontends(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        service: u32,
        new: &mut Programmed,
        plan: &mut Plan,
        now_ms: u64,
    ) {
        // One table for all frontends of the same choice.
        let mut tables = HashMap::<(bool, bool), Option<(u32, u32, u32)>>::new();
        let mut left_out = 0;
        for frontend in &port.frontends {
            let address = frontend.address;
            let ipv4 = address.address.is_ipv4();
            if let Some(owner) = self.other_owner(key, address) {
                self.waiting.entry(address).or_default().insert(key.clone());
                plan.problems.push(Problem::Taken { frontend: address, owner });
                continue;
            }
            let known = self.frontends.contains_key(&address);
            if !known && self.frontend_counts[usize::from(!ipv4)] >= self.limits.frontends {
                left_out += 1;
                continue;
            }
            let choice = (ipv4, frontend.local_only);
            let table = if let Some(table) = tables.get(&choice) {
                *table
            } else {
                let table = self.table(port, frontend, plan);
                tables.insert(choice, table);
                table
            };
            let (maglev_offset, maglev_mask, backends) = match (table, self.frontends.get(&address)) {
                (Some((offset, size, backends)), _) => (offset, size.saturating_sub(1), backends),
                // Who was served before is served on: the old table still holds backends that exist. Who may be served
                // is another question, and answered anew.
                (None, Some(old)) => (old.maglev_offset, old.maglev_mask, old.backends),
                (None, None) => continue,
            };
            let value = Frontend {
                service,
                maglev_offset,
                maglev_mask,
                backends,
                flags: frontend.flags,
                affinity_timeout_s: port.affinity_timeout_s,
            };
            new.frontends.push(address);
            self.write_frontend(address, value, plan, now_ms);
        }
        if left_out > 0 {
            plan.problems.push(Problem::FrontendsFull { left_out, bound: self.limits.frontends });
        }
    }

    /// Another service that has this frontend.
    fn other_owner(&self, key: &ServiceKey, address: FrontendAddress) -> Option<ServiceKey> {
        let owner = self.owners.get(&self.frontends.get(&address)?.service)?;
        (owner != key).then(|| owner.clone())
    }

    /// Offset, size and number of backends of the table that `frontend` should point to: the one that it points to if
    /// that says the same, otherwise a new one. Nothing when there is no room.
    fn table(
        &mut self,
        port: &DesiredPort,
        frontend: &DesiredFrontend,
        plan: &mut Plan,
    ) -> Option<(u32, u32, u32)> {
        let ipv4 = frontend.address.address.is_ipv4();
        let backends: Vec<SocketAddr> = port
            .serving(ipv4, frontend.local_only)
            .iter()
            .copied()
            .filter(|address| self.backends.contains_key(address))
            .collect();
        let count = backends.len() as u32;
        if backends.is_empty() {
            return Some((0, 0, 0));
        }
        let ids = |size: usize| -> Vec<u32> {
            let table = maglev::table(&backends, size);
            table.into_iter().map(|index| self.backends[&backends[index as usize]].id).collect()
        };
        let mut size = maglev::preferred_size(backends.len());
        let mut slots = ids(size);
        if let Some(current) = self.frontends.get(&frontend.address).filter(|value| value.backends > 0) {
            let offset = current.maglev_offset;
            if let Some(region) = self.regions.get(&offset) {
                let same = region.size == current.maglev_mask.wrapping_add(1)
                    && region.size as usize == size
                    && region.fingerprint == fingerprint(&slots);
                if same {
                    return Some((offset, region.size, count));
                }
            }
        }
        // Under pressure a smaller table, less even, is better than none.
        let offset = loop {
            if let Some(offset) = self.slots.allocate(size as u32) {
                break offset;
            }
            if size <= maglev::smallest_size(backends.len()) {
                plan.problems.push(Problem::SlotsFull { bound: self.limits.slots });
                return None;
            }
            size /= 2;
            slots = ids(size);
        };
        let region = Region { size: size as u32, fingerprint: fingerprint(&slots), frontends: 0 };
        self.regions.insert(offset, region);
        plan.steps.push(Step::WriteRegion { offset, slots });
        Some((offset, size as u32, count))
    }

    fn write_frontend(&mut self, address: FrontendAddress, value: Frontend, plan: &mut Plan, now_ms: u64) {
        let old = self.frontends.insert(address, value);
        if old == Some(value) {
            return;
        }
        if value.backends > 0
            && let Some(region) = self.regions.get_mut(&value.maglev_offset)
        {
            region.frontends += 1;
        }
        match old {
            Some(old) => self.leave_region(&old, now_ms),
            None => self.frontend_counts[usize::from(!address.address.is_ipv4())] += 1,
        }
        plan.steps.push(Step::WriteFrontend { address, value });
    }

    fn remove_frontend(&mut self, address: FrontendAddress, plan: &mut Plan, now_ms: u64) {
        let Some(old) = self.frontends.remove(&address) else { return };
        self.frontend_counts[usize::from(!address.address.is_ipv4())] -= 1;
        self.leave_region(&old, now_ms);
        plan.steps.push(Step::RemoveFrontend { address });
        plan.again.extend(self.waiting.remove(&address).unwrap_or_default());
    }

    /// A region that no frontend points to any more rests, and is then free.
    fn leave_region(&mut self, old: &Frontend, now_ms: u64) {
        if old.backends == 0 {
            return;
        }
        let offset = old.maglev_offset;
        let Some(region) = self.regions.get_mut(&offset) else { return };
        // An adopted frontend that named a region of another size never counted.
        if region.size != old.maglev_mask.wrapping_add(1) {
            return;
        }
        region.frontends -= 1;
        if region.frontends == 0 {
            let size = region.size;
            self.regions.remove(&offset);
            self.retired.push_back((now_ms, Retired::Region { offset, size }));
        }
    }
}

/// Index of an address's family in pairs: IPv4, IPv6.
fn family(address: SocketAddr) -> usize {
    usize::from(!address.is_ipv4())
}

/// Whether two tables are the same, without keeping either: FNV-1a over the ids. Tables differ by design, not by an
/// attacker's hand, and equal sizes are compared as well.
fn fingerprint(slots: &[u32]) -> u64 {
    slots
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, id| (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3))
}

/// The name that people read: `namespace/name:port`.
impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        if Protocol(self.protocol) == Protocol::TCP {
            return Ok(());
        }
        write!(f, "/{}", super::model::protocol_name(Protocol(self.protocol)))
    }
}
