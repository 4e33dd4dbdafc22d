//! Backends on other nodes: what comes for them from outside leaves this node again, and so do their answers.

mod node;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use kube::runtime::watcher::Event;
use node::{NODE_ADDRESS, TestNode, block_on};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_dataplane::{
    cli::{self, MonitorArgs, Output},
    kernel::maps::{Table, backend_address},
    watch::Change,
};
use weir_dataplane_ebpf::{Flow, FlowState, Ip4};
use weir_tests::{Link, Namespace};

/// A pod on the other node.
const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 8, 5);
/// This node's address on the link between the two.
const TOWARDS_FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Longer than anything here takes, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node with a second one behind it, whose pod tells each client the address that it sees.
fn two_nodes() -> (TestNode, Namespace) {
    let mut node = TestNode::new(false);
    let far = node.add_far_node(FAR_POD);
    // A veth takes frames from XDP only when it has a queue of its own, which it has for receive offload.
    for (namespace, link) in [(&far, "far0"), (&node.client, "up1")] {
        let status = namespace.command("ethtool").args(["-K", link, "gro", "on"]).status().unwrap();
        assert!(status.success(), "ethtool -K {link} gro on");
    }
    tell_clients_who_they_are(&far, FAR_POD);
    (node, far)
}

/// A server on port 8080 that answers with the client's address and how much it has heard.
fn tell_clients_who_they_are(namespace: &Namespace, address: Ipv4Addr) {
    let (tcp, udp) = namespace
        .inside(|| (TcpListener::bind((address, 8080)).unwrap(), UdpSocket::bind((address, 8080)).unwrap()));
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = tcp.accept() {
            std::thread::spawn(move || {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).ok();
                stream.write_all(format!("{} {}", peer.ip(), request.len()).as_bytes()).ok();
            });
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, peer)) = udp.recv_from(&mut bytes) {
            udp.send_to(format!("{} {length}", peer.ip()).as_bytes(), peer).ok();
        }
    });
}

/// Sends so many bytes and reads the answer.
fn tcp(from: &Namespace, to: SocketAddr, length: usize) -> std::io::Result<String> {
    from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&vec![7; length])?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn udp(from: &Namespace, to: SocketAddr) -> std::io::Result<String> {
    from.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    })
}

/// Detaches TC from the uplinks: what is served from then on, XDP serves alone.
fn leave_it_to_xdp(node: &TestNode) {
    let mut detached = 0;
    for link in std::fs::read_dir(node.paths().links()).unwrap().map(|entry| entry.unwrap()) {
        if link.file_name().to_string_lossy().starts_with("tc_uplink_") {
            std::fs::remove_file(link.path()).unwrap();
            detached += 1;
        }
    }
    assert_eq!(detached, 2, "TC was attached to both uplinks");
}

#[test]
fn a_backend_on_another_node_sees_this_node_and_answers_through_it() {
    let (mut node, _far) = two_nodes();
    node.serve_on("elsewhere", 1, &[FAR_POD]);
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    // The first packets may find no neighbour, and TC sends them.
    assert_eq!(tcp(&node.client, node_port, 100_000).unwrap(), format!("{TOWARDS_FAR} 100000"));
    assert_eq!(udp(&node.client, node_port).unwrap(), format!("{TOWARDS_FAR} 5"));
}

#[test]
fn xdp_alone_sends_and_returns() {
    let (mut node, _far) = two_nodes();
    node.serve_on("elsewhere", 1, &[FAR_POD]);
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    tcp(&node.client, node_port, 1).unwrap();
    leave_it_to_xdp(&node);
    for _ in 0..20 {
        assert_eq!(tcp(&node.client, node_port, 100_000).unwrap(), format!("{TOWARDS_FAR} 100000"));
        assert_eq!(udp(&node.client, node_port).unwrap(), format!("{TOWARDS_FAR} 5"));
    }
}

/// The client's network between two nodes that both run Weir. The first one's backends are on the second.
fn two_nodes_that_return_directly() -> (TestNode, TestNode, Namespace) {
    const SECOND: &str = "198.51.100.2";
    let (mut first, mut second) = (TestNode::new(false), TestNode::new(false));
    let router = Link { namespace: &first.client, name: "far0", address: "198.51.100.1/24" };
    second.add_uplink("up2", "198.51.100.2/24", router);
    for (namespace, words) in [
        (&first.namespace, "route add 198.51.100.0/24 via 192.0.2.2"),
        // Its own uplink has the same addresses, which would hide that this one's are used.
        (&second.namespace, "route add 192.0.2.2/32 via 198.51.100.1"),
    ] {
        namespace.ip(words).unwrap();
    }
    first.client.inside(|| {
        for (name, value) in
            [("all/forwarding", "1"), ("all/rp_filter", "0"), ("up1/rp_filter", "0"), ("far0/rp_filter", "0")]
        {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}"), value).unwrap();
        }
    });
    let status = first.client.command("ethtool").args(["-K", "up1", "gro", "on"]).status().unwrap();
    assert!(status.success(), "ethtool -K up1 gro on");
    let node = |name: &str, address: &str| {
        let object = json!({
            "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        Change::Node(Event::Apply(serde_json::from_value(object).unwrap()))
    };
    first.store.set_direct_return(true);
    first.store.apply(node("there", SECOND));
    second.store.apply(node("first", &NODE_ADDRESS.to_string()));
    second.store.set_node_addresses(vec![SECOND.parse().unwrap()]);
    let (pod, address) = second.add_pod("server");
    tell_clients_who_they_are(&pod, address);
    first.serve_on("there", 1, &[address]);
    second.serve(1, &[address]);
    (first, second, pod)
}

#[test]
fn a_backend_on_another_node_sees_the_client_and_answers_it_directly() {
    let (first, second, _pod) = two_nodes_that_return_directly();
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    // A whole segment does not fit into the tunnel: the client must be told.
    assert_eq!(tcp(&first.client, node_port, 1_000_000).unwrap(), "192.0.2.2 1000000");
    for _ in 0..4 {
        assert_eq!(udp(&first.client, node_port).unwrap(), "192.0.2.2 5");
    }
    let flows = |node: &TestNode| node.maps().v4.flows.entries().unwrap();
    let of_first = flows(&first);
    assert!(!of_first.is_empty(), "the flows are established");
    for (key, flow) in of_first {
        assert_ne!(
            flow.flags & Flow::<Ip4>::FLAG_TUNNEL,
            0,
            "{key:?}: nothing comes back through the first node"
        );
    }
    assert!(flows(&second).iter().any(|(_, flow)| flow.flags & Flow::<Ip4>::FLAG_REPLY != 0));
}

#[test]
fn a_tunnelled_flow_is_told_of_with_its_backend_and_stays_while_it_is_idle() {
    let (mut first, _second, _pod) = two_nodes_that_return_directly();
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    let paths = first.paths();
    let listens = || Table::<u32, u64>::open(&paths.map("monitor")).unwrap().at(0).unwrap() != 0;
    let (told, _open) = std::thread::scope(|scope| {
        let monitor = scope.spawn(|| {
            let args = MonitorArgs { protocol: Some("tcp".into()), count: Some(2), ..MonitorArgs::default() };
            let (mut out, stop) = (Vec::new(), CancellationToken::new());
            block_on(cli::monitor(&args, &paths, Output::Json, None, &mut out, stop)).unwrap();
            String::from_utf8(out).unwrap()
        });
        let deadline = Instant::now() + PATIENCE;
        while !listens() {
            assert!(Instant::now() < deadline, "the programs are told of a listener");
            std::thread::yield_now();
        }
        let open = first.client.inside(|| {
            let mut stream = TcpStream::connect_timeout(&node_port, PATIENCE).unwrap();
            stream.write_all(b"1").unwrap();
            stream
        });
        (monitor.join().unwrap(), open)
    });
    let (_, backend) = first.maps().v4.backends.entries().unwrap().swap_remove(1);
    let backend = backend_address(&backend);
    for (line, event) in told.lines().zip(["opened", "established"]) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&row["event"], &row["backend"]), (&json!(event), &json!(backend)), "{row}");
    }
    assert_eq!(told.lines().count(), 2);

    // An hour later, by the clock.
    let flows = |node: &TestNode| node.maps().v4.flows.entries().unwrap();
    let before = flows(&first);
    assert_eq!(before.iter().map(|(_, flow)| flow.state).collect::<Vec<_>>(), [FlowState::ESTABLISHED]);
    let later = before[0].1.last_seen_jiffies.wrapping_add(3_600 * 100);
    assert_eq!(first.check_at(Some((later, 100.0))), Vec::<String>::new());
    assert_eq!(flows(&first).len(), before.len(), "idle is not wrong");
    // To where its backend is not.
    let astray: Vec<Flow<Ip4>> = before
        .iter()
        .map(|(_, flow)| Flow { destination: Ip4::from(Ipv4Addr::new(198, 51, 100, 9)), ..*flow })
        .collect();
    let keys: Vec<_> = before.iter().map(|(key, _)| *key).collect();
    first.maps().v4.flows.write(&keys, &astray).unwrap();
    let complaints = first.check_at(Some((later, 100.0))).join("\n");
    assert!(complaints.contains("through a tunnel to node 198.51.100.9"), "{complaints}");
    assert!(flows(&first).is_empty());
}
