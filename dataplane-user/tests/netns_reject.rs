//! Refusals over a real link, whoever completes the checksums: a host believes no answer whose sum is wrong.

mod node;
mod packets;

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use aya::programs::{SchedClassifier, TcAttachType};
use node::echo::PATIENCE;
use packets::{
    Dataplane,
    frame::{TCP, UDP},
};
use weir_dataplane::programs::TC_UPLINK;
use weir_dataplane_ebpf::{Ip4, Ip6, Scope};
use weir_tests::{Link, Namespace};

const SERVICE: &str = "192.168.0.1:30080";
const SERVICE_V6: &str = "[fd00::1]:30080";

/// How a TCP connection and a connected UDP socket fail.
fn refusals(client: &Namespace, to: SocketAddr) -> [ErrorKind; 2] {
    client.inside(|| {
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
    let (node, client) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    Link::connect(
        Link { namespace: &node, name: "node0", address: "192.168.0.1/24" },
        Link { namespace: &client, name: "client0", address: "192.168.0.9/24" },
    )
    .unwrap();
    node.ip("address add fd00::1/64 dev node0 nodad").unwrap();
    client.ip("address add fd00::9/64 dev client0 nodad").unwrap();
    let mut dataplane = Dataplane::new();
    for protocol in [TCP, UDP] {
        dataplane.service::<Ip4>(Scope::EXTERNAL, protocol, SERVICE, &[], true);
        dataplane.service::<Ip6>(Scope::EXTERNAL, protocol, SERVICE_V6, &[], true);
    }
    let program: &mut SchedClassifier = dataplane.program_mut(TC_UPLINK).try_into().expect("its type");
    node.inside(|| program.attach("node0", TcAttachType::Ingress).expect("to attach"));
    // A sender may leave its sums to the link, and so may the link that the answer leaves by: what it cannot do, the
    // kernel does there.
    for sender in ["on", "off"] {
        for link in ["on", "off"] {
            for (namespace, name, state) in [(&client, "client0", sender), (&node, "node0", link)] {
                let status = namespace.command("ethtool").args(["-K", name, "tx", state]).status().unwrap();
                assert!(status.success(), "ethtool -K {name} tx {state}");
            }
            for service in [SERVICE, SERVICE_V6] {
                let refused = refusals(&client, service.parse().expect("constant"));
                assert_eq!(refused, [ErrorKind::ConnectionRefused; 2], "{service}: {sender}, {link}");
            }
        }
    }
    assert_eq!(dataplane.drops(), [("no-backend", 16)]);
}
