//! The socket hooks, which no test run can reach: real sockets of this process in a cgroup of its own.
//!
//! Everything stays on loopback; the service address exists nowhere, so that only the hooks can make it answer.

mod packets;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process,
};

use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use packets::{
    Dataplane, GATEWAY_V4,
    frame::{TCP, UDP},
};
use weir_dataplane::programs::SOCKET_HOOKS;
use weir_dataplane_ebpf::{Ip4, NodeConfig, Scope};
use weir_tests::Cgroup;

const SERVICE: &str = "10.96.0.10:80";
const EMPTY_SERVICE: &str = "10.96.0.11:80";

/// A cgroup with this process in it; both go back when it is dropped.
struct OwnCgroup {
    own: Cgroup,
    before: PathBuf,
}

impl OwnCgroup {
    fn enter() -> Self {
        let own = Cgroup::new(&format!("weir-test-socket-{}", process::id())).expect("needs root");
        let memberships = fs::read_to_string("/proc/self/cgroup").expect("/proc");
        let before =
            memberships.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup2 membership");
        let before = own.path().parent().expect("it is in the mount").join(before);
        join(own.path());
        Self { own, before }
    }
}

/// Moves this process.
fn join(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string()).expect("to move this process");
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        join(&self.before);
    }
}

#[test]
fn sockets_reach_services() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let tcp_backend = listener.local_addr().expect("bound").to_string();
    let echo = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let udp_backend = echo.local_addr().expect("bound").to_string();

    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, SERVICE, &[&tcp_backend], true);
    dataplane.service::<Ip4>(Scope::INTERNAL, UDP, SERVICE, &[&udp_backend], true);
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, EMPTY_SERVICE, &[], true);
    dataplane.configure(NodeConfig {
        gateway_v4: GATEWAY_V4.parse::<std::net::Ipv4Addr>().expect("constant").into(),
        flags: NodeConfig::FLAG_SOCKET_LB,
        ..NodeConfig::default()
    });
    let cgroup = OwnCgroup::enter();
    let directory = fs::File::open(cgroup.own.path()).expect("it was made");
    for hook in SOCKET_HOOKS {
        let program: &mut CgroupSockAddr = dataplane.program_mut(hook).try_into().expect("a socket hook");
        program.attach(&directory, CgroupAttachMode::Single).expect("to attach");
    }

    let mut client = TcpStream::connect(SERVICE).expect("the hook leads to the listener");
    assert_eq!(
        client.peer_addr().expect("connected").to_string(),
        SERVICE,
        "the process sees what it asked for"
    );
    let (mut server, _) = listener.accept().expect("a connection");
    server.write_all(b"weir").expect("to write");
    let mut answer = [0; 4];
    client.read_exact(&mut answer).expect("to read");
    assert_eq!(&answer, b"weir");

    let mapped = TcpStream::connect("[::ffff:10.96.0.10]:80").expect("an IPv4 service from an IPv6 socket");
    assert_eq!(mapped.peer_addr().expect("connected").to_string(), "[::ffff:10.96.0.10]:80");

    let socket = UdpSocket::bind("0.0.0.0:0").expect("any port");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a bound for the test");
    socket.send_to(b"ping", SERVICE).expect("the hook leads to the echo");
    let (length, from) = echo.recv_from(&mut answer).expect("a datagram");
    echo.send_to(&answer[..length], from).expect("to answer");
    let (_, from) = socket.recv_from(&mut answer).expect("an answer");
    assert_eq!(from.to_string(), SERVICE, "the answer comes from the service");

    let refused = TcpStream::connect(EMPTY_SERVICE).expect_err("there is no backend");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(dataplane.drops(), [("no-backend", 1)]);
}
