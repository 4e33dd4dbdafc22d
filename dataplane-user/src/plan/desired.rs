//! From one Service and its endpoints to the frontends and backends that should exist. Pure.
//!
//! Which endpoints serve follows KEP-1669 (ready ones; if there is none, those that still serve while they terminate)
//! and KEP-2086 (traffic policies); scopes follow kube-proxy: a policy for external traffic never binds clients inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::{Frontend, Protocol, Scope};

use super::model::{Endpoint, FrontendAddress, Service, ServicePort, Slice};

/// Everything of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    /// The port's name, empty for an only port.
    pub name: Box<str>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port's number on service addresses.
    pub port: u16,
    /// Every endpoint that exists, with whether it is on this node. One that does not serve any more still keeps its
    /// established connections.
    pub backends: BTreeMap<SocketAddr, bool>,
    /// The frontends.
    pub frontends: Vec<DesiredFrontend>,
    /// Session affinity's timeout in seconds, 0 without.
    pub affinity_timeout_s: u32,
    serving: Serving,
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
struct Serving([[Vec<SocketAddr>; 2]; 2]);

impl Serving {
    fn get(&self, ipv4: bool, local_only: bool) -> &[SocketAddr] {
        &self.0[usize::from(!ipv4)][usize::from(local_only)]
    }

    /// Whether the policy leaves nothing of what there is.
    fn only_elsewhere(&self, ipv4: bool, local_only: bool) -> bool {
        self.get(ipv4, local_only).is_empty() && !self.get(ipv4, false).is_empty()
    }
}

impl DesiredPort {
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
    node_addresses: &[IpAddr],
) -> Vec<DesiredPort> {
    service
        .ports
        .iter()
        .map(|port| {
            let endpoints = endpoints(port, slices.clone());
            let serving = serving(service, &endpoints);
            DesiredPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port,
                backends: endpoints
                    .into_iter()
                    .map(|(address, endpoint)| (address, endpoint.local))
                    .collect(),
                frontends: frontends(service, port, node_addresses, &serving),
                affinity_timeout_s: service.affinity_timeout_s,
                serving,
            }
        })
        .collect()
}

/// The endpoints of one port from all slices. One that is in several slices is as well as its best entry.
fn endpoints<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
) -> BTreeMap<SocketAddr, Endpoint> {
    let mut all = BTreeMap::<SocketAddr, Endpoint>::new();
    for slice in slices {
        let of_port = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in of_port.map(|p| p.port) {
            for endpoint in &slice.endpoints {
                all.entry(SocketAddr::new(endpoint.address, number))
                    .and_modify(|known| {
                        known.ready |= endpoint.ready;
                        known.serving |= endpoint.serving;
                        known.terminating &= endpoint.terminating;
                        known.local |= endpoint.local;
                    })
                    .or_insert(*endpoint);
            }
        }
    }
    all
}

fn serving(service: &Service, endpoints: &BTreeMap<SocketAddr, Endpoint>) -> Serving {
    let choice = |ipv4: bool, local_only: bool| {
        let candidates =
            || endpoints.iter().filter(move |(a, e)| a.is_ipv4() == ipv4 && (e.local || !local_only));
        let ready = |e: &Endpoint| service.publish_not_ready || e.ready;
        let mut chosen: Vec<SocketAddr> = candidates().filter(|(_, e)| ready(e)).map(|(a, _)| *a).collect();
        if chosen.is_empty() {
            chosen = candidates().filter(|(_, e)| e.serving && e.terminating).map(|(a, _)| *a).collect();
        }
        chosen
    };
    Serving([true, false].map(|ipv4| [false, true].map(|local_only| choice(ipv4, local_only))))
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

    /// `r`eady, `s`erving, `t`erminating, `l`ocal.
    fn slice(endpoints: &[(&str, &str)]) -> Slice {
        let endpoint = |(address, state): &(&str, &str)| Endpoint {
            address: address.parse().unwrap(),
            ready: state.contains('r'),
            serving: state.contains('s'),
            terminating: state.contains('t'),
            local: state.contains('l'),
        };
        Slice {
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::TCP, port: 8080 }],
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }

    fn chosen(service: &Service, slices: &[Slice], local_only: bool) -> Vec<String> {
        let port = &desired(service, slices.iter(), &[])[0];
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

    #[test]
    fn every_existing_endpoint_keeps_its_connections() {
        let port = &desired(&service(), [slice(&[("1.1.1.1", ""), ("1.1.1.2", "rs")])].iter(), &[])[0];
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
            desired(&service, [slice(endpoints)].iter(), &[])[0].frontends[0].flags
        };
        let local = Frontend::FLAG_LOCAL_POLICY;
        assert_eq!(flags(&[]), local, "nobody serves: rejected");
        assert_eq!(flags(&[("1.1.1.1", "")]), local, "nobody serves: rejected");
        assert_eq!(flags(&[("1.1.1.1", "rs")]), local | Frontend::FLAG_SERVED_ELSEWHERE);
        assert_eq!(flags(&[("1.1.1.1", "rs"), ("1.1.1.2", "rsl")]), local, "served here");
    }

    #[test]
    fn policies_bind_the_scope_they_are_for() {
        let service =
            Service { external_local: true, external_ips: vec!["192.0.2.1".parse().unwrap()], ..service() };
        let nodes = ["192.168.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
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
