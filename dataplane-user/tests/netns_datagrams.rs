//! Datagram flows whose endpoint goes from their service, and not from the node: clients that keep their port, over real links.

mod node;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use node::{
    NODE_ADDRESS, TestNode,
    echo::{PATIENCE, echo_pod},
};
use serde_json::{Value, json};
use weir_dataplane_ebpf::Flow;
use weir_tests::Namespace;

/// A client that keeps its port.
struct Client(UdpSocket);

impl Client {
    fn new(namespace: &Namespace) -> Self {
        let socket = namespace.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Who answers: the first letter.
    fn ask(&self, to: SocketAddr) -> char {
        let mut answer = [0; 64];
        self.0.send_to(b" hello", to).unwrap();
        let (_, from) = self.0.recv_from(&mut answer).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(from, to);
        char::from(answer[0])
    }
}

fn cluster_ip(n: u8) -> SocketAddr {
    ([10, 96, 0, n], 80).into()
}

fn node_port(n: u8) -> SocketAddr {
    (NODE_ADDRESS, 30_000 + u16::from(n)).into()
}

/// Entries of flows between clients and a backend, and how many packets they saw.
fn entries(node: &TestNode, backend: Ipv4Addr) -> Vec<u64> {
    let maps = node.maps();
    let all = [maps.v4.flows.entries().unwrap(), maps.v4.opening.entries().unwrap()].concat();
    let of_backend = |key: Ipv4Addr, flow: &Flow<_>| {
        let reply = flow.flags & Flow::<()>::FLAG_REPLY != 0;
        if reply { key == backend } else { Ipv4Addr::from(flow.destination) == backend }
    };
    let rows = all.iter().filter(|(key, flow)| of_backend(key.source.into(), flow));
    rows.map(|(_, flow)| flow.packets).collect()
}

#[test]
fn a_client_leaves_the_endpoint_that_its_service_lost_and_no_other() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let (pod, _) = node.add_pod("client");
    node.serve(1, &[a]);
    // The same endpoint of another service, which goes on.
    node.serve(2, &[a]);
    let (inside, outside) = (Client::new(&pod), Client::new(&node.client));
    let others = [(Client::new(&pod), cluster_ip(2)), (Client::new(&node.client), node_port(2))];
    let served = |of_first: char| {
        assert_eq!([inside.ask(cluster_ip(1)), outside.ask(node_port(1))], [of_first; 2]);
        for (other, to) in &others {
            assert_eq!(other.ask(*to), 'a');
        }
    };
    served('a');
    assert_eq!(node.forget(), 0, "nothing has gone");
    assert_eq!(entries(&node, a), [1; 8]);

    node.serve(1, &[b]);
    assert_eq!(node.forget(), 4, "both halves of both clients' flows");
    assert_eq!(entries(&node, a), [1; 4]);
    served('b');
    assert_eq!(
        (entries(&node, a), entries(&node, b)),
        (vec![2; 4], vec![1; 4]),
        "the others are the same flows"
    );

    node.serve(1, &[b, a]);
    assert_eq!(node.forget(), 0, "one more is no loss");
    served('b');

    // A service that goes altogether.
    node.serve_with(2, &[a], &json!({"ports": [{"name": "t", "port": 80}]}), &json!({}));
    assert_eq!(node.forget(), 4);
    assert_eq!(entries(&node, a), Vec::<u64>::new());
}

#[test]
fn an_endpoint_that_serves_while_it_ends_keeps_its_clients() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    node.serve(1, &[a]);
    node.serve(2, &[a]);
    let client = Client::new(&node.client);
    assert_eq!(client.ask(node_port(1)), 'a');
    let mut conditions = |of_a: &Value| {
        node.serve_conditions(1, &[(a, of_a), (b, &json!({}))]);
        node.forget();
        [client.ask(node_port(1)), Client::new(&node.client).ask(node_port(1))]
    };
    assert_eq!(conditions(&json!({"ready": false, "serving": true, "terminating": true})), ['a', 'b']);
    assert_eq!(conditions(&json!({"ready": false, "serving": false, "terminating": true})), ['b', 'b']);
}

#[test]
fn what_went_while_no_agent_ran_is_seen_by_the_next() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    node.serve(1, &[a]);
    node.serve(2, &[a]);
    let client = Client::new(&node.client);
    assert_eq!(client.ask(node_port(1)), 'a');
    node.kill();
    node.ask_for(1, &[b]);
    assert_eq!(client.ask(node_port(1)), 'a');
    node.start();
    assert_eq!(node.forget(), 2);
    assert_eq!(client.ask(node_port(1)), 'b');
}
