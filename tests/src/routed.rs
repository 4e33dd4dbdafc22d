//! A node that only routes, with clients on one side of it and any number of pods on the other.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use anyhow::Result;

use crate::{
    Link, Namespace,
    rules::{MANY_POD_PORT, MANY_POD_RANGE},
};

/// Three namespaces in a row. The pods' side has every address of [`MANY_POD_RANGE`].
#[derive(Debug)]
pub struct Routed {
    /// Where clients are: outside the cluster by one address, a pod of the node by another.
    pub client: Arc<Namespace>,
    /// What routes between the two.
    pub node: Arc<Namespace>,
    /// Where endpoints are.
    pub pods: Arc<Namespace>,
}

impl Routed {
    /// The node's address towards clients.
    pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    /// The client's address outside the cluster.
    pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    /// Its address in the pod range.
    pub const POD: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 1);
    /// The node's address towards pods, which is what they see of clients that are masqueraded.
    pub const TOWARDS_PODS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    /// Makes the three.
    pub fn new() -> Result<Self> {
        let make = || Namespace::new().map(Arc::new);
        let routed = Self { client: make()?, node: make()?, pods: make()? };
        let Self { client, node, pods } = &routed;
        Link::connect(
            Link { namespace: node, name: "up0", address: "192.0.2.1/24" },
            Link { namespace: client, name: "up1", address: "192.0.2.2/24" },
        )?;
        Link::connect(
            Link { namespace: node, name: "down0", address: "198.51.100.1/24" },
            Link { namespace: pods, name: "down1", address: "198.51.100.2/24" },
        )?;
        client.ip("route add default via 192.0.2.1")?;
        client.ip(&format!("address add {}/32 dev up1", Self::POD))?;
        // A redirect would use up what the kernel allows a host in ICMP errors, and refusals would stay out.
        node.set("ipv4/conf/all/send_redirects", "0")?;
        node.set("ipv4/conf/up0/send_redirects", "0")?;
        node.set("ipv4/ip_forward", "1")?;
        node.ip(&format!("route add {MANY_POD_RANGE} via 198.51.100.2"))?;
        node.ip(&format!("route add {}/32 via 192.0.2.2", Self::POD))?;
        // A node has a way for everything, else its own sockets would have none to a service's address.
        node.ip("route add default via 192.0.2.2")?;
        pods.ip("route add default via 198.51.100.1")?;
        // In the main table, so that the longer prefix of the client wins.
        pods.ip(&format!("route add local {MANY_POD_RANGE} dev lo table main"))?;
        pods.ip(&format!("route add {}/32 via 198.51.100.1", Self::POD))?;
        Ok(routed)
    }

    /// Endpoints that say over TCP which of them was reached and by whom: `ENDPOINT CLIENT`.
    pub fn tell(&self) -> Result<()> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, MANY_POD_PORT));
        let tcp = self.pods.run(|| Ok(TcpListener::bind(any)?))?;
        thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                thread::spawn(move || answer(stream));
            }
        });
        Ok(())
    }

    /// The same over UDP on one endpoint's address: a socket does not tell which one it was asked on.
    pub fn tell_udp(&self, endpoint: IpAddr) -> Result<()> {
        let socket = self.pods.run(|| Ok(UdpSocket::bind((endpoint, MANY_POD_PORT))?))?;
        thread::spawn(move || {
            let mut bytes = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(format!("{endpoint} {}", client.ip()).as_bytes(), client);
            }
        });
        Ok(())
    }
}

/// Hears the client out and tells.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let (here, client) = (stream.local_addr()?, stream.peer_addr()?);
    io::copy(&mut stream, &mut io::sink())?;
    write!(stream, "{} {}", here.ip(), client.ip())
}
