//! Pods and hosts outside that know no way to them: the node's address stands for them, over real links.

mod node;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use node::{
    NODE_ADDRESS, TestNode,
    echo::{PATIENCE, echo, tcp},
    far::{FAR, Far, error, transfer},
};
use weir_dataplane::{
    Config, Masquerade,
    cidr::Cidr,
    cli::{self, Output, View, ViewArgs},
    masquerade,
};
use weir_dataplane_ebpf::{Flow, FlowState, Ip4};
use weir_tests::Namespace;

/// What the agent does once it knows the cluster.
fn masquerade(node: &TestNode) {
    let config = Config { masquerade: Masquerade::Ipv4, ..Config::default() };
    let inside = masquerade::inside(&config, node.store.peers(), node.store.pod_ranges());
    assert!(inside.contains(&"10.244.0.0/16".parse::<Cidr>().unwrap()));
    masquerade::write(&node.maps(), Masquerade::Ipv4, &inside).unwrap();
}

/// A node that masquerades, and a host far away that has no way to its pods.
fn node_and_far() -> (TestNode, Far) {
    let node = TestNode::new(false);
    let far = Far::new(&node);
    masquerade(&node);
    (node, far)
}

/// Answers on TCP and UDP port 8080 with the address that each client is seen by.
fn mirror(namespace: &Namespace) {
    let any = (Ipv4Addr::UNSPECIFIED, 8080);
    let (tcp, udp) = namespace.inside(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().map_while(Result::ok) {
            stream.read_to_end(&mut Vec::new()).ok();
            let client = stream.peer_addr().unwrap().ip();
            stream.write_all(client.to_string().as_bytes()).ok();
        }
    });
    std::thread::spawn(move || {
        while let Ok((_, client)) = udp.recv_from(&mut [0; 64]) {
            udp.send_to(client.ip().to_string().as_bytes(), client).ok();
        }
    });
}

/// How a host's UDP port 8080 sees a pod.
fn seen_by_udp(pod: &Namespace, host: Ipv4Addr) -> String {
    pod.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((host, 8080)).unwrap();
        socket.send(b"who am I").unwrap();
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    })
}

/// Sends echo requests with this much payload until one is answered or an error is heard, and returns the answer's.
fn ping(pod: &Namespace, host: Ipv4Addr, payload: usize) -> std::io::Result<usize> {
    pod.set("ipv4/ping_group_range", "0 0").unwrap();
    pod.inside(|| {
        let fd: OwnedFd =
            socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp)?;
        // Whatever its protocol, a datagram socket.
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(SocketAddr::from((host, 0)))?;
        // Type and code; checksum and identifier are the kernel's to fill in.
        let mut request = vec![8, 0, 0, 0, 0, 0, 0, 1];
        request.resize(8 + payload, 7);
        socket.send(&request)?;
        let mut bytes = [0; 2_000];
        let length = socket.recv(&mut bytes)?;
        assert_eq!(bytes[0], 0, "an answer");
        assert_eq!(bytes[8..length], request[8..], "the payload comes back");
        Ok(length - 8)
    })
}

/// The flows of a node, as the command line shows them.
fn flows(node: &TestNode) -> Vec<serde_json::Value> {
    let args = ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Json };
    let text = node.namespace.inside(|| cli::view(View::Flows, &args)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_pod_talks_to_a_host_that_knows_no_way_to_it() {
    let (node, far) = node_and_far();
    mirror(&far.host);
    let (pod, address) = node.add_pod("pod");
    let (other, _) = node.add_pod("other");
    let host = SocketAddr::from((FAR, 8080));
    for pod in [&pod, &other] {
        for _ in 0..4 {
            assert_eq!(tcp(pod, host).unwrap(), NODE_ADDRESS.to_string());
            assert_eq!(seen_by_udp(pod, FAR), NODE_ADDRESS.to_string());
            assert_eq!(ping(pod, FAR, 64).unwrap(), 64);
        }
    }
    let shown = flows(&node);
    let of_pod = |protocol: &str| {
        let source = IpAddr::from(address).to_string();
        let mut rows =
            shown.iter().filter(|row| row["protocol"] == protocol && row["direction"] == "request");
        rows.any(|row| row["source"].as_str().unwrap().starts_with(&source) && row["service"] == "(egress)")
    };
    for protocol in ["tcp", "udp", "icmp"] {
        assert!(of_pod(protocol), "{protocol}: {shown:#?}");
    }
}

#[test]
fn a_path_mtu_is_found_by_every_protocol() {
    let (node, far) = node_and_far();
    echo(&far.host, "f");
    let (pod, _) = node.add_pod("pod");
    transfer(&pod, (FAR, 8080).into()).unwrap();
    let (pod, _) = node.add_pod("another");
    let told = ping(&pod, FAR, 1_400).expect_err("too long for a link on the way");
    assert_eq!(told.raw_os_error(), Some(libc::EMSGSIZE), "{told}");
    assert_eq!(ping(&pod, FAR, 1_272).unwrap(), 1_272, "20 and 8 bytes of headers before it");
}

#[test]
fn a_link_that_is_thinner_than_the_pods_is_told() {
    let (node, far) = node_and_far();
    for (end, name) in [(&node.namespace, "up0"), (&node.client, "up1")] {
        end.ip(&format!("link set {name} mtu 1200")).unwrap();
    }
    echo(&far.host, "f");
    let (pod, _) = node.add_pod("pod");
    transfer(&pod, (FAR, 8080).into()).unwrap();
    let told = |it: &(&str, u64)| it.0 == "too-big" && it.1 > 0;
    assert!(node.maps().drops().unwrap().iter().any(told), "what does not fit ends here, and is told");
}

#[test]
fn what_routers_and_closed_ports_say_reaches_the_pod() {
    let (node, _far) = node_and_far();
    let (pod, _) = node.add_pod("pod");
    assert_eq!(error(&pod, (FAR, 9).into(), |_| {}), ErrorKind::ConnectionRefused);
    for ttl in [1, 2, 3] {
        let heard = error(&pod, (FAR, 9).into(), |socket| {
            socket.set_ttl(ttl).unwrap();
            setsockopt(socket, sockopt::Ipv4RecvErr, &true).unwrap();
        });
        assert_eq!(heard, ErrorKind::HostUnreachable, "hop {ttl} of four");
    }
}

#[test]
fn who_asks_a_pod_by_its_own_address_is_answered_from_it() {
    let node = TestNode::new(false);
    let far = Far::with_way_to_pods(&node);
    masquerade(&node);
    let (server, address) = node.add_pod("server");
    echo(&server, "s");
    assert_eq!(tcp(&far.host, (address, 8080).into()).unwrap(), "s hello");
    assert_eq!(ping(&far.host, address, 64).unwrap(), 64);
    assert_eq!(node.maps().v4.flows.entries().unwrap(), [], "nothing was translated");
    assert_eq!(node.maps().v4.opening.entries().unwrap(), []);
}

#[test]
fn pods_and_nodes_of_the_cluster_see_the_pod_itself() {
    let (node, _far) = node_and_far();
    let (pod, address) = node.add_pod("pod");
    let (server, _) = node.add_pod("server");
    mirror(&server);
    mirror(&node.namespace);
    mirror(&node.client);
    let server = server.ip("-4 -o address show eth0").unwrap();
    let server = server.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    assert_eq!(tcp(&pod, SocketAddr::new(server.parse().unwrap(), 8080)).unwrap(), address.to_string());
    assert_eq!(tcp(&pod, (NODE_ADDRESS, 8080).into()).unwrap(), address.to_string());
    // The client becomes a node of the cluster.
    assert_eq!(seen_by_udp(&pod, Ipv4Addr::new(192, 0, 2, 2)), NODE_ADDRESS.to_string());
    node.client.ip("route add 10.244.7.0/24 via 192.0.2.1").unwrap();
    let config = Config { masquerade: Masquerade::Ipv4, ..Config::default() };
    let inside = masquerade::inside(&config, [IpAddr::from([192, 0, 2, 2])], []);
    masquerade::write(&node.maps(), Masquerade::Ipv4, &inside).unwrap();
    assert_eq!(tcp(&pod, SocketAddr::from(([192, 0, 2, 2], 8080))).unwrap(), address.to_string());
}

#[test]
fn a_connection_outlives_agents_and_its_end_is_seen() {
    let (mut node, far) = node_and_far();
    echo(&far.host, "f");
    let (pod, _) = node.add_pod("pod");
    pod.inside(|| {
        let mut stream = TcpStream::connect_timeout(&(FAR, 8080).into(), PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        node.kill();
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"a");
        node.start();
        masquerade(&node);
        assert_eq!(node.check(), Vec::<String>::new(), "the checker knows such flows");
        stream.write_all(b"b").unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut byte).unwrap(), 0);
    });
    let states: BTreeSet<u8> = node
        .maps()
        .v4
        .flows
        .entries()
        .unwrap()
        .iter()
        .map(|(_, flow): &(_, Flow<Ip4>)| flow.state.0)
        .collect();
    assert_eq!(states, BTreeSet::from([FlowState::CLOSED.0]), "both said FIN");
}
