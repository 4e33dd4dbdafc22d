//! Servers that echo, and clients that ask them.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use weir_tests::Namespace;

use super::TestNode;

/// Longer than anything here takes, short enough to see a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a datagram at the most.
pub(crate) const LONGEST_DATAGRAM: usize = 65_507;

/// A pod that echoes.
pub(crate) fn echo_pod(node: &TestNode, name: &'static str) -> (Namespace, Ipv4Addr) {
    let (pod, address) = node.add_pod(name);
    echo(&pod, name);
    (pod, address)
}

/// Echoes on TCP and UDP port 8080 until the test ends, with a name in front.
pub(crate) fn echo(namespace: &Namespace, name: &'static str) {
    echo_at(namespace, Ipv4Addr::UNSPECIFIED, name);
}

/// The same on one address alone, which answers come from.
pub(crate) fn echo_at(namespace: &Namespace, address: Ipv4Addr, name: &'static str) {
    let (tcp, udp) = namespace
        .inside(|| (TcpListener::bind((address, 8080)).unwrap(), UdpSocket::bind((address, 8080)).unwrap()));
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                stream.write_all(name.as_bytes()).unwrap();
                let mut reader = stream.try_clone().unwrap();
                std::io::copy(&mut reader, &mut stream).ok();
                stream.shutdown(Shutdown::Write).ok();
            });
        }
    });
    std::thread::spawn(move || {
        let mut bytes = vec![0; LONGEST_DATAGRAM];
        while let Ok((n, client)) = udp.recv_from(&mut bytes) {
            udp.send_to(&[name.as_bytes(), &bytes[..n]].concat(), client).unwrap();
        }
    });
}

/// A pod that answers on TCP port 8080 with the address that it sees its client by.
pub(crate) fn mirror_pod(node: &TestNode, name: &'static str) -> (Namespace, Ipv4Addr) {
    let (pod, address) = node.add_pod(name);
    let listener = pod.inside(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let client = stream.peer_addr().unwrap().ip();
            // To its end: closing over unread bytes is a reset.
            stream.read_to_end(&mut Vec::new()).ok();
            stream.write_all(client.to_string().as_bytes()).ok();
        }
    });
    (pod, address)
}

/// What an echo answers to a greeting over TCP.
pub(crate) fn tcp(from: &Namespace, to: SocketAddr) -> std::io::Result<String> {
    from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b" hello")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// What an echo answers to a greeting over UDP, and from where.
pub(crate) fn udp(from: &Namespace, to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    from.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b" hello", to)?;
        let mut bytes = [0; 64];
        let (n, peer) = socket.recv_from(&mut bytes)?;
        Ok((String::from_utf8_lossy(&bytes[..n]).into_owned(), peer))
    })
}
