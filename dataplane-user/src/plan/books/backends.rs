//! Backends and their ids: each endpoint has one for as long as a service lists it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::Protocol;

use super::{Books, Programmed, Retired};
use crate::plan::{
    desired::{DesiredPort, MAX_ENDPOINTS},
    outcome::{Plan, Problem},
    step::Step,
};

#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) id: u32,
    pub(super) local: bool,
    pub(super) node: Option<IpAddr>,
    /// Services that list it as an endpoint.
    pub(super) services: u32,
}

impl Books {
    /// Makes sure that every endpoint of the service has an id.
    pub(super) fn take_backends(&mut self, ports: &[DesiredPort], new: &mut Programmed, plan: &mut Plan) {
        let mut wanted = BTreeMap::<SocketAddr, (bool, Option<IpAddr>)>::new();
        for (address, listed) in ports.iter().flat_map(|port| &port.backends) {
            let (local, node) = wanted.entry(*address).or_default();
            *local |= listed.local;
            *node = node.or(listed.node);
        }
        let beyond: usize = ports.iter().map(|port| port.left_out).sum();
        if beyond > 0 {
            plan.problems.push(Problem::TooManyEndpoints { left_out: beyond, bound: MAX_ENDPOINTS });
        }
        let mut left_out = 0;
        for (address, (local, node)) in wanted {
            let write = if let Some(backend) = self.backends.get_mut(&address) {
                backend.services += 1;
                let changed = (backend.local, backend.node) != (local, node);
                (backend.local, backend.node) = (local, node);
                changed.then_some(backend.id)
            } else if let Some(id) = self.backend_ids[family(address)].allocate() {
                self.backends.insert(address, Backend { id, local, node, services: 1 });
                Some(id)
            } else {
                left_out += 1;
                continue;
            };
            new.backends.push(address);
            plan.steps.extend(write.map(|id| Step::WriteBackend { id, address, local, node }));
        }
        if left_out > 0 {
            plan.problems.push(Problem::BackendsFull { left_out, bound: self.limits.backends });
        }
    }

    /// Remembers which backends of a UDP port serve, and says when there are others no more. What an earlier agent's maps
    /// lost while nobody looked is not known, and so taken for something.
    pub(super) fn note_serving(
        &self,
        service: u32,
        port: &DesiredPort,
        old: &Programmed,
        new: &mut Programmed,
        plan: &mut Plan,
    ) {
        if port.protocol != Protocol::UDP {
            return;
        }
        let serving = port.backends.iter().filter(|(_, listed)| listed.serving);
        let serving: BTreeSet<u32> = serving.filter_map(|(address, _)| self.backend(*address)).collect();
        let lost = match old.serving.get(&service) {
            Some(before) => !before.is_subset(&serving),
            None => old.ports.iter().any(|(_, id)| *id == service),
        };
        if lost {
            plan.lost.insert(service);
        }
        new.serving.insert(service, serving);
    }

    /// Lets go of the endpoints that the service listed before; those that it lists again were taken once more.
    pub(super) fn drop_backends(&mut self, addresses: &[SocketAddr], plan: &mut Plan, now_ms: u64) {
        for address in addresses {
            let backend = self.backends.get_mut(address).expect("a listed backend is in the books");
            backend.services -= 1;
            if backend.services == 0 {
                self.retire_backend(*address, plan, now_ms);
            }
        }
    }

    pub(super) fn retire_backend(&mut self, address: SocketAddr, plan: &mut Plan, now_ms: u64) {
        if let Some(backend) = self.backends.remove(&address) {
            plan.steps.push(Step::RetireBackend { id: backend.id, address });
            self.retired.push_back((now_ms, Retired::Backend { ipv4: address.is_ipv4(), id: backend.id }));
        }
    }
}

/// Index of an address's family in pairs: IPv4, IPv6.
pub(super) fn family(address: SocketAddr) -> usize {
    usize::from(!address.is_ipv4())
}
