//! The guard of node ports: real sockets of this process, in a node's cgroup.

mod node;

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use node::{NODE_ADDRESS, TestNode, echo::echo_pod};
use serde_json::json;
use weir_dataplane::{plan::model::ServiceKey, sockets};
use weir_tests::Namespace;

/// Whether a process may have the port: on TCP, on UDP, or why not.
fn bind(namespace: &Namespace, address: &str, port: u16) -> [Result<(), ErrorKind>; 2] {
    let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
    namespace.inside(|| {
        [
            TcpListener::bind(address).map(drop).map_err(|error| error.kind()),
            UdpSocket::bind(address).map(drop).map_err(|error| error.kind()),
        ]
    })
}

const FREE: [Result<(), ErrorKind>; 2] = [Ok(()), Ok(())];
const TAKEN: [Result<(), ErrorKind>; 2] = [Err(ErrorKind::AddrInUse), Err(ErrorKind::AddrInUse)];

#[test]
fn a_process_of_the_node_cannot_bind_a_node_port() {
    let mut node = TestNode::new(true);
    let (_a, a) = echo_pod(&node, "a");
    let (pod, _) = node.add_pod("other");
    node.serve(1, &[a]);
    let own = NODE_ADDRESS.to_string();
    let entered = node.cgroup.enter().unwrap();
    for address in ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]", &own] {
        assert_eq!(bind(&node.namespace, address, 30_001), TAKEN, "{address}");
    }
    for address in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        assert_eq!(bind(&node.namespace, address, 30_001), FREE, "{address}: loopback is no node address");
    }
    assert_eq!(bind(&node.namespace, "0.0.0.0", 30_002), FREE, "another port");
    assert_eq!(bind(&node.namespace, "0.0.0.0", 0), FREE, "any port");
    assert_eq!(bind(&pod, "0.0.0.0", 30_001), FREE, "a pod has ports of its own");

    node.serve_with(1, &[a], &json!({"ports": [{"name": "t", "port": 80, "nodePort": 30_001}]}), &json!({}));
    assert_eq!(bind(&node.namespace, "0.0.0.0", 30_001), [TAKEN[0], FREE[1]], "each protocol for itself");
    node.kill();
    assert_eq!(bind(&node.namespace, "0.0.0.0", 30_001)[0], TAKEN[0], "the agent is not asked");
    node.start();
    assert_eq!(bind(&node.namespace, "0.0.0.0", 30_001)[0], TAKEN[0], "and the next one adopts it");
    node.serve_with(1, &[a], &json!({"type": "ClusterIP", "ports": [{"name": "t", "port": 80}]}), &json!({}));
    assert_eq!(bind(&node.namespace, "0.0.0.0", 30_001), FREE, "given back");
    drop(entered);
}

#[test]
fn a_port_that_a_process_has_already_is_told() {
    let mut node = TestNode::new(true);
    let (_a, a) = echo_pod(&node, "a");
    let sockets = |address: &'static str| {
        node.namespace
            .inside(move || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()))
    };
    let held = [sockets("0.0.0.0:30001"), sockets("127.0.0.1:30002"), sockets("0.0.0.0:30003")];
    let told = |node: &TestNode| {
        let mut told = node.namespace.inside(|| sockets::in_use(&node.guarded).unwrap());
        told.sort();
        told.iter().map(|(key, in_use)| format!("{key}: {in_use}")).collect::<Vec<_>>()
    };
    node.serve(1, &[a]);
    assert_eq!(node.guarded.len(), 2);
    assert!(node.guarded.iter().all(|(key, _)| *key == ServiceKey::new("default", "s1")));
    assert_eq!(
        told(&node),
        ["tcp", "udp"].map(|protocol| format!(
            "default/s1: port 30001/{protocol} of this node belongs to a process as well, bound to 0.0.0.0:30001, which \
             gets no more clients from outside: end it, or choose another nodePort or hostPort"
        ))
    );
    node.serve(2, &[a]);
    assert_eq!(told(&node), [""; 0], "loopback is no node address");
    node.serve(1, &[]);
    assert!(node.guarded.is_empty(), "told once");
    drop(held);
}
