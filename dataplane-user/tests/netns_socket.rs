//! The socket hooks, which no test run can reach: real sockets of this process in a cgroup of its own.
//!
//! Everything stays on loopback; the service address exists nowhere, so that only the hooks can make it answer.

mod packets;

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process,
};

use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use nix::sched::{CloneFlags, unshare};
use packets::{
    Dataplane, GATEWAY_V4,
    frame::{TCP, UDP},
};
use weir_dataplane::programs::SOCKET_HOOKS;
use weir_dataplane_ebpf::{
    Affinity, AffinityKey, Be16, Frontend, FrontendKey, Ip4, Namespace, NodeConfig, Protocol, Scope,
};
use weir_tests::Cgroup;

const SERVICE: &str = "10.96.0.10:80";
const EMPTY_SERVICE: &str = "10.96.0.11:80";
const STICKY_SERVICE: &str = "10.96.0.12:80";

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
    let cgroup = Cgroup::new(&format!("weir-test-socket-{}", process::id())).expect("needs root");
    let _entered = cgroup.enter().expect("to move this process");
    let directory = File::open(cgroup.path()).expect("it was made");
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

    a_namespace_keeps_its_backend(&mut dataplane);
}

/// One test with the above, since this process can be in one cgroup only.
fn a_namespace_keeps_its_backend(dataplane: &mut Dataplane) {
    let listeners: Vec<TcpListener> =
        (0..4).map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback")).collect();
    let addresses: Vec<String> =
        listeners.iter().map(|it| it.local_addr().expect("bound").to_string()).collect();
    let backends: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let service = dataplane.service::<Ip4>(Scope::INTERNAL, TCP, STICKY_SERVICE, &backends, true);
    let sticky = |affinity_timeout_s| Frontend { affinity_timeout_s, ..service.value };
    let point = |dataplane: &mut Dataplane, value| {
        let key = FrontendKey {
            address: Ip4::from(std::net::Ipv4Addr::new(10, 96, 0, 12)),
            port: Be16::new(80),
            protocol: Protocol::TCP,
            scope: Scope::INTERNAL,
        };
        dataplane.hash("frontends_v4").insert(key, value, 0).expect("room");
    };
    let choices = |dataplane: &mut Dataplane| -> Vec<(AffinityKey<Namespace>, Affinity)> {
        let table = dataplane.hash("socket_affinity_v4");
        table.iter().map(|entry| entry.expect("nobody else writes")).collect()
    };
    for listener in &listeners {
        listener.set_nonblocking(true).expect("a listener of this test");
    }
    // Which listener got the connection; a connection to loopback is there when `connect` returns.
    let connect = || {
        let _client = TcpStream::connect(STICKY_SERVICE).expect("the hook leads to a listener");
        listeners.iter().position(|it| it.accept().is_ok()).expect("one of them has it")
    };

    point(dataplane, sticky(10_800));
    let first = connect();
    let [(key, choice)] = choices(dataplane)[..] else { panic!("{:?}", choices(dataplane)) };
    assert_eq!(choice.backend, service.first_backend + first as u32);
    for id in service.first_backend..service.first_backend + 4 {
        // Whatever the namespace's cookie hashes to: what is remembered decides.
        let other = Affinity { backend: id, last_used_s: choice.last_used_s };
        dataplane.hash("socket_affinity_v4").insert(key, other, 0).expect("it is there");
        assert_eq!(connect(), (id - service.first_backend) as usize);
    }
    let old = Affinity { backend: choice.backend ^ 1, last_used_s: choice.last_used_s - 60 };
    dataplane.hash("socket_affinity_v4").insert(key, old, 0).expect("it is there");
    assert_ne!(connect(), first, "within the timeout");
    let renewed = choices(dataplane)[0].1;
    assert!(renewed.last_used_s >= choice.last_used_s, "a connect renews: {renewed:?}");
    dataplane.hash("socket_affinity_v4").insert(key, old, 0).expect("it is there");
    point(dataplane, sticky(60));
    assert_eq!(connect(), first, "too old: the hash decides again");

    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            // Nothing listens there; the hook has chosen by then.
            TcpStream::connect(STICKY_SERVICE).expect_err("the loopback link is down");
        });
    });
    assert_eq!(choices(dataplane).len(), 2, "another namespace is another client");

    point(dataplane, sticky(0));
    assert!((0..64).any(|_| connect() != first), "off is off at once");
}
