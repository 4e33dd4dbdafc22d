//! Which endpoints clients get: traffic policies, endpoints that end, zones. Over real links.

mod node;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use kube::runtime::watcher::Event;
use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, mirror_pod, tcp},
};
use serde_json::{Value, json};
use weir_dataplane::watch::Change;
use weir_tests::Namespace;

const CLUSTER_IP: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80));
const NODE_PORT: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(NODE_ADDRESS, 30_001));
const LOAD_BALANCER: SocketAddr =
    SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 80));
/// How long a client waits for an answer that does not come.
const SILENCE: Duration = Duration::from_millis(300);

/// What becomes of a connection to whom nobody answers.
fn refusal(from: &Namespace, to: SocketAddr) -> ErrorKind {
    from.inside(|| TcpStream::connect_timeout(&to, SILENCE).expect_err("nobody answers").kind())
}

/// Who answers in so many tries that no backend of two is missed but once in 2^32 runs.
fn answers(from: &Namespace, to: SocketAddr) -> BTreeSet<String> {
    (0..32).map(|_| tcp(from, to).unwrap()).collect()
}

#[test]
fn policy_local_keeps_the_clients_address_outside_and_binds_nobody_inside() {
    let mut node = TestNode::new(false);
    let (_a, a) = mirror_pod(&node, "a");
    let (pod, pod_address) = node.add_pod("client");
    node.client.ip("route add 198.51.100.1 via 192.0.2.1").unwrap();
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    node.serve_as("here", 1, &[a], &spec, &status);
    for to in [LOAD_BALANCER, NODE_PORT] {
        assert_eq!(tcp(&node.client, to).unwrap(), "192.0.2.2", "{to}");
    }
    // The same pod, as if another node had it.
    node.serve_as("elsewhere", 1, &[a], &spec, &status);
    for to in [LOAD_BALANCER, NODE_PORT] {
        assert_eq!(
            refusal(&node.client, to),
            ErrorKind::TimedOut,
            "{to}: dropped, for the client to try elsewhere"
        );
    }
    for to in [LOAD_BALANCER, NODE_PORT, CLUSTER_IP] {
        assert_eq!(tcp(&pod, to).unwrap(), pod_address.to_string(), "{to}: from inside as policy Cluster");
    }
    node.serve_as("here", 1, &[], &spec, &status);
    assert_eq!(refusal(&node.client, LOAD_BALANCER), ErrorKind::ConnectionRefused, "nobody anywhere");
}

#[test]
fn internal_policy_local_takes_endpoints_of_this_node_or_none() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (pod, _) = node.add_pod("client");
    let local = json!({"internalTrafficPolicy": "Local"});
    node.serve_as("here", 1, &[a], &local, &json!({}));
    assert_eq!(tcp(&pod, CLUSTER_IP).unwrap(), "a hello");
    node.serve_as("elsewhere", 1, &[a], &local, &json!({}));
    assert_eq!(refusal(&pod, CLUSTER_IP), ErrorKind::TimedOut);
    node.serve_as("elsewhere", 1, &[a], &json!({}), &json!({}));
    assert_eq!(tcp(&pod, CLUSTER_IP).unwrap(), "a hello", "without the policy it is reached");
}

/// A slice of the service that [`TestNode::serve`] makes: endpoints with what else the API says of them.
fn slice(endpoints: &[(Ipv4Addr, Value)]) -> Change {
    let endpoint = |(address, more): &(Ipv4Addr, Value)| {
        let mut endpoint = json!({"addresses": [address], "nodeName": "here"});
        endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        endpoint
    };
    let object = json!({
        "metadata": {"name": "s1-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "s1"}},
        "addressType": "IPv4", "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    Change::Slice(Event::Apply(serde_json::from_value(object).unwrap()))
}

#[test]
fn endpoints_that_end_serve_while_no_other_does() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let (pod, _) = node.add_pod("client");
    node.serve(1, &[a]);
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let ending = conditions(false, true, true);
    let mut with = |endpoints: &[(Ipv4Addr, Value)]| {
        node.store.apply(slice(endpoints));
        node.sync();
        let outside = node.client.inside(|| TcpStream::connect_timeout(&NODE_PORT, SILENCE).map(drop));
        if let Err(error) = outside {
            return Err((error.kind(), refusal(&pod, CLUSTER_IP)));
        }
        assert_eq!(answers(&node.client, NODE_PORT), answers(&pod, CLUSTER_IP), "policies do not differ");
        Ok(answers(&pod, CLUSTER_IP).into_iter().collect::<Vec<_>>().join(", "))
    };
    let refused = Err((ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused));
    assert_eq!(with(&[(a, ending.clone()), (b, conditions(true, true, false))]), Ok("b hello".into()));
    assert_eq!(with(&[(a, ending.clone()), (b, conditions(false, false, true))]), Ok("a hello".into()));
    assert_eq!(with(&[(a, ending.clone()), (b, ending)]), Ok("a hello, b hello".into()));
    assert_eq!(with(&[(a, conditions(false, false, true)), (b, conditions(false, false, false))]), refused);
}

#[test]
fn clients_stay_in_their_zone_when_hints_cover_it() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let (pod, _) = node.add_pod("client");
    node.serve(1, &[a]);
    let object = json!({"metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": "z2"}}});
    node.store.apply(Change::Node(Event::Apply(serde_json::from_value(object).unwrap())));
    let hint = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
    let mut with = |hints: [Value; 2]| {
        let [of_a, of_b] = hints;
        node.store.apply(slice(&[(a, of_a), (b, of_b)]));
        node.sync();
        let inside: Vec<String> = answers(&pod, CLUSTER_IP).into_iter().collect();
        (inside.join(", "), answers(&node.client, NODE_PORT).len())
    };
    assert_eq!(with([hint("z1"), hint("z2")]), ("b hello".into(), 1));
    assert_eq!(with([hint("z2"), hint("z1")]), ("a hello".into(), 1));
    assert_eq!(with([hint("z2"), json!({})]), ("a hello, b hello".into(), 2), "one has no hint");
    assert_eq!(with([hint("z1"), hint("z3")]), ("a hello, b hello".into(), 2), "none is for here");
}
