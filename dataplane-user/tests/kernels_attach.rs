//! A whole node on this kernel: programs are attached in the way that it has, serve pods and clients outside, and are
//! replaced without breaking a connection; or the kernel is refused by its number.
//!
//! `cargo xtask test kernels` runs this on each kernel of its matrix, of which some have tcx and some have not.

mod node;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use nix::sys::utsname::uname;
use node::{
    NODE_ADDRESS, TestNode,
    echo::{PATIENCE, echo_pod, tcp, udp},
};
use weir_dataplane::{
    cli::{self, Output, View, ViewArgs},
    kernel::release::{self, KernelError},
};

const NODE_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 30_001);
/// The first kernel with tcx.
const TCX: (u32, u32) = (6, 6);

/// Major and minor number of the running kernel.
fn running() -> (u32, u32) {
    let name = uname().unwrap();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Sends one byte over a connection, and reads one.
fn exchange(stream: &mut TcpStream, byte: u8) -> u8 {
    stream.write_all(&[byte]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    answer[0]
}

#[test]
fn a_node_serves_by_what_its_kernel_has() {
    if running() < release::OLDEST_KERNEL {
        let refused = release::require();
        assert!(matches!(refused, Err(KernelError::TooOld { .. })), "{refused:?}");
        println!("too old for an agent");
        return;
    }
    // With socket hooks, which processes of this test are not among: links of the cgroup's are attached all the same.
    let mut node = TestNode::new(true);
    let (_a, address) = echo_pod(&node, "a");
    let (client, _) = node.add_pod("client");
    node.serve(1, &[address]);
    let cluster_ip = SocketAddr::from(([10, 96, 0, 1], 80));
    assert_eq!(udp(&client, cluster_ip).unwrap(), ("a hello".into(), cluster_ip));
    assert_eq!(tcp(&node.client, NODE_PORT).unwrap(), "a hello");

    // Few packets: the verifier has the emulated CPU to itself.
    let mut lasting = [(&client, cluster_ip), (&node.client, NODE_PORT)].map(|(from, to)| {
        let mut stream = from.inside(|| TcpStream::connect(to)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    });
    node.kill();
    for stream in &mut lasting {
        assert_eq!(exchange(stream, b'1'), b'1', "without an agent");
    }
    node.start();
    for stream in &mut lasting {
        assert_eq!(exchange(stream, b'2'), b'2', "through the next agent's programs");
    }
    assert_eq!(tcp(&node.client, NODE_PORT).unwrap(), "a hello");

    let view = ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Json };
    let status: serde_json::Value = serde_json::from_str(&cli::view(View::Status, &view).unwrap()).unwrap();
    let links = status["links"].as_array().unwrap();
    let count = |mode: &str| links.iter().filter(|link| link["mode"] == mode).count();
    // In and out of the uplink and of two pods.
    let expected = if running() < TCX { [0, 6] } else { [6, 0] };
    assert_eq!([count("tcx"), count("clsact")], expected, "{links:?}");
    assert_eq!((count("xdp"), count("cgroup")), (1, 10));
}
