//! The CNI plugin against real namespaces, links and routes.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use weir_dataplane::cni;
use weir_tests::Namespace;

/// A node without the dataplane: pod links only.
struct Node {
    namespace: Namespace,
    run_dir: tempfile::TempDir,
    pod_cidr: &'static str,
}

impl Node {
    fn new(pod_cidr: &'static str) -> Self {
        let node =
            Self { namespace: Namespace::new().unwrap(), run_dir: tempfile::tempdir().unwrap(), pod_cidr };
        // What the agent does for a real node: an address of its own in the pod network.
        node.namespace.ip("link add weir0 type bridge").unwrap();
        let own = pod_cidr.replace(".0/", ".1/").replace("/24", "/32").replace("/29", "/32");
        node.namespace.ip(&format!("address add {own} dev weir0")).unwrap();
        node.namespace.ip("link set weir0 up").unwrap();
        node
    }

    fn call(&self, command: &str, id: &str, namespace: Option<&Namespace>) -> Result<Value, Value> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "weir", "type": "weir",
            "runDir": self.run_dir.path(), "podCIDR": self.pod_cidr, "dataplane": false,
        });
        let path = namespace.map(Namespace::path);
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some(id.to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_ARGS" => Some(format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={id}")),
            "CNI_NETNS" => path.clone(),
            _ => None,
        };
        let mut out = Vec::new();
        let code = self.namespace.inside(|| cni::main(config.to_string().as_bytes(), env, &mut out));
        let answer = if out.is_empty() { Value::Null } else { serde_json::from_slice(&out).unwrap() };
        if format!("{code:?}") == format!("{:?}", std::process::ExitCode::SUCCESS) {
            Ok(answer)
        } else {
            Err(answer)
        }
    }

    fn add(&self, id: &str) -> (Namespace, Ipv4Addr) {
        let pod = Namespace::new().unwrap();
        let answer = self.call("ADD", id, Some(&pod)).unwrap();
        let address = answer["ips"][0]["address"].as_str().unwrap();
        let address = address.strip_suffix("/32").expect("a pod has ADDRESS/32").parse().unwrap();
        (pod, address)
    }

    fn links(&self) -> String {
        self.namespace.ip("-o link show type veth").unwrap()
    }
}

/// Sends a few bytes over TCP and UDP from one namespace to an address that another one holds.
fn talk(from: &Namespace, to: &Namespace, address: Ipv4Addr) {
    let (tcp, udp) = to.inside(|| {
        let tcp = TcpListener::bind((address, 7)).unwrap();
        let udp = UdpSocket::bind((address, 7)).unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        (tcp, udp)
    });
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = tcp.accept().unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        let (n, client) = udp.recv_from(&mut bytes).unwrap();
        udp.send_to(&bytes[..n], client).unwrap();
        peer
    });
    from.inside(|| {
        let timeout = Duration::from_secs(3);
        let to = SocketAddr::from((address, 7));
        let mut stream = TcpStream::connect_timeout(&to, timeout).expect("connect");
        stream.set_read_timeout(Some(timeout)).unwrap();
        let mut bytes = [0; 4];
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        udp.set_read_timeout(Some(timeout)).unwrap();
        udp.send_to(b"pong", to).unwrap();
        udp.recv(&mut bytes).unwrap();
        assert_eq!(&bytes, b"pong");
    });
    server.join().unwrap();
}

#[test]
fn pods_and_node_reach_each_other() {
    let node = Node::new("10.201.0.0/24");
    let (a, a_address) = node.add("a");
    let (b, b_address) = node.add("b");
    assert_eq!((a_address, b_address), ([10, 201, 0, 2].into(), [10, 201, 0, 3].into()));
    talk(&a, &b, b_address);
    talk(&b, &a, a_address);
    talk(&node.namespace, &a, a_address);
    talk(&a, &node.namespace, [10, 201, 0, 1].into());
    node.call("CHECK", "a", Some(&a)).unwrap();
}

#[test]
fn delete_leaves_nothing_and_can_be_repeated() {
    let node = Node::new("10.202.0.0/24");
    let routes = node.namespace.ip("route show").unwrap();
    let (a, _) = node.add("a");
    assert_eq!(node.links().lines().count(), 1);
    for _ in 0..2 {
        node.call("DEL", "a", Some(&a)).unwrap();
        assert_eq!((node.links().as_str(), node.namespace.ip("route show").unwrap()), ("", routes.clone()));
    }
    assert_eq!(node.call("CHECK", "a", Some(&a)).unwrap_err()["code"], 102);
    // A sandbox that was never added, and one whose namespace is gone.
    node.call("DEL", "never", None).unwrap();
    let (b, _) = node.add("b");
    drop(b);
    node.call("DEL", "b", None).unwrap();
}

#[test]
fn addresses_survive_the_plugin_and_run_out_with_a_clear_word() {
    let node = Node::new("10.203.0.0/29");
    let pods: Vec<_> = (0..5).map(|n| node.add(&format!("pod{n}"))).collect();
    let extra = Namespace::new().unwrap();
    let error = node.call("ADD", "extra", Some(&extra)).unwrap_err();
    assert_eq!(error["code"], 100);
    assert!(error["msg"].as_str().unwrap().contains("no free address in 10.203.0.0/29"), "{error}");
    assert_eq!(node.links().lines().count(), 5, "a failed ADD leaves no link");
    node.call("DEL", "pod3", Some(&pods[3].0)).unwrap();
    assert_eq!(node.add("extra").1, pods[3].1);
}

#[test]
fn without_pinned_programs_the_runtime_is_told_to_try_again() {
    let node = Node::new("10.204.0.0/24");
    let pod = Namespace::new().unwrap();
    let config = json!({"cniVersion": "1.0.0", "name": "weir", "runDir": node.run_dir.path(), "podCIDR": "10.204.0.0/24"});
    let path = pod.path();
    let env = |name: &str| match name {
        "CNI_COMMAND" => Some("ADD".to_owned()),
        "CNI_CONTAINERID" => Some("c".to_owned()),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        "CNI_NETNS" => Some(path.clone()),
        _ => None,
    };
    let mut out = Vec::new();
    node.namespace.inside(|| cni::main(config.to_string().as_bytes(), env, &mut out));
    let answer: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(answer["code"], 11, "{answer}");
    assert_eq!((node.links().as_str(), Path::new(node.run_dir.path()).join("ipam").exists()), ("", false));
}
