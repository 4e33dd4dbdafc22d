//! From a Pod's `hostPort`s to frontends whose only backend is that Pod. Pure.
//!
//! They are like `NodePort`s with one endpoint, on this node: clients outside keep their address, and processes and pods of
//! the node reach them as well. Where two want one port the Service has it before a Pod, and of two Pods the first: the
//! scheduler places no two of them on one node, but nothing else forbids it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use weir_dataplane_ebpf::{Frontend, Protocol, Scope};

use super::{
    desired::{DesiredFrontend, DesiredPort, Judged, Listed, Serving, Verdict},
    model::{FrontendAddress, HostPort, HostPorts, Node},
};

/// What a Pod's host ports should look like, one entry for each pair of host port and container port.
pub fn host_ports(pod: &HostPorts, node: &Node) -> Vec<DesiredPort> {
    let mut ports = BTreeMap::<(u8, u16, u16), Vec<DesiredFrontend>>::new();
    let mut seen = BTreeSet::new();
    // Those with an address of their own first: all addresses means those that are left.
    let (some, all): (Vec<HostPort>, Vec<HostPort>) =
        pod.ports.iter().copied().partition(|port| port.address.is_some());
    for port in some.into_iter().chain(all) {
        let frontends = ports.entry((port.protocol, port.port, port.container_port)).or_default();
        let addresses = port.address.as_ref().map_or(node.addresses.as_slice(), std::slice::from_ref);
        let of_family = |ipv4| pod.addresses.iter().any(|address| address.is_ipv4() == ipv4);
        for address in addresses.iter().filter(|address| of_family(address.is_ipv4())) {
            for scope in [Scope::EXTERNAL, Scope::INTERNAL] {
                let address = FrontendAddress::new(*address, port.port, Protocol(port.protocol), scope);
                if seen.insert(address) {
                    let flags = Frontend::FLAG_NODE_PORT;
                    frontends.push(DesiredFrontend { address, local_only: false, flags });
                }
            }
        }
    }
    let desired = ports.into_iter().map(|((protocol, port, container_port), frontends)| {
        let backends: BTreeSet<SocketAddr> =
            pod.addresses.iter().map(|address| SocketAddr::new(*address, container_port)).collect();
        DesiredPort {
            name: format!("{port}:{container_port}").into(),
            protocol: Protocol(protocol),
            port,
            serving: Serving::of(&backends),
            backends: backends
                .into_iter()
                .map(|address| (address, Listed { local: true, node: None, serving: true }))
                .collect(),
            left_out: 0,
            frontends,
            source_ranges: BTreeSet::new(),
            affinity_timeout_s: 0,
        }
    });
    desired.collect()
}

/// What becomes of a Pod's addresses at the host port that has this label and protocol. Nothing without such a port.
pub fn judge(pod: &HostPorts, node: &Node, (label, protocol): (&str, u8), ipv4: bool) -> Option<Vec<Judged>> {
    let mut ports = host_ports(pod, node).into_iter();
    let port = ports.find(|port| port.protocol.0 == protocol && *port.label() == *label)?;
    let judged = port.backends.into_keys().map(|address| Judged {
        address,
        verdict: if address.is_ipv4() == ipv4 { Verdict::Ready } else { Verdict::OtherFamily },
        listed: 1,
    });
    Some(judged.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: Option<&str>, port: u16, protocol: Protocol, container_port: u16) -> HostPort {
        let address = address.map(|address| address.parse().unwrap());
        HostPort { address, port, protocol: protocol.0, container_port }
    }

    fn rows(addresses: &[&str], ports: &[HostPort]) -> Vec<String> {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let pod = HostPorts { addresses, ports: ports.to_vec() };
        let node = Node {
            addresses: vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            zone: None,
            ..Node::default()
        };
        let mut rows = Vec::new();
        for port in host_ports(&pod, &node) {
            for frontend in &port.frontends {
                let ipv4 = frontend.address.address.is_ipv4();
                assert_eq!(port.serving(ipv4, false), port.serving(ipv4, true));
                assert!(port.serving(ipv4, false).iter().all(|backend| port.backends[backend].local));
                let scope = frontend.address.scope;
                rows.push(format!("{} scope={scope} to {:?}", frontend.address, port.serving(ipv4, false)));
            }
        }
        rows
    }

    #[test]
    fn a_host_port_is_served_on_node_addresses_of_the_pods_families() {
        let http = [port(None, 8080, Protocol::TCP, 80)];
        assert_eq!(
            rows(&["10.244.0.2"], &http),
            [
                "tcp://192.0.2.1:8080 scope=0 to [10.244.0.2:80]",
                "tcp://192.0.2.1:8080 scope=1 to [10.244.0.2:80]"
            ]
        );
        assert_eq!(rows(&["10.244.0.2", "fd00:244::2"], &http).len(), 4, "dual-stack");
        assert_eq!(rows(&[], &http), [""; 0], "no address yet");
        let both = [http[0], port(None, 8080, Protocol::UDP, 53)];
        assert_eq!(rows(&["10.244.0.2"], &both)[2], "udp://192.0.2.1:8080 scope=0 to [10.244.0.2:53]");
    }

    #[test]
    fn an_address_of_its_own_comes_before_all_addresses() {
        let ports = [
            port(None, 53, Protocol::UDP, 1053),
            port(Some("192.0.2.1"), 53, Protocol::UDP, 2053),
            port(Some("192.0.2.9"), 53, Protocol::UDP, 2053),
        ];
        assert_eq!(
            rows(&["10.244.0.2", "fd00:244::2"], &ports),
            [
                "udp://[fd00::1]:53 scope=0 to [[fd00:244::2]:1053]",
                "udp://[fd00::1]:53 scope=1 to [[fd00:244::2]:1053]",
                "udp://192.0.2.1:53 scope=0 to [10.244.0.2:2053]",
                "udp://192.0.2.1:53 scope=1 to [10.244.0.2:2053]",
                "udp://192.0.2.9:53 scope=0 to [10.244.0.2:2053]",
                "udp://192.0.2.9:53 scope=1 to [10.244.0.2:2053]",
            ]
        );
    }
}
