//! Backends on other nodes: what comes for them from outside leaves this node again, and so do their answers.

mod node;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use kube::runtime::watcher::Event;
use node::{NODE_ADDRESS, TestNode};
use serde_json::json;
use weir_dataplane::{
    ForwardingMode,
    cli::{self, ExplainArgs, Output, ViewArgs},
    watch::Change,
};
use weir_dataplane_ebpf::{Flow, FlowKey, Ip4};
use weir_tests::{Link, Namespace};

/// A pod on the other node.
const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 8, 5);
/// The second node's address, where both run Weir.
const SECOND: &str = "198.51.100.2";
/// This node's address on the link between the two.
const TOWARDS_FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Longer than anything here takes, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node with a second one behind it, whose pod tells each client the address that it sees.
fn two_nodes() -> (TestNode, Namespace) {
    let mut node = TestNode::new(false);
    let far = Namespace::new().unwrap();
    node.add_uplink(
        "up2",
        "198.51.100.1/24",
        Link { namespace: &far, name: "far0", address: "198.51.100.2/24" },
    );
    far.ip(&format!("address add {FAR_POD}/32 dev lo")).unwrap();
    node.namespace.ip("route add 10.244.8.0/24 via 198.51.100.2").unwrap();
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

/// Sends long datagrams until the path's MTU is known, each followed by a short one; the answer to the last long one.
fn long_datagrams(from: &Namespace, to: SocketAddr) -> String {
    from.inside(|| {
        // Unconnected, so that being told an MTU is no error of the socket's.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; 64];
        let mut answer = || {
            let (length, peer) = socket.recv_from(&mut bytes).unwrap();
            assert_eq!(peer, to, "the frontend answers");
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        };
        for _ in 0..10 {
            socket.send_to(&[7; 2_000], to).unwrap();
            socket.send_to(b"hello", to).unwrap();
            let first = answer();
            if first.ends_with(" 2000") {
                assert!(answer().ends_with(" 5"));
                return first;
            }
        }
        panic!("no long datagram gets through to {to}");
    })
}

/// Detaches TC from the uplinks: what is served from then on, XDP serves alone.
fn leave_it_to_xdp(node: &TestNode, uplinks: usize) {
    let mut detached = 0;
    for link in std::fs::read_dir(node.paths().links()).unwrap().map(|entry| entry.unwrap()) {
        if link.file_name().to_string_lossy().starts_with("tc_uplink_") {
            std::fs::remove_file(link.path()).unwrap();
            detached += 1;
        }
    }
    assert_eq!(detached, uplinks, "TC was attached to every uplink");
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
    leave_it_to_xdp(&node, 2);
    for _ in 0..20 {
        assert_eq!(tcp(&node.client, node_port, 100_000).unwrap(), format!("{TOWARDS_FAR} 100000"));
        assert_eq!(udp(&node.client, node_port).unwrap(), format!("{TOWARDS_FAR} 5"));
    }
}

/// The client's network between two nodes that both run Weir. The first one's backends are on the second.
fn two_nodes_that_return_directly(mode: ForwardingMode) -> (TestNode, TestNode, Namespace, Ipv4Addr) {
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
    first.store.set_forwarding(mode);
    first.store.apply(node("there", SECOND));
    second.store.apply(node("first", &NODE_ADDRESS.to_string()));
    second.store.set_node_addresses(vec![SECOND.parse().unwrap()]);
    let (pod, address) = second.add_pod("server");
    tell_clients_who_they_are(&pod, address);
    first.serve_on("there", 1, &[address]);
    second.serve(1, &[address]);
    (first, second, pod, address)
}

fn flows(node: &TestNode) -> Vec<(FlowKey<Ip4>, Flow<Ip4>)> {
    node.maps().v4.flows.entries().unwrap()
}

/// The checker finds no fault with flows, be they idle for a while.
fn assert_all_is_well(node: &mut TestNode) {
    assert_eq!(node.check(), Vec::<String>::new());
    let last = flows(node).iter().map(|(_, flow)| flow.last_seen_jiffies).max().unwrap();
    assert_eq!(node.check_at(Some((last.wrapping_add(100_000), 100.0))), Vec::<String>::new());
}

#[test]
fn a_backend_on_another_node_sees_the_client_and_answers_it_directly() {
    let (mut first, mut second, _pod, _) = two_nodes_that_return_directly(ForwardingMode::Dsr);
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    // A whole segment does not fit into the tunnel: the client must be told.
    assert_eq!(tcp(&first.client, node_port, 1_000_000).unwrap(), "192.0.2.2 1000000");
    for _ in 0..4 {
        assert_eq!(udp(&first.client, node_port).unwrap(), "192.0.2.2 5");
    }
    assert_eq!(long_datagrams(&first.client, node_port), "192.0.2.2 2000");
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
    for node in [&mut first, &mut second] {
        assert_all_is_well(node);
    }
}

/// A client behind the router of those, which knows nothing of pods' addresses.
fn client_of(first: &TestNode, second: &TestNode) -> Namespace {
    let client = Namespace::new().unwrap();
    Link::connect(
        Link { namespace: &first.client, name: "down0", address: "203.0.113.1/24" },
        Link { namespace: &client, name: "down1", address: "203.0.113.9/24" },
    )
    .unwrap();
    first.client.inside(|| std::fs::write("/proc/sys/net/ipv4/conf/down0/rp_filter", "0").unwrap());
    for (namespace, words) in [
        (&client, "route add 192.0.2.0/24 via 203.0.113.1"),
        (&first.namespace, "route add 203.0.113.0/24 via 192.0.2.2"),
        (&second.namespace, "route add 203.0.113.0/24 via 198.51.100.1"),
    ] {
        namespace.ip(words).unwrap();
    }
    client
}

#[test]
fn a_backends_node_learns_the_frontend_from_an_option_and_answers_the_client_directly() {
    let (mut first, mut second, _pod, address) = two_nodes_that_return_directly(ForwardingMode::DsrOption);
    let client = client_of(&first, &second);
    first.namespace.ip(&format!("route add {address}/32 via 192.0.2.2")).unwrap();
    first.client.ip(&format!("route add {address}/32 via {SECOND}")).unwrap();
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    let converse = || {
        assert_eq!(tcp(&client, node_port, 1_000_000).unwrap(), "203.0.113.9 1000000");
        for _ in 0..4 {
            assert_eq!(udp(&client, node_port).unwrap(), "203.0.113.9 5");
        }
    };
    converse();
    assert_eq!(long_datagrams(&client, node_port), "203.0.113.9 2000");
    let of_first = flows(&first);
    assert!(!of_first.is_empty(), "the flows are established");
    for (key, flow) in of_first {
        assert_ne!(flow.flags & Flow::<Ip4>::FLAG_OPTION, 0, "{key:?}: nothing comes back this way");
    }
    let of_second = flows(&second);
    for reply in [0, Flow::<Ip4>::FLAG_REPLY] {
        let wanted = Flow::<Ip4>::FLAG_NAMED | reply;
        let mask = Flow::<Ip4>::FLAG_NAMED | Flow::<Ip4>::FLAG_REPLY;
        assert!(of_second.iter().any(|(_, flow)| flow.flags & mask == wanted), "{of_second:?}");
    }
    let explained = cli::explain(&ExplainArgs {
        protocol: "tcp".into(),
        source: "203.0.113.9:39999".parse().unwrap(),
        destination: node_port,
        view: ViewArgs { run_dir: first.paths().run_dir().to_owned(), output: Output::Table },
    });
    let explained = explained.unwrap();
    let way = format!("with an option that names the frontend to node {SECOND}");
    assert!(explained.contains(&way), "{explained}");
    for node in [&mut first, &mut second] {
        assert_all_is_well(node);
    }
    leave_it_to_xdp(&first, 1);
    converse();
}
