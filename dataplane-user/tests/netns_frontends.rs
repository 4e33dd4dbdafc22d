//! Where services are served: every kind of address, several ports, and what is nobody's. Over real links.

mod node;

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use kube::runtime::watcher::Event;
use node::{
    NODE_ADDRESS, TestNode,
    echo::{PATIENCE, echo, echo_pod, tcp, udp},
};
use serde_json::json;
use weir_dataplane::watch::Change;
use weir_tests::{Link, Namespace, ask_udp};

fn at(address: [u8; 4], port: u16) -> SocketAddr {
    (address, port).into()
}

#[test]
fn every_address_of_a_service_is_served_for_both_protocols() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (pod, _) = node.add_pod("client");
    node.client.ip("route add 198.51.100.0/24 via 192.0.2.1").unwrap();
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.7", "198.51.100.8"]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.9", "ipMode": "Proxy"}]}});
    node.serve_with(1, &[a], &spec, &status);
    let outside = [at([198, 51, 100, 1], 80), at([198, 51, 100, 7], 80), at([198, 51, 100, 8], 80)];
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    for (from, to) in outside.iter().flat_map(|to| [(&node.client, *to), (&pod, *to)]).chain([
        (&node.client, node_port),
        (&pod, node_port),
        (&pod, at([10, 96, 0, 1], 80)),
    ]) {
        assert_eq!(tcp(from, to).unwrap(), "a hello", "{to}");
        assert_eq!(udp(from, to).unwrap(), ("a hello".into(), to), "{to}");
    }
    let proxied = node.client.inside(|| {
        TcpStream::connect_timeout(&at([198, 51, 100, 9], 80), Duration::from_millis(300)).map(drop)
    });
    assert!(proxied.is_err(), "the load balancer's own");
}

#[test]
fn ports_of_one_service_lead_to_their_own_target_ports() {
    let mut node = TestNode::new(false);
    let (a_namespace, a) = echo_pod(&node, "a");
    let (pod, _) = node.add_pod("client");
    let other = a_namespace.inside(|| std::net::TcpListener::bind("0.0.0.0:9090").unwrap());
    std::thread::spawn(move || {
        use std::io::Write as _;
        for stream in other.incoming() {
            stream.unwrap().write_all(b"metrics").ok();
        }
    });
    let port =
        |name: &str, port: u16, protocol: &str| json!({"name": name, "port": port, "protocol": protocol});
    let ports = [port("t", 80, "TCP"), port("u", 80, "UDP"), port("m", 81, "TCP")];
    node.serve_with(1, &[a], &json!({"type": "ClusterIP", "ports": ports}), &json!({}));
    let slice = json!({
        "metadata": {"name": "s1-2", "namespace": "default", "labels": {"kubernetes.io/service-name": "s1"}},
        "addressType": "IPv4", "ports": [{"name": "m", "port": 9090, "protocol": "TCP"}],
        "endpoints": [{"addresses": [a], "nodeName": "here"}],
    });
    node.store.apply(Change::Slice(Event::Apply(serde_json::from_value(slice).unwrap())));
    node.sync();
    assert_eq!(tcp(&pod, at([10, 96, 0, 1], 80)).unwrap(), "a hello");
    assert_eq!(udp(&pod, at([10, 96, 0, 1], 80)).unwrap().0, "a hello");
    let metrics = pod.inside(|| {
        let mut text = String::new();
        let mut stream = TcpStream::connect_timeout(&at([10, 96, 0, 1], 81), PATIENCE).unwrap();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        text
    });
    assert_eq!(metrics, "metrics");
}

#[test]
fn an_unknown_port_or_address_of_the_service_range_is_refused_at_once() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (pod, pod_address) = node.add_pod("client");
    // A way out that the packets must not take.
    node.namespace.ip("route add default via 192.0.2.2").unwrap();
    node.namespace.inside(|| fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")).unwrap();
    node.serve(1, &[a]);
    // The client's socket is connected, and hears of the ICMP error.
    let unheard = |to: SocketAddr| {
        let started = Instant::now();
        let error =
            pod.inside(|| ask_udp((pod_address, 0).into(), to, PATIENCE)).expect_err("nobody is there");
        assert!(started.elapsed() < PATIENCE, "{to}: no answer");
        error.kind()
    };
    let refused = |from: &Namespace, to: SocketAddr| {
        let started = Instant::now();
        let error = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE)).expect_err("nobody is there");
        assert!(started.elapsed() < PATIENCE, "{to}: no answer");
        error.kind()
    };
    let (unknown_port, unknown_address) = (at([10, 96, 0, 1], 81), at([10, 96, 0, 99], 80));
    assert_eq!(refused(&pod, unknown_port), ErrorKind::ConnectionRefused, "as a host refuses a closed port");
    assert_eq!(unheard(unknown_port), ErrorKind::ConnectionRefused);
    assert_eq!(refused(&pod, unknown_address), ErrorKind::HostUnreachable);
    for to in [unknown_port, unknown_address] {
        assert_eq!(refused(&node.namespace, to), ErrorKind::HostUnreachable, "{to} from the node");
    }
    let unknown = SocketAddr::from((NODE_ADDRESS, 30_002));
    assert_eq!(refused(&node.client, unknown), ErrorKind::ConnectionRefused, "the node's own answer");
}

#[test]
fn a_backend_in_the_nodes_own_network_is_reached_by_sockets_of_the_node_and_of_pods() {
    let mut node = TestNode::new(true);
    let (pod, _) = node.add_pod("client");
    echo(&node.namespace, "host");
    node.serve(1, &[NODE_ADDRESS]);
    let entered = node.cgroup.enter().unwrap();
    for from in [&node.namespace, &pod] {
        for to in [at([10, 96, 0, 1], 80), (NODE_ADDRESS, 30_001).into()] {
            assert_eq!(tcp(from, to).unwrap(), "host hello", "{to}");
            assert_eq!(udp(from, to).unwrap(), ("host hello".into(), to));
        }
    }
    drop(entered);
}

/// The backend is a process of the node: what it answers meets no hook on its way in.
#[test]
fn a_backend_in_the_nodes_own_network_answers_packets_that_were_translated() {
    let mut node = TestNode::new(false);
    let (pod, _) = node.add_pod("client");
    echo(&node.namespace, "host");
    node.serve(1, &[NODE_ADDRESS]);
    let cluster_ip = at([10, 96, 0, 1], 80);
    let node_port = (NODE_ADDRESS, 30_001).into();
    for (from, to) in [(&pod, cluster_ip), (&pod, node_port), (&node.client, node_port)] {
        assert_eq!(tcp(from, to).unwrap(), "host hello", "{to}");
        assert_eq!(udp(from, to).unwrap(), ("host hello".into(), to));
    }
}

#[test]
fn node_ports_are_served_on_every_node_address_and_not_on_loopback() {
    let mut node = TestNode::new(true);
    let second = Namespace::new().unwrap();
    let far = Link { namespace: &second, name: "far1", address: "203.0.113.2/24" };
    node.add_uplink("up2", "203.0.113.1/24", far);
    let addresses = [NODE_ADDRESS, Ipv4Addr::new(203, 0, 113, 1)];
    node.store.set_node_addresses(addresses.map(IpAddr::V4).to_vec());
    let (_a, a) = echo_pod(&node, "a");
    let (pod, _) = node.add_pod("client");
    node.serve(1, &[a]);
    for (from, address) in
        [(&node.client, addresses[0]), (&second, addresses[1]), (&pod, addresses[0]), (&pod, addresses[1])]
    {
        assert_eq!(tcp(from, (address, 30_001).into()).unwrap(), "a hello", "{address}");
    }
    let entered = node.cgroup.enter().unwrap();
    let loopback = node.namespace.inside(|| TcpStream::connect("127.0.0.1:30001").map(drop));
    assert_eq!(loopback.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    drop(entered);

    node.store.set_node_addresses(vec![IpAddr::V4(addresses[1])]);
    node.sync();
    assert_eq!(tcp(&second, (addresses[1], 30_001).into()).unwrap(), "a hello");
    assert_eq!(
        tcp(&node.client, (addresses[0], 30_001).into()).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn services_that_are_not_ours_are_not_programmed() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (pod, _) = node.add_pod("client");
    let to = at([10, 96, 0, 1], 80);
    // The kernel says "unreachable" once a second, and no test waits for that.
    node.namespace.inside(|| fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")).unwrap();
    node.serve(1, &[a]);
    assert_eq!(tcp(&pod, to).unwrap(), "a hello");
    let mut service = |labels: serde_json::Value, spec: serde_json::Value| {
        let object =
            json!({"metadata": {"name": "s1", "namespace": "default", "labels": labels}, "spec": spec});
        node.store.apply(Change::Service(Event::Apply(serde_json::from_value(object).unwrap())));
        node.sync();
        tcp(&pod, to).map_err(|error| error.kind())
    };
    let ports = json!([{"name": "t", "port": 80}]);
    let ours = json!({"clusterIP": "10.96.0.1", "ports": ports});
    let nobody = Err(ErrorKind::HostUnreachable);
    assert_eq!(service(json!({"service.kubernetes.io/service-proxy-name": "other"}), ours.clone()), nobody);
    assert_eq!(service(json!({}), ours.clone()), Ok("a hello".into()));
    assert_eq!(service(json!({}), json!({"clusterIP": "None", "ports": ports})), nobody);
    assert_eq!(service(json!({}), ours), Ok("a hello".into()));
    assert_eq!(service(json!({}), json!({"type": "ExternalName", "externalName": "a.example"})), nobody);
}
