//! From one Service and its endpoints to the frontends and backends that should exist. Pure.
//!
//! Which endpoints serve follows KEP-1669 (ready ones; if there is none, those that still serve while they terminate)
//! and KEP-2086 (traffic policies), in [`choice`]; scopes follow kube-proxy: a policy for external traffic never binds
//! clients inside.

mod choice;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::{Frontend, Protocol, Scope, maps};

use self::choice::{Candidate, endpoints, serving};
pub use self::choice::{Judged, Verdict, judge};
use super::model::{FrontendAddress, Node, Service, ServicePort, Slice};
use crate::{cidr::Cidr, config::ForwardingMode};

/// Endpoints of one service that are looked at, all its ports together: a quarter of what a node has room for, so that no
/// Service takes the room of all others.
pub const MAX_ENDPOINTS: usize = maps::BACKENDS as usize / 4;

/// Everything of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    /// The port's name, empty for an only port.
    pub name: Box<str>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port's number on service addresses.
    pub port: u16,
    /// Every endpoint that exists. One that does not serve any more still keeps its established connections.
    pub backends: BTreeMap<SocketAddr, Listed>,
    /// Endpoints beyond [`MAX_ENDPOINTS`]; those of the last slices by name, on every node the same.
    pub left_out: usize,
    /// The frontends.
    pub frontends: Vec<DesiredFrontend>,
    /// Who may use its frontends that have [`Frontend::FLAG_SOURCE_RANGES`].
    pub source_ranges: BTreeSet<Cidr>,
    /// Session affinity's timeout in seconds, 0 without.
    pub affinity_timeout_s: u32,
    pub(super) serving: Serving,
}

/// An endpoint as a service lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// It is on this node.
    pub local: bool,
    /// The address of the other node that it is on, in its own family; nothing when that is not known.
    pub node: Option<IpAddr>,
    /// It answers, ready or terminating.
    pub serving: bool,
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// Where clients talk to.
    pub address: FrontendAddress,
    /// Only backends of this node may answer.
    pub local_only: bool,
    /// [`Frontend::FLAG_NODE_PORT`] and its siblings.
    pub flags: u32,
}

/// The choice that clients have, by family (IPv4 first) and by whether only this node's backends count.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Serving([[Vec<SocketAddr>; 2]; 2]);

impl Serving {
    /// These, all of this node; sorted and without duplicates.
    pub(super) fn of(backends: &BTreeSet<SocketAddr>) -> Self {
        let of_family = |ipv4: bool| -> Vec<SocketAddr> {
            backends.iter().copied().filter(|backend| backend.is_ipv4() == ipv4).collect()
        };
        Self([true, false].map(|ipv4| [of_family(ipv4), of_family(ipv4)]))
    }

    fn get(&self, ipv4: bool, local_only: bool) -> &[SocketAddr] {
        &self.0[usize::from(!ipv4)][usize::from(local_only)]
    }

    /// Whether the policy leaves nothing of what there is.
    fn only_elsewhere(&self, ipv4: bool, local_only: bool) -> bool {
        self.get(ipv4, local_only).is_empty() && !self.get(ipv4, false).is_empty()
    }
}

impl DesiredPort {
    /// The port's name, or its number when it has none.
    pub fn label(&self) -> Box<str> {
        label(&self.name, self.port)
    }

    /// The backends that new connections may choose: sorted, without duplicates.
    pub fn serving(&self, ipv4: bool, local_only: bool) -> &[SocketAddr] {
        self.serving.get(ipv4, local_only)
    }
}

fn label(name: &str, port: u16) -> Box<str> {
    if name.is_empty() { port.to_string().into() } else { name.into() }
}

/// What one Service should look like, port by port.
#[expect(clippy::needless_pass_by_value, reason = "an iterator is cloned, once for each port")]
pub fn desired<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &Node,
) -> Vec<DesiredPort> {
    service
        .ports
        .iter()
        .map(|port| {
            let mut left_out = 0;
            let endpoints = endpoints(service, port, slices.clone(), node, |_| left_out += 1);
            let serving = serving(service, &endpoints);
            let direct = direct_return(service, &endpoints, node);
            DesiredPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port,
                backends: endpoints
                    .into_iter()
                    .map(|(address, Candidate { endpoint, .. })| {
                        let serving = endpoint.serving || endpoint.ready || service.publish_not_ready;
                        let far = Some(endpoint.node).filter(|_| !endpoint.local);
                        let node = far.and_then(|far| node.peer(far, address.is_ipv4()));
                        (address, Listed { local: endpoint.local, node, serving })
                    })
                    .collect(),
                left_out,
                frontends: frontends(service, port, node, &serving, direct),
                source_ranges: source_ranges(service),
                affinity_timeout_s: service.affinity_timeout_s,
                serving,
            }
        })
        .collect()
}

/// Ranges that somebody asks for.
fn source_ranges(service: &Service) -> BTreeSet<Cidr> {
    let asked = service.source_ranges.as_ref().filter(|_| !service.load_balancer_ips.is_empty());
    asked.cloned().unwrap_or_default()
}

/// Flags of the load balancer's frontends. As in kube-proxy's nftables mode (chain `firewall-check`) the ranges bind
/// clients inside as well, and nothing but the load balancer's addresses. Where ranges of one family only are given,
/// kube-proxy serves the other family to everyone; here the ranges are all that is admitted.
fn restriction(service: &Service, address: IpAddr, scope: Scope, node_addresses: &[IpAddr]) -> u32 {
    let Some(ranges) = &service.source_ranges else { return 0 };
    let of_node = || node_addresses.iter().filter(|node| node.is_ipv4() == address.is_ipv4());
    let admitted = of_node().any(|node| ranges.iter().any(|range| range.contains(*node)));
    if scope == Scope::INTERNAL && admitted {
        Frontend::FLAG_SOURCE_RANGES | Frontend::FLAG_NODE_IN_RANGE
    } else {
        Frontend::FLAG_SOURCE_RANGES
    }
}

/// Flags of frontends for clients outside, by family (IPv4 first).
///
/// An option asks the backend's node to find the backend among those of its own frontend. Hints let nodes of two zones choose
/// from different ones, so that a service with any goes through tunnels, whose ends need not agree.
fn direct_return(service: &Service, endpoints: &BTreeMap<SocketAddr, Candidate>, node: &Node) -> [u32; 2] {
    let tunnel = Frontend::FLAG_DIRECT_RETURN;
    match service.forwarding.unwrap_or(node.forwarding) {
        ForwardingMode::Snat => [0, 0],
        ForwardingMode::Dsr => [tunnel, tunnel],
        ForwardingMode::DsrOption if endpoints.values().any(|it| it.endpoint.zones != 0) => [tunnel, tunnel],
        ForwardingMode::DsrOption => [tunnel | Frontend::FLAG_OPTION, tunnel],
    }
}

fn frontends(
    service: &Service,
    port: &ServicePort,
    node: &Node,
    serving: &Serving,
    direct: [u32; 2],
) -> Vec<DesiredFrontend> {
    let node_addresses = &node.addresses;
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    let mut add = |address: IpAddr, number: u16, scope: Scope, local_only: bool, flags: u32| {
        let address = FrontendAddress::new(address, number, port.protocol, scope);
        if seen.insert(address) {
            let policy = if local_only { Frontend::FLAG_LOCAL_POLICY } else { 0 };
            let elsewhere = if serving.only_elsewhere(address.address.is_ipv4(), local_only) {
                Frontend::FLAG_SERVED_ELSEWHERE
            } else {
                0
            };
            let direct =
                if scope == Scope::EXTERNAL { direct[usize::from(!address.address.is_ipv4())] } else { 0 };
            all.push(DesiredFrontend { address, local_only, flags: flags | policy | elsewhere | direct });
        }
    };
    for address in &service.cluster_ips {
        add(*address, port.port, Scope::INTERNAL, service.internal_local, Frontend::FLAG_CLUSTER_IP);
    }
    // Before the external IPs: an address that is both stays restricted.
    for address in &service.load_balancer_ips {
        let restriction = |scope| restriction(service, *address, scope, node_addresses);
        let (outside, inside) = (restriction(Scope::EXTERNAL), restriction(Scope::INTERNAL));
        add(*address, port.port, Scope::EXTERNAL, service.external_local, outside);
        add(*address, port.port, Scope::INTERNAL, false, inside);
    }
    for address in &service.external_ips {
        add(*address, port.port, Scope::EXTERNAL, service.external_local, 0);
        add(*address, port.port, Scope::INTERNAL, false, 0);
    }
    if let Some(node_port) = port.node_port {
        let families = |ipv4: bool| service.cluster_ips.iter().any(|address| address.is_ipv4() == ipv4);
        for address in node_addresses.iter().filter(|address| families(address.is_ipv4())) {
            add(*address, node_port, Scope::EXTERNAL, service.external_local, Frontend::FLAG_NODE_PORT);
            add(*address, node_port, Scope::INTERNAL, false, Frontend::FLAG_NODE_PORT);
        }
    }
    all
}

#[cfg(test)]
mod tests;
