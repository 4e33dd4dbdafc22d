//! Refusals over a real link, whoever completes the checksums: a host believes no answer whose sum is wrong.

mod packets;
mod topology;

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use aya::programs::{SchedClassifier, TcAttachType};
use packets::{
    Dataplane,
    frame::{TCP, UDP},
};
use topology::{NetNs, echo::PATIENCE};
use weir_dataplane::programs::TC_UPLINK;
use weir_dataplane_ebpf::{Ip4, Ip6, Scope};

const SERVICE: &str = "192.168.0.1:30080";
const SERVICE_V6: &str = "[fd00::1]:30080";

/// How a TCP connection and a connected UDP socket fail.
fn refusals(client: &NetNs, to: SocketAddr) -> [ErrorKind; 2] {
    client.run(|| {
        let tcp = TcpStream::connect_timeout(&to, PATIENCE).expect_err("nobody listens");
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(to).unwrap();
        socket.send(b"hello").unwrap();
        let udp = socket.recv(&mut [0; 64]).expect_err("nobody answers");
        [tcp.kind(), udp.kind()]
    })
}

#[test]
fn every_state_of_a_checksum_is_answered_rightly() {
    let (node, client) = (NetNs::new(), NetNs::new());
    node.link_to(&client, ("node0", "192.168.0.1/24"), ("client0", "192.168.0.9/24"));
    node.ip("address add fd00::1/64 dev node0 nodad");
    client.ip("address add fd00::9/64 dev client0 nodad");
    let mut dataplane = Dataplane::new();
    for protocol in [TCP, UDP] {
        dataplane.service::<Ip4>(Scope::EXTERNAL, protocol, SERVICE, &[], true);
        dataplane.service::<Ip6>(Scope::EXTERNAL, protocol, SERVICE_V6, &[], true);
    }
    let program: &mut SchedClassifier = dataplane.program_mut(TC_UPLINK).try_into().expect("its type");
    node.run(|| program.attach("node0", TcAttachType::Ingress).expect("to attach"));
    // A sender may leave its sums to the link, and so may the link that the answer leaves by: what it cannot do, the
    // kernel does there.
    for sender in ["on", "off"] {
        for link in ["on", "off"] {
            client.command("ethtool", &format!("-K client0 tx {sender}"));
            node.command("ethtool", &format!("-K node0 tx {link}"));
            for service in [SERVICE, SERVICE_V6] {
                let refused = refusals(&client, service.parse().expect("constant"));
                assert_eq!(refused, [ErrorKind::ConnectionRefused; 2], "{service}: {sender}, {link}");
            }
        }
    }
    assert_eq!(dataplane.drops(), [("no-backend", 16)]);
}
