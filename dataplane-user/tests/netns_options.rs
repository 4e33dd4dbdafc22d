//! IP options over real links: what a host puts there does not keep its packets from a service.

#![expect(unsafe_code, reason = "no library sets IP options")]

mod node;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};

use node::{NODE_ADDRESS, TestNode, echo::PATIENCE};
use socket2::{Domain, Socket, Type};
use weir_tests::Namespace;

/// Record route, with room for three addresses. A TCP server's packets have it too: the kernel sends it back.
const RECORD_ROUTE: [u8; 16] = [7, 15, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Puts options into all packets that a socket sends.
fn set_options(socket: &impl AsRawFd, options: &[u8]) {
    // SAFETY: the pointer and the length are those of a live slice.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The options of the packets that a socket sends.
fn options(socket: &impl AsRawFd) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    let mut length = 40;
    // SAFETY: the pointers are those of live values, and the length is the first one's.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    bytes.truncate(length as usize);
    bytes
}

/// Answers on TCP and UDP port 8080 with how many bytes have come, and with the kind of the first option of its own packets.
fn server(pod: &Namespace) {
    let (tcp, udp) =
        pod.inside(|| (TcpListener::bind("0.0.0.0:8080").unwrap(), UdpSocket::bind("0.0.0.0:8080").unwrap()));
    set_options(&udp, &RECORD_ROUTE);
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).ok();
            stream.write_all(format!("{} {:?}", bytes.len(), options(&stream).first()).as_bytes()).ok();
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, client)) = udp.recv_from(&mut bytes) {
            udp.send_to(format!("{length} {:?}", options(&udp).first()).as_bytes(), client).unwrap();
        }
    });
}

fn tcp(from: &Namespace, to: SocketAddr) -> String {
    from.inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        set_options(&socket, &RECORD_ROUTE);
        socket.connect_timeout(&to.into(), PATIENCE).unwrap_or_else(|error| panic!("TCP to {to}: {error}"));
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&vec![b'.'; 100_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn udp(from: &Namespace, to: SocketAddr) -> String {
    from.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        set_options(&socket, &RECORD_ROUTE);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; 64];
        socket.send_to(b".", to).unwrap();
        let (length, peer) =
            socket.recv_from(&mut bytes).unwrap_or_else(|error| panic!("UDP to {to}: {error}"));
        assert_eq!(peer, to);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    })
}

#[test]
fn packets_with_options_reach_services_and_so_do_their_answers() {
    let mut node = TestNode::new(false);
    let (a, _) = node.add_pod("a");
    let (b, address) = node.add_pod("b");
    server(&b);
    node.serve(1, &[address]);
    for (from, to) in
        [(&node.client, (NODE_ADDRESS, 30_001).into()), (&a, SocketAddr::from(([10, 96, 0, 1], 80)))]
    {
        for _ in 0..2 {
            assert_eq!(tcp(from, to), "100000 Some(7)");
            assert_eq!(udp(from, to), "1 Some(7)");
        }
    }
}
