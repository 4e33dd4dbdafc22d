//! Damage to the pinned maps while an agent runs: seen, told, and repaired.

mod node;

use std::net::{Ipv4Addr, SocketAddr};

use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, tcp, udp},
};
use serde_json::json;
use weir_dataplane::{kernel::maps::Maps, plan::model::protocol_name};
use weir_dataplane_ebpf::{
    Backend, Be16, Flow, Frontend, FrontendKey, Ip4, Protocol, Scope, node_port_index,
};

const NODE_PORT: (Ipv4Addr, u16) = (NODE_ADDRESS, 30_001);

/// A node whose service 1 has a backend, a node port and source ranges.
fn node() -> (TestNode, weir_tests::Namespace, Ipv4Addr) {
    let mut node = TestNode::new(false);
    let (pod, address) = echo_pod(&node, "a");
    let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    node.serve_with(1, &[address], &spec, &status);
    node.client.ip("route add 198.51.100.1 via 192.0.2.1").unwrap();
    (node, pod, address)
}

/// The frontend of service 1's node port, TCP.
fn frontend(maps: &Maps) -> (FrontendKey<Ip4>, Frontend) {
    let key = FrontendKey {
        address: Ip4::from(NODE_PORT.0),
        port: Be16::new(NODE_PORT.1),
        protocol: Protocol::TCP,
        scope: Scope::EXTERNAL,
    };
    (key, maps.v4.frontends.get(&key).unwrap().expect("it is served"))
}

/// Damages the maps, and expects one complaint that names the service and what it is about, a repair, and service.
fn damage(node: &mut TestNode, what: &str, expected: &str, harm: impl FnOnce(&Maps)) {
    assert_eq!(node.check(), Vec::<String>::new(), "{what}: all is well before");
    harm(&Maps::open(&node.paths()).unwrap());
    let complaints = node.check();
    assert_eq!(complaints.len(), 1, "{what}: one for the service: {complaints:?}");
    assert!(
        complaints[0].starts_with("default/s1: ") && complaints[0].contains(expected),
        "{what}: {complaints:?}"
    );
    assert_eq!(node.sync(), Vec::<String>::new(), "{what}: nothing else is wrong with it");
    for to in [NODE_PORT.into(), SocketAddr::from(([198, 51, 100, 1], 80))] {
        assert_eq!(tcp(&node.client, to).unwrap(), "a hello", "{what}: {to}");
    }
    assert_eq!(node.check(), Vec::<String>::new(), "{what}: all is well again");
}

#[test]
fn damaged_maps_are_told_of_and_repaired() {
    let (mut node, _pod, address) = node();
    damage(&mut node, "a frontend is gone", "192.0.2.1:30001 (frontend)", |maps| {
        maps.v4.frontends.remove(&[frontend(maps).0]).unwrap();
    });
    damage(&mut node, "a frontend has no backend", "192.0.2.1:30001 (frontend)", |maps| {
        let (key, value) = frontend(maps);
        maps.v4.frontends.write(&[key], &[Frontend { backends: 0, ..value }]).unwrap();
    });
    damage(&mut node, "a frontend points elsewhere", "192.0.2.1:30001 (frontend)", |maps| {
        let (key, value) = frontend(maps);
        maps.v4.frontends.write(&[key], &[Frontend { maglev_offset: 1 << 20, ..value }]).unwrap();
    });
    damage(&mut node, "nobody's frontend", "192.0.2.1:31999 (frontend)", |maps| {
        let (key, value) = frontend(maps);
        maps.v4.frontends.write(&[FrontendKey { port: Be16::new(31_999), ..key }], &[value]).unwrap();
    });
    let backend = format!("{address}:8080");
    damage(&mut node, "a backend is gone", &format!("{backend} (backend)"), |maps| {
        let id = maps.maglev.at(frontend(maps).1.maglev_offset).unwrap();
        maps.v4.backends.write(&[id], &[Backend::default()]).unwrap();
    });
    damage(&mut node, "a backend is another", &format!("{backend} (backend)"), |maps| {
        let id = maps.maglev.at(frontend(maps).1.maglev_offset).unwrap();
        let there = maps.v4.backends.at(id).unwrap();
        maps.v4.backends.write(&[id], &[Backend { port: Be16::new(1), ..there }]).unwrap();
    });
    damage(&mut node, "a table holds another id", "(table)", |maps| {
        maps.maglev.write(&[frontend(maps).1.maglev_offset], &[77]).unwrap();
    });
    damage(&mut node, "the filter hides the service", "(filter)", |maps| {
        let indexes: Vec<u32> = maps.filter.entries().unwrap().into_iter().map(|(index, _)| index).collect();
        maps.filter.write(&indexes, &vec![0; indexes.len()]).unwrap();
    });
    damage(&mut node, "a node port has no guard", "port 30001/tcp of the node (node-port)", |maps| {
        let index = node_port_index(Protocol::TCP, Be16::new(NODE_PORT.1)).expect("TCP has guards");
        maps.node_ports.write(&[index], &[0]).unwrap();
    });
    damage(&mut node, "a cluster IP is not known", "cluster IP 10.96.0.1 (cluster-ip)", |maps| {
        let keys: Vec<Ip4> = maps.v4.cluster_ips.entries().unwrap().into_iter().map(|(key, _)| key).collect();
        maps.v4.cluster_ips.remove(&keys).unwrap();
    });
    damage(&mut node, "a source range is gone", "source range 192.0.2.0/24 (source-range)", |maps| {
        let keys: Vec<_> = maps.v4.source_ranges.entries().unwrap().into_iter().map(|(key, _)| key).collect();
        maps.v4.source_ranges.remove(&keys).unwrap();
    });
}

#[test]
fn an_address_that_no_service_has_is_no_cluster_ip_for_long() {
    let (mut node, _pod, _) = node();
    let maps = node.maps();
    let stranger = Ip4::from(Ipv4Addr::new(10, 96, 0, 99));
    maps.v4.cluster_ips.write(&[stranger], &[0]).unwrap();
    assert_eq!(node.check(), Vec::<String>::new(), "there is no object to tell");
    node.sync();
    assert_eq!(maps.v4.cluster_ips.get(&stranger).unwrap(), None);
    assert_eq!(maps.v4.cluster_ips.entries().unwrap().len(), 1, "service 1 has one still");
}

#[test]
fn what_the_maps_have_no_room_for_is_no_damage() {
    let (mut node, _pod, address) = node();
    let ports = json!([{"name": "s", "port": 80, "protocol": "SCTP", "nodePort": 30_009}]);
    node.serve_with(9, &[address], &json!({"ports": ports}), &json!({}));
    assert_eq!(node.check(), Vec::<String>::new());
}

#[test]
fn a_flow_whose_answers_are_another_flows_is_told_of_and_opened_anew() {
    let (mut node, _pod, _) = node();
    assert_eq!(udp(&node.client, NODE_PORT.into()).unwrap().0, "a hello");
    damage(&mut node, "the answers go to another port", "(flow-half)", |maps| {
        let flows = maps.v4.flows.entries().unwrap().into_iter();
        let mut answers = flows.filter(|(key, flow)| {
            flow.flags & Flow::<Ip4>::FLAG_REPLY != 0 && protocol_name(key.protocol) == "udp"
        });
        let (key, flow) = answers.next().expect("both sides have spoken");
        maps.v4.flows.write(&[key], &[Flow { destination_port: Be16::new(9), ..flow }]).unwrap();
    });
    assert_eq!(udp(&node.client, NODE_PORT.into()).unwrap().0, "a hello");
}
