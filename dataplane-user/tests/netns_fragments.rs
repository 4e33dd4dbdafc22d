//! Datagrams that are longer than their links carry in one piece, both ways through services.

mod node;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use node::{
    NODE_ADDRESS, TestNode,
    echo::{LONGEST_DATAGRAM, PATIENCE, echo_at, echo_pod},
};
use weir_tests::Namespace;

/// Six fragments on a link of 1500 bytes.
const LENGTH: usize = 8_192;

/// A pod on another node.
const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 8, 5);

/// How many packets a namespace has put together from fragments.
fn reassembled(namespace: &Namespace) -> u64 {
    let text = namespace.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "ReasmOKs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Twelve long datagrams to an echo and back, some from one socket, as an opening flow and as an established one. How many
/// packets the client has put together from fragments.
fn converse(from: &Namespace, to: SocketAddr, name: &str) -> u64 {
    let before = reassembled(from);
    for round in 0..3_u8 {
        from.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            for datagram in 0..4_u8 {
                let sent: Vec<u8> = (0..LENGTH)
                    .map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8 ^ round << 4 ^ datagram)
                    .collect();
                socket.send_to(&sent, to).unwrap();
                let mut bytes = vec![0; LONGEST_DATAGRAM];
                let (length, peer) = socket
                    .recv_from(&mut bytes)
                    .unwrap_or_else(|error| panic!("datagram {datagram} of round {round} to {to}: {error}"));
                assert_eq!(peer, to);
                assert!(bytes[..length] == [name.as_bytes(), &sent].concat()[..], "it came back changed");
            }
        });
    }
    reassembled(from) - before
}

#[test]
fn a_pod_talks_to_a_pod_through_a_cluster_ip() {
    let mut node = TestNode::new(false);
    let (a, a_address) = echo_pod(&node, "a");
    let (b, b_address) = echo_pod(&node, "b");
    node.serve(1, &[b_address]);
    node.serve(2, &[a_address]);
    assert_eq!(converse(&a, ([10, 96, 0, 1], 80).into(), "b"), 12, "every answer came in fragments");
    assert_eq!(reassembled(&b), 12, "every question came in fragments");
    // Through its own service, by way of the node's address.
    assert_eq!(converse(&a, ([10, 96, 0, 2], 80).into(), "a"), 24, "all came in fragments");
}

#[test]
fn a_client_outside_talks_to_a_pod_of_this_node() {
    let mut node = TestNode::new(false);
    let (a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let answers = converse(&node.client, (NODE_ADDRESS, 30_001).into(), "a");
    assert_eq!(answers, 12, "every answer came in fragments");
    assert_eq!(reassembled(&a), 12, "every question came in fragments");
}

#[test]
fn a_client_outside_talks_to_a_pod_of_another_node() {
    let mut node = TestNode::new(false);
    let far = node.add_far_node(FAR_POD);
    echo_at(&far, FAR_POD, "f");
    node.serve_on("elsewhere", 1, &[FAR_POD]);
    let answers = converse(&node.client, (NODE_ADDRESS, 30_001).into(), "f");
    assert_eq!(answers, 12, "every answer came in fragments");
    assert_eq!(reassembled(&far), 12, "every question came in fragments");
}
