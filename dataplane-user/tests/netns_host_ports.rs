//! Host ports of Pods over real links: for clients outside, in pods, and in processes of the node.

mod node;

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use kube::runtime::watcher::Event;
use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, mirror_pod, tcp, udp},
};
use serde_json::json;
use weir_dataplane::watch::Change;
use weir_tests::Namespace;

const HOST_PORT: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(NODE_ADDRESS, 8088));

/// A Pod object whose container's port 8080 is the node's port 8088.
fn pod(name: &str, address: Ipv4Addr, phase: &str) -> Change {
    let port = |protocol: &str| json!({"containerPort": 8080, "hostPort": 8088, "protocol": protocol});
    let object = json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "ports": [port("TCP"), port("UDP")]}]},
        "status": {"phase": phase, "podIP": address},
    });
    Change::Pod(Event::Apply(serde_json::from_value(object).unwrap()))
}

/// What a process of the node, with the socket hooks, reads from the host port.
fn by_socket(node: &TestNode) -> String {
    let script = format!(
        "echo $$ > $0/cgroup.procs && exec 3<>/dev/tcp/{}/{} && head -c 1 <&3",
        HOST_PORT.ip(),
        HOST_PORT.port()
    );
    let cgroup = node.cgroup.path();
    let bash = || Command::new("timeout").args(["5", "bash", "-c", &script]).arg(cgroup).output().unwrap();
    String::from_utf8(node.namespace.inside(bash).stdout).unwrap()
}

#[test]
fn a_pods_host_port_is_served_to_clients_everywhere_while_the_pod_runs() {
    let mut node = TestNode::new(true);
    let (a, address) = echo_pod(&node, "a");
    let (b, _) = echo_pod(&node, "b");
    assert_eq!(tcp(&node.client, HOST_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    node.store.apply(pod("a", address, "Running"));
    node.sync();
    for from in [&node.client, &b, &a] {
        assert_eq!(tcp(from, HOST_PORT).unwrap(), "a hello");
        assert_eq!(udp(from, HOST_PORT).unwrap(), ("a hello".into(), HOST_PORT));
    }
    assert_eq!(by_socket(&node), "a");

    node.kill();
    assert_eq!(tcp(&node.client, HOST_PORT).unwrap(), "a hello", "the agent is not asked");
    node.start();
    assert_eq!(tcp(&node.client, HOST_PORT).unwrap(), "a hello", "the next agent adopts it");

    node.store.apply(pod("a", address, "Succeeded"));
    node.sync();
    assert_eq!(tcp(&node.client, HOST_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_host_port_keeps_the_clients_address() {
    let mut node = TestNode::new(false);
    let (_a, address) = mirror_pod(&node, "a");
    node.store.apply(pod("a", address, "Running"));
    node.sync();
    assert_eq!(tcp(&node.client, HOST_PORT).unwrap(), "192.0.2.2");
}

#[test]
fn of_two_pods_and_a_service_with_one_port_one_is_served_and_the_others_are_told() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let ask = |client: &Namespace| tcp(client, HOST_PORT).unwrap();
    node.store.apply(pod("a", a, "Running"));
    node.sync();
    node.store.apply(pod("b", b, "Running"));
    let complaints = node.sync();
    assert!(complaints.iter().all(|line| line.contains("served by pod/default/a already")), "{complaints:?}");
    assert!(!complaints.is_empty() && complaints.iter().all(|line| line.starts_with("pod/default/b: ")));
    assert_eq!(ask(&node.client), "a hello");

    node.serve_with(1, &[b], &json!({"ports": [{"name": "t", "port": 80, "nodePort": 8088}]}), &json!({}));
    // Its slice still names the UDP port, which is told of the Service.
    let complaints: Vec<_> =
        node.complaints.iter().filter(|line| !line.starts_with("default/s1: ")).collect();
    assert!(!complaints.is_empty() && complaints.iter().all(|line| line.starts_with("pod/default/a: ")));
    assert!(complaints.iter().all(|line| line.contains("served by default/s1 already")), "{complaints:?}");
    assert_eq!(ask(&node.client), "b hello", "a Service's node port comes before a Pod's");
    assert_eq!(udp(&node.client, HOST_PORT).unwrap().0, "a hello", "the Service has no UDP port");
}
