//! Backends on other nodes: what comes for them from outside leaves this node again, and so do their answers.

mod node;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use node::{NODE_ADDRESS, TestNode};
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
    let (tcp, udp) = far
        .inside(|| (TcpListener::bind((FAR_POD, 8080)).unwrap(), UdpSocket::bind((FAR_POD, 8080)).unwrap()));
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
    (node, far)
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
