//! What the maps hold, and how to get from there to what a service should be.
//!
//! Here are services and their frontends; what frontends point to is in [`tables`], what tables hold in [`backends`].

mod adopt;
mod backends;
mod inspect;
mod tables;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::{Frontend, Protocol};

pub use self::adopt::{Adopted, AdoptedBackend};
use self::{backends::Backend, tables::Region};
use super::{
    desired::DesiredPort,
    ids::Ids,
    limits::{Limits, Usage},
    marks::Marks,
    model::{FrontendAddress, NodePort, OwnerKind, PortName, ServiceKey},
    outcome::{Plan, Problem},
    regions::Regions,
    source_ranges::SourceRanges,
    step::{Step, any_port},
};
use crate::cidr::Cidr;

/// How long a freed region or backend id rests before it means something else: a program that read a frontend a moment
/// ago is done with it after microseconds; a second also covers a virtual machine that is not scheduled.
pub const GRACE_MS: u64 = 1_000;

/// What one service has in the maps.
#[derive(Clone, Debug, Default)]
struct Programmed {
    frontends: Vec<FrontendAddress>,
    backends: Vec<SocketAddr>,
    ports: Vec<(PortName, u32)>,
    /// Ids of backends that serve, for each UDP port by its service id. Nothing for a port that an earlier agent programmed.
    serving: HashMap<u32, BTreeSet<u32>>,
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
    node_ports: Marks<NodePort>,
    cluster_ips: Marks<IpAddr>,
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
            node_ports: Marks::default(),
            cluster_ips: Marks::default(),
            retired: VecDeque::new(),
            next_service: 1,
        }
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
            node_ports: self.node_ports.used(),
            cluster_ips: self.cluster_ips.used(),
            source_ranges: self.source_ranges.used(),
        }
    }

    /// What packets to or from can be a service's: all frontends, cluster IPs and backends, by address and port.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let frontends = self.frontends.keys().map(|it| SocketAddr::new(it.address, it.port));
        let cluster_ips = self.cluster_ips.written().iter().map(|address| any_port(*address));
        frontends.chain(cluster_ips).chain(self.backends.keys().copied())
    }

    /// Ids of backends that are in use, by family, for those who ask whether a flow's backend still is.
    pub fn backend(&self, address: SocketAddr) -> Option<u32> {
        self.backends.get(&address).map(|backend| backend.id)
    }

    /// What a service id means, if it means anything.
    pub fn name(&self, service: u32) -> Option<&PortName> {
        let programmed = self.services.get(self.owners.get(&service)?)?;
        programmed.ports.iter().find(|(_, id)| *id == service).map(|(name, _)| name)
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
            self.note_serving(service, port, &old, &mut new, &mut plan);
            self.point_frontends(key, port, service, &mut new, &mut plan, now_ms);
        }
        let kept: BTreeSet<FrontendAddress> = new.frontends.iter().copied().collect();
        for address in old.frontends.iter().filter(|address| !kept.contains(address)) {
            self.remove_frontend(*address, &mut plan, now_ms);
        }
        for (name, id) in old.ports.iter().filter(|(name, _)| !new.ports.iter().any(|(kept, _)| kept == name))
        {
            self.owners.remove(id);
            if Protocol(name.protocol) == Protocol::UDP {
                plan.lost.insert(*id);
            }
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

    /// The port's id: the one that it has, or the next.
    fn service_id(
        &mut self,
        key: &ServiceKey,
        port: &DesiredPort,
        old: &Programmed,
        new: &mut Programmed,
        plan: &mut Plan,
    ) -> u32 {
        let name = PortName { service: key.clone(), port: port.label(), protocol: port.protocol.0 };
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
            if let Some(owner) = self.other_owner(key, address)
                && !self.yields(&owner, key, address, plan)
            {
                self.waiting.entry(address).or_default().insert(key.clone());
                plan.problems.push(Problem::Taken { frontend: address, owner });
                continue;
            }
            if new.ports.len() > 1 && new.frontends.contains(&address) {
                plan.problems.push(Problem::Twice { frontend: address });
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

    /// Takes a frontend away from a Pod that a Service wants; the Pod is planned again and told.
    fn yields(
        &mut self,
        owner: &ServiceKey,
        to: &ServiceKey,
        frontend: FrontendAddress,
        plan: &mut Plan,
    ) -> bool {
        let yields = (owner.kind, to.kind) == (OwnerKind::Pod, OwnerKind::Service);
        if yields {
            if let Some(programmed) = self.services.get_mut(owner) {
                programmed.frontends.retain(|address| *address != frontend);
            }
            plan.again.insert(owner.clone());
        }
        yields
    }

    /// Another service that has this frontend.
    fn other_owner(&self, key: &ServiceKey, address: FrontendAddress) -> Option<ServiceKey> {
        let owner = self.owners.get(&self.frontends.get(&address)?.service)?;
        (owner != key).then(|| owner.clone())
    }

    fn write_frontend(&mut self, address: FrontendAddress, value: Frontend, plan: &mut Plan, now_ms: u64) {
        let old = self.frontends.insert(address, value);
        if old == Some(value) {
            return;
        }
        self.node_ports.change(address, old.as_ref(), Some(&value), &mut plan.steps);
        self.cluster_ips.change(address, old.as_ref(), Some(&value), &mut plan.steps);
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
        self.node_ports.change(address, Some(&old), None, &mut plan.steps);
        self.cluster_ips.change(address, Some(&old), None, &mut plan.steps);
        plan.steps.push(Step::RemoveFrontend { address });
        plan.again.extend(self.waiting.remove(&address).unwrap_or_default());
    }
}
