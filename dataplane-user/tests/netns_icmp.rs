//! ICMP errors over real links: senders on both sides of a service hear what the network says about their packets.

mod node;

use std::{io::ErrorKind, net::SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo, echo_pod},
    far::{FAR, Far, error, transfer},
};

fn node_port(n: u16) -> SocketAddr {
    (NODE_ADDRESS, 30_000 + n).into()
}

fn cluster_ip(n: u8) -> SocketAddr {
    ([10, 96, 0, n], 80).into()
}

#[test]
fn a_path_mtu_is_found_through_a_node_port() {
    let mut node = TestNode::new(false);
    let far = Far::with_way_to_pods(&node);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    transfer(&far.host, node_port(1)).unwrap();
}

#[test]
fn a_path_mtu_is_found_through_a_cluster_ip() {
    let mut node = TestNode::new(false);
    let far = Far::with_way_to_pods(&node);
    echo(&far.host, "f");
    let (pod, _) = node.add_pod("pod");
    node.serve(1, &[FAR]);
    transfer(&pod, cluster_ip(1)).unwrap();
}

#[test]
fn a_pods_closed_port_is_the_services() {
    let mut node = TestNode::new(false);
    let (_deaf, address) = node.add_pod("deaf");
    let (pod, _) = node.add_pod("pod");
    node.serve(1, &[address]);
    assert_eq!(error(&node.client, node_port(1), |_| {}), ErrorKind::ConnectionRefused);
    assert_eq!(error(&pod, cluster_ip(1), |_| {}), ErrorKind::ConnectionRefused);
}

#[test]
fn a_hop_on_the_way_to_a_backend_can_be_traced() {
    let mut node = TestNode::new(false);
    let _far = Far::with_way_to_pods(&node);
    let (pod, _) = node.add_pod("pod");
    node.serve(1, &[FAR]);
    let heard = error(&pod, cluster_ip(1), |socket| {
        // The node is the first hop, a router the second.
        socket.set_ttl(2).unwrap();
        setsockopt(socket, sockopt::Ipv4RecvErr, &true).unwrap();
    });
    assert_eq!(heard, ErrorKind::HostUnreachable);
}
