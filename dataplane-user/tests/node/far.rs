//! A host far away, and what senders hear of the path to it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
};

use weir_tests::{Link, Namespace};

use super::{TestNode, echo::PATIENCE};

/// A host behind two routers, with links of 1500 bytes at both ends of the path and one of 1300 in the middle:
///
/// ```text
/// node ── 192.0.2.0/24 ── router (the node's client) ── 198.18.0.0/24, MTU 1300 ── router ── 198.51.100.0/24 ── host
/// ```
pub(crate) struct Far {
    pub(crate) host: Namespace,
    _router: Namespace,
}

/// Its address.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

impl Far {
    /// Which knows no way to pods.
    pub(crate) fn new(node: &TestNode) -> Self {
        let (near, router, host) = (&node.client, Namespace::new().unwrap(), Namespace::new().unwrap());
        Link::connect(
            Link { namespace: near, name: "thin0", address: "198.18.0.1/24" },
            Link { namespace: &router, name: "thin1", address: "198.18.0.2/24" },
        )
        .unwrap();
        Link::connect(
            Link { namespace: &router, name: "far0", address: "198.51.100.1/24" },
            Link { namespace: &host, name: "far1", address: "198.51.100.2/24" },
        )
        .unwrap();
        near.ip("link set thin0 mtu 1300").unwrap();
        router.ip("link set thin1 mtu 1300").unwrap();
        for router in [near, &router] {
            router.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        }
        near.ip("route add 198.51.100.0/24 via 198.18.0.2").unwrap();
        router.ip("route add default via 198.18.0.1").unwrap();
        host.ip("route add default via 198.51.100.1").unwrap();
        node.namespace.ip("route add default via 192.0.2.2").unwrap();
        Self { host, _router: router }
    }

    /// Which knows the way.
    pub(crate) fn with_way_to_pods(node: &TestNode) -> Self {
        node.client.ip("route add 10.244.7.0/24 via 192.0.2.1").unwrap();
        Self::new(node)
    }
}

/// Sends a megabyte to an echo and takes it back.
pub(crate) fn transfer(from: &Namespace, to: SocketAddr) -> std::io::Result<()> {
    from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0])?;
        let sent: Vec<u8> = (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
        let mut writer = stream.try_clone()?;
        writer.set_write_timeout(Some(PATIENCE))?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| writer.write_all(&sent));
            let mut received = vec![0; sent.len()];
            let read = stream.read_exact(&mut received);
            writing.join().expect("the writer returns")?;
            read?;
            assert!(received == sent, "the bytes came back changed");
            Ok(())
        })
    })
}

/// What a connected UDP socket hears instead of an answer.
pub(crate) fn error(from: &Namespace, to: SocketAddr, prepare: impl FnOnce(&UdpSocket) + Send) -> ErrorKind {
    from.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        prepare(&socket);
        socket.connect(to).unwrap();
        socket.send(b"hello").unwrap();
        socket.recv(&mut [0; 64]).expect_err("nobody answers").kind()
    })
}
