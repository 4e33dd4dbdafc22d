//! From one Service and its endpoints to the frontends and backends that should exist. Pure.
//!
//! Which endpoints serve follows KEP-1669 (ready ones; if there is none, those that still serve while they terminate)
//! and KEP-2086 (traffic policies); scopes follow kube-proxy: a policy for external traffic never binds clients inside.
//! Hints for zones ([`super::topology`]) narrow the ready ones, and only where no policy does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::{Frontend, Protocol, Scope, maps};

use super::{
    model::{Endpoint, FrontendAddress, Node, Service, ServicePort, Slice},
    topology::{self, Hint},
};
use crate::cidr::Cidr;

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
        if self.name.is_empty() { self.port.to_string().into() } else { self.name.clone() }
    }

    /// The backends that new connections may choose: sorted, without duplicates.
    pub fn serving(&self, ipv4: bool, local_only: bool) -> &[SocketAddr] {
        self.serving.get(ipv4, local_only)
    }
}

/// What one Service should look like, port by port.
#[expect(clippy::needless_pass_by_value, reason = "an iterator is cloned, once for each port")]
pub fn desired<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &Node,
) -> Vec<DesiredPort> {
    let room = MAX_ENDPOINTS / service.ports.len().max(1);
    service
        .ports
        .iter()
        .map(|port| {
            let (endpoints, left_out) = endpoints(port, slices.clone(), node.zone.as_deref(), room);
            let serving = serving(service, &endpoints);
            DesiredPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port,
                backends: endpoints
                    .into_iter()
                    .map(|(address, Candidate { endpoint, .. })| {
                        let serving = endpoint.serving || endpoint.ready || service.publish_not_ready;
                        (address, Listed { local: endpoint.local, serving })
                    })
                    .collect(),
                left_out,
                frontends: frontends(service, port, &node.addresses, &serving),
                source_ranges: source_ranges(service),
                affinity_timeout_s: service.affinity_timeout_s,
                serving,
            }
        })
        .collect()
}

/// An endpoint that may serve.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    endpoint: Endpoint,
    hint: Hint,
}

/// The endpoints of one port from all slices, and how many had no room. One that is in several slices, as while it moves
/// between two, is as well as its best entry.
fn endpoints<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    zone: Option<&str>,
    room: usize,
) -> (BTreeMap<SocketAddr, Candidate>, usize) {
    let mut left_out = 0;
    let mut all = BTreeMap::<SocketAddr, Candidate>::new();
    for slice in slices {
        let of_port = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in of_port.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, number);
                if all.len() >= room && !all.contains_key(&address) {
                    left_out += 1;
                    continue;
                }
                let hint = Hint::of(slice, endpoint, zone);
                all.entry(address)
                    .and_modify(|Candidate { endpoint: known, hint: known_hint }| {
                        known.ready |= endpoint.ready;
                        known.serving |= endpoint.serving;
                        known.terminating &= endpoint.terminating;
                        known.local |= endpoint.local;
                        *known_hint = hint.max(*known_hint);
                    })
                    .or_insert(Candidate { endpoint: *endpoint, hint });
            }
        }
    }
    (all, left_out)
}

fn serving(service: &Service, endpoints: &BTreeMap<SocketAddr, Candidate>) -> Serving {
    let choice = |ipv4: bool, local_only: bool| {
        let candidates = || {
            let of_family = endpoints.iter().filter(move |(address, _)| address.is_ipv4() == ipv4);
            of_family.filter(move |(_, c)| c.endpoint.local || !local_only)
        };
        let ready = || candidates().filter(|(_, c)| service.publish_not_ready || c.endpoint.ready);
        let near = !local_only && topology::applies(ready().map(|(_, c)| c.hint));
        let mut chosen: Vec<SocketAddr> =
            ready().filter(|(_, c)| !near || c.hint == Hint::Here).map(|(address, _)| *address).collect();
        if chosen.is_empty() {
            let leaving = candidates().filter(|(_, c)| c.endpoint.serving && c.endpoint.terminating);
            chosen = leaving.map(|(address, _)| *address).collect();
        }
        chosen
    };
    Serving([true, false].map(|ipv4| [false, true].map(|local_only| choice(ipv4, local_only))))
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

fn frontends(
    service: &Service,
    port: &ServicePort,
    node_addresses: &[IpAddr],
    serving: &Serving,
) -> Vec<DesiredFrontend> {
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
            all.push(DesiredFrontend { address, local_only, flags: flags | policy | elsewhere });
        }
    };
    for address in &service.cluster_ips {
        add(*address, port.port, Scope::INTERNAL, service.internal_local, 0);
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
mod tests {
    use super::*;
    use crate::plan::model::SlicePort;

    fn service() -> Service {
        let port =
            ServicePort { name: "http".into(), protocol: Protocol::TCP, port: 80, node_port: Some(30080) };
        Service { cluster_ips: vec!["10.96.0.1".parse().unwrap()], ports: vec![port], ..Service::default() }
    }

    /// `r`eady, `s`erving, `t`erminating, `l`ocal; with hints for zones `a` and `b`.
    fn slice(endpoints: &[(&str, &str)]) -> Slice {
        let endpoint = |(address, state): &(&str, &str)| Endpoint {
            address: address.parse().unwrap(),
            ready: state.contains('r'),
            serving: state.contains('s'),
            terminating: state.contains('t'),
            local: state.contains('l'),
            zones: u64::from(state.contains('a')) | u64::from(state.contains('b')) << 1,
        };
        Slice {
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::TCP, port: 8080 }],
            endpoints: endpoints.iter().map(endpoint).collect(),
            zones: vec!["zone-a".into(), "zone-b".into()],
        }
    }

    fn chosen(service: &Service, slices: &[Slice], local_only: bool) -> Vec<String> {
        chosen_in(None, service, slices, local_only)
    }

    fn chosen_in(zone: Option<&str>, service: &Service, slices: &[Slice], local_only: bool) -> Vec<String> {
        let node = Node { zone: zone.map(Into::into), ..Node::default() };
        let port = &desired(service, slices.iter(), &node)[0];
        port.serving(true, local_only).iter().map(|a| a.ip().to_string()).collect()
    }

    #[test]
    fn ready_endpoints_serve_then_terminating_ones_then_none() {
        /// Endpoints, and who serves for the policies Cluster and Local.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

        let cases: &[Case<'_>] = &[
            (&[("1.1.1.1", "rs"), ("1.1.1.2", "rsl")], &["1.1.1.1", "1.1.1.2"], &["1.1.1.2"]),
            (&[("1.1.1.1", "rs"), ("1.1.1.2", "stl")], &["1.1.1.1"], &["1.1.1.2"]),
            (&[("1.1.1.1", "st"), ("1.1.1.2", "t")], &["1.1.1.1"], &[]),
            (&[("1.1.1.1", ""), ("1.1.1.2", "s")], &[], &[]),
        ];
        for (endpoints, cluster, local) in cases {
            let slices = [slice(endpoints)];
            assert_eq!(chosen(&service(), &slices, false), *cluster, "{endpoints:?}");
            assert_eq!(chosen(&service(), &slices, true), *local, "{endpoints:?} on this node");
        }
        let all = Service { publish_not_ready: true, ..service() };
        assert_eq!(chosen(&all, &[slice(&[("1.1.1.1", "")])], false), ["1.1.1.1"]);
    }

    /// The rows of kube-proxy's `TestCategorizeEndpoints` that hints decide.
    #[test]
    fn hints_narrow_ready_endpoints_where_no_policy_does() {
        /// What it is about, the node's zone, endpoints, and who serves.
        type Row<'a> = (&'a str, Option<&'a str>, &'a [(&'a str, &'a str)], &'a [&'a str]);

        let (a, b, c) = ("1.1.1.1", "1.1.1.2", "1.1.1.3");
        let rows: &[Row<'_>] = &[
            ("this zone's", Some("zone-a"), &[(a, "rsa"), (b, "rsb"), (c, "rsa")], &[a, c]),
            ("the other zone's", Some("zone-b"), &[(a, "rsa"), (b, "rsb"), (c, "rsa")], &[b]),
            ("for both zones", Some("zone-b"), &[(a, "rsab"), (b, "rsb"), (c, "rsa")], &[a, b]),
            ("no hints at all", Some("zone-a"), &[(a, "rs"), (b, "rs")], &[a, b]),
            ("one without", Some("zone-a"), &[(a, "rsa"), (b, "rs")], &[a, b]),
            ("none for this zone", Some("zone-c"), &[(a, "rsa"), (b, "rsb")], &[a, b]),
            ("a node without a zone", None, &[(a, "rsa"), (b, "rsb")], &[a, b]),
            ("unready ones do not count", Some("zone-a"), &[(a, "rsa"), (b, "rsb"), (c, "")], &[a]),
            ("nor do terminating ones", Some("zone-a"), &[(a, "rsa"), (b, "rsb"), (c, "st")], &[a]),
            ("this zone's is not ready", Some("zone-a"), &[(a, "a"), (b, "rsb")], &[b]),
            ("terminating ones from anywhere", Some("zone-a"), &[(a, "sta"), (b, "stb")], &[a, b]),
        ];
        for (row, zone, endpoints, cluster) in rows {
            assert_eq!(chosen_in(*zone, &service(), &[slice(endpoints)], false), *cluster, "{row}");
        }
        let here = [slice(&[(a, "rslb"), (b, "rsa")])];
        assert_eq!(chosen_in(Some("zone-a"), &service(), &here, true), [a], "policy Local");
        let families = [slice(&[(a, "rsa"), (b, "rsb"), ("fd00::1", "rs")])];
        assert_eq!(
            chosen_in(Some("zone-a"), &service(), &families, false),
            [a],
            "each family by its own hints"
        );
        let all = Service { publish_not_ready: true, ..service() };
        assert_eq!(chosen_in(Some("zone-a"), &all, &[slice(&[(a, "a"), (b, "rsb")])], false), [a]);
    }

    #[test]
    fn every_existing_endpoint_keeps_its_connections() {
        let port =
            &desired(&service(), [slice(&[("1.1.1.1", ""), ("1.1.1.2", "rs")])].iter(), &Node::default())[0];
        assert_eq!(port.backends.len(), 2);
    }

    #[test]
    fn slices_add_up_and_duplicates_count_once() {
        let slices = [slice(&[("1.1.1.1", "rs")]), slice(&[("1.1.1.1", "t"), ("1.1.1.2", "rs")])];
        assert_eq!(chosen(&service(), &slices, false), ["1.1.1.1", "1.1.1.2"]);
        let mut other = slice(&[("1.1.1.9", "rs")]);
        other.ports[0].name = "metrics".into();
        assert!(chosen(&service(), &[other.clone()], false).is_empty(), "another port's slice");
        other.ports[0].name = "http".into();
        other.ports[0].protocol = Protocol::UDP;
        assert!(chosen(&service(), &[other], false).is_empty(), "another protocol's slice");
    }

    #[test]
    fn only_endpoints_elsewhere_make_a_silent_drop() {
        let service = Service { internal_local: true, ..service() };
        let flags = |endpoints: &[(&str, &str)]| {
            desired(&service, [slice(endpoints)].iter(), &Node::default())[0].frontends[0].flags
        };
        let local = Frontend::FLAG_LOCAL_POLICY;
        assert_eq!(flags(&[]), local, "nobody serves: rejected");
        assert_eq!(flags(&[("1.1.1.1", "")]), local, "nobody serves: rejected");
        assert_eq!(flags(&[("1.1.1.1", "rs")]), local | Frontend::FLAG_SERVED_ELSEWHERE);
        assert_eq!(flags(&[("1.1.1.1", "rs"), ("1.1.1.2", "rsl")]), local, "served here");
    }

    #[test]
    fn source_ranges_bind_load_balancer_addresses_and_nothing_else() {
        let restricted = |ranges: &[&str]| Service {
            load_balancer_ips: vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
            external_ips: vec!["192.0.2.2".parse().unwrap(), "192.0.2.3".parse().unwrap()],
            source_ranges: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            ..service()
        };
        let nodes = Node { addresses: vec!["192.168.0.1".parse().unwrap()], zone: None };
        let rows = |service: &Service| -> Vec<String> {
            let port = &desired(service, [].iter(), &nodes)[0];
            let rows = port.frontends.iter();
            rows.map(|f| format!("{} scope={} flags={}", f.address, f.address.scope, f.flags)).collect()
        };
        let open = ["tcp://192.0.2.3:80 scope=0 flags=0", "tcp://192.0.2.3:80 scope=1 flags=0"];
        let node_port =
            ["tcp://192.168.0.1:30080 scope=0 flags=2", "tcp://192.168.0.1:30080 scope=1 flags=2"];
        let with = |ranges: &[&str], inside: u32| -> Vec<String> {
            let mut rows = vec!["tcp://10.96.0.1:80 scope=1 flags=0".to_owned()];
            for address in ["192.0.2.1", "192.0.2.2"] {
                rows.push(format!("tcp://{address}:80 scope=0 flags=8"));
                rows.push(format!("tcp://{address}:80 scope=1 flags={inside}"));
            }
            rows.extend(open.iter().chain(&node_port).map(ToString::to_string));
            assert_eq!(desired(&restricted(ranges), [].iter(), &nodes)[0].source_ranges.len(), ranges.len());
            rows
        };
        assert_eq!(rows(&restricted(&["10.0.0.0/8"])), with(&["10.0.0.0/8"], 8));
        let with_node = ["10.0.0.0/8", "192.168.0.0/24"];
        assert_eq!(rows(&restricted(&with_node)), with(&with_node, 24), "the node itself is in a range");
        assert_eq!(rows(&restricted(&[])), with(&[], 8), "nobody is not everyone");
        assert_eq!(rows(&restricted(&["fd00::/8"])), with(&["fd00::/8"], 8), "nor is the other family");

        let unused = Service { load_balancer_ips: Vec::new(), ..restricted(&["10.0.0.0/8"]) };
        assert!(desired(&unused, [].iter(), &nodes)[0].source_ranges.is_empty(), "nobody asks for them");
    }

    #[test]
    fn policies_bind_the_scope_they_are_for() {
        let service =
            Service { external_local: true, external_ips: vec!["192.0.2.1".parse().unwrap()], ..service() };
        let addresses = vec!["192.168.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let nodes = Node { addresses, zone: None };
        let port = &desired(&service, [].iter(), &nodes)[0];
        let rows: Vec<String> = port
            .frontends
            .iter()
            .map(|f| {
                format!("{} scope={} local={} flags={}", f.address, f.address.scope, f.local_only, f.flags)
            })
            .collect();
        assert_eq!(
            rows,
            [
                "tcp://10.96.0.1:80 scope=1 local=false flags=0",
                "tcp://192.0.2.1:80 scope=0 local=true flags=1",
                "tcp://192.0.2.1:80 scope=1 local=false flags=0",
                "tcp://192.168.0.1:30080 scope=0 local=true flags=3",
                "tcp://192.168.0.1:30080 scope=1 local=false flags=2",
            ],
            "a service of one family has no frontends of the other"
        );
    }
}
