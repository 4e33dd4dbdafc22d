//! Packets for services without endpoints, or for ports that a cluster IP does not have, and the answers that go back for
//! them, byte by byte.

mod packets;

use packets::{
    Dataplane, Family, Frame, Program, Row, Verdict, dropped, flow_key,
    frame::{ACK, FIN, INIT, Kind, RST, SYN, TCP, UDP, icmp, sctp, tcp, udp},
};
use weir_dataplane_ebpf::{Frontend, FrontendKey, Ip4, Ip6, Scope};

const SERVICE: &str = "192.168.0.1:30080";
const CLIENT: &str = "192.168.0.9:40000";
const SERVICE_V6: &str = "[fd00::1]:30080";
const CLIENT_V6: &str = "[fd00::9]:40000";

const PORT_UNREACHABLE: Kind = (3, 3, 0);
const PORT_UNREACHABLE_V6: Kind = (1, 4, 0);

/// A service without endpoints for every protocol, family and scope.
fn empty() -> Dataplane {
    let mut dataplane = Dataplane::new();
    for scope in [Scope::EXTERNAL, Scope::INTERNAL] {
        for protocol in [TCP, UDP] {
            dataplane.service::<Ip4>(scope, protocol, SERVICE, &[], true);
            dataplane.service::<Ip6>(scope, protocol, SERVICE_V6, &[], true);
        }
    }
    dataplane
}

/// The answer to it goes back by the link that the packet came by.
fn rejected(description: &'static str, input: Frame, output: Frame) -> Row {
    let output = output.id(0).fragment(0x4000).link([0; 6], [2, 0, 0, 0, 0, 1]);
    Row {
        description,
        program: Program::TcUplink,
        input,
        verdict: Verdict::Redirect,
        output: Some(output),
        drop: Some("no-backend"),
    }
}

/// A RST without data.
fn reset(source: &str, destination: &str) -> Frame {
    tcp(source, destination).payload(&[]).window(0)
}

#[test]
fn tcp_gets_a_reset() {
    for (client, service) in [(CLIENT, SERVICE), (CLIENT_V6, SERVICE_V6)] {
        let packet = || tcp(client, service);
        let answer = || reset(service, client);
        empty().check(&[
            rejected(
                "a SYN counts",
                packet().flags(SYN).numbers(0x0102_0304, 0).payload(&[]),
                answer().flags(RST | ACK).numbers(0, 0x0102_0305),
            ),
            rejected(
                "and so does what it carries, past the last number",
                packet().flags(SYN).numbers(u32::MAX, 0).payload(&[7; 100]),
                answer().flags(RST | ACK).numbers(0, 100),
            ),
            rejected(
                "what was acknowledged tells the number",
                packet().numbers(5, 0x0a0b_0c0d).payload(&[7; 1400]),
                answer().flags(RST).numbers(0x0a0b_0c0d, 0),
            ),
            rejected(
                "a FIN counts",
                packet().flags(FIN).numbers(5, 0),
                answer().flags(RST | ACK).numbers(0, 11),
            ),
            dropped("a RST is never answered", packet().flags(RST), "no-backend"),
            dropped("nor with an ACK", packet().flags(RST | ACK), "no-backend"),
            Row {
                program: Program::TcPod,
                ..rejected(
                    "a pod",
                    packet().flags(SYN).numbers(1, 0).payload(&[]),
                    answer().flags(RST | ACK).numbers(0, 2),
                )
            },
        ]);
    }
}

#[test]
fn udp_gets_port_unreachable() {
    let v4 = |datagram: &Frame| icmp("192.168.0.1", PORT_UNREACHABLE, datagram).quoting(28);
    let v6 = |datagram: &Frame| icmp("fd00::1", PORT_UNREACHABLE_V6, datagram).quoting(48);
    let (short, long) = (udp(CLIENT, SERVICE).payload(&[]), udp(CLIENT, SERVICE).payload(&[7; 1400]));
    let (short_v6, long_v6) =
        (udp(CLIENT_V6, SERVICE_V6).payload(&[]), udp(CLIENT_V6, SERVICE_V6).payload(&[7; 1400]));
    empty().check(&[
        rejected("an empty datagram", short.clone(), v4(&short)),
        rejected("a long one", long.clone(), v4(&long)),
        rejected("an empty datagram, IPv6", short_v6.clone(), v6(&short_v6)),
        rejected("a long one, IPv6", long_v6.clone(), v6(&long_v6)),
        Row { program: Program::TcPod, ..rejected("a pod", short.clone(), v4(&short)) },
        Row { program: Program::TcPod, ..rejected("a pod, IPv6", long_v6.clone(), v6(&long_v6)) },
    ]);
}

#[test]
fn only_one_host_is_answered() {
    let mut rows = Vec::new();
    for source in ["0.0.0.0:40000", "127.0.0.1:40000", "224.0.0.1:40000", "255.255.255.255:40000"] {
        rows.push(dropped(source, tcp(source, SERVICE).flags(SYN), "no-backend"));
        rows.push(dropped(source, udp(source, SERVICE), "no-backend"));
    }
    for source in ["[::]:40000", "[::1]:40000", "[ff02::1]:40000"] {
        rows.push(dropped(source, tcp(source, SERVICE_V6).flags(SYN), "no-backend"));
        rows.push(dropped(source, udp(source, SERVICE_V6), "no-backend"));
    }
    empty().check(&rows);
}

#[test]
fn xdp_leaves_the_answer_to_tc() {
    for input in [
        tcp(CLIENT, SERVICE).flags(SYN),
        udp(CLIENT, SERVICE),
        tcp(CLIENT_V6, SERVICE_V6).flags(SYN),
        udp(CLIENT_V6, SERVICE_V6),
    ] {
        empty().check(&[Row {
            description: "neither dropped nor counted",
            program: Program::XdpUplink,
            input,
            verdict: Verdict::Pass,
            output: None,
            drop: None,
        }]);
    }
}

#[test]
fn endpoints_elsewhere_make_a_silent_drop() {
    let mut dataplane = Dataplane::new();
    let service = dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, SERVICE, &[], true);
    let tuple = flow_key::<Ip4>(TCP, CLIENT, SERVICE);
    let key = FrontendKey {
        address: tuple.destination,
        port: tuple.destination_port,
        protocol: tuple.protocol,
        scope: Scope::EXTERNAL,
    };
    let flags = Frontend::FLAG_LOCAL_POLICY | Frontend::FLAG_SERVED_ELSEWHERE;
    Ip4::insert_frontend(&mut dataplane, key, Frontend { flags, ..service.value });
    dataplane.check(&[
        dropped("by TC", tcp(CLIENT, SERVICE).flags(SYN), "no-local-backend"),
        Row {
            program: Program::XdpUplink,
            ..dropped("by XDP", tcp(CLIENT, SERVICE).flags(SYN), "no-local-backend")
        },
    ]);
}

/// A cluster IP with one port, of TCP, and a client of it.
struct ClusterIp<'a> {
    ip: &'a str,
    /// The port.
    known: &'a str,
    /// Its backend.
    pod: &'a str,
    /// A port that it does not have.
    unknown: &'a str,
    client: &'a str,
    /// An address that nobody has.
    stranger: &'a str,
    port_unreachable: Kind,
    /// Bytes of a packet that an error quotes.
    quoted: usize,
}

const CLUSTER_IP: ClusterIp<'_> = ClusterIp {
    ip: "10.96.0.1",
    known: "10.96.0.1:80",
    pod: "10.244.0.6:8080",
    unknown: "10.96.0.1:81",
    client: "10.244.0.5:40000",
    stranger: "10.96.0.2:81",
    port_unreachable: PORT_UNREACHABLE,
    quoted: 28,
};
const CLUSTER_IP_V6: ClusterIp<'_> = ClusterIp {
    ip: "fd00:96::1",
    known: "[fd00:96::1]:80",
    pod: "[fd00:244::6]:8080",
    unknown: "[fd00:96::1]:81",
    client: "[fd00:244::5]:40000",
    stranger: "[fd00:96::2]:81",
    port_unreachable: PORT_UNREACHABLE_V6,
    quoted: 48,
};

fn untouched(description: &'static str, program: Program, input: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Pass, output: None, drop: None }
}

#[test]
fn a_port_that_a_cluster_ip_does_not_have_is_refused() {
    fn check<A: Family>(at: &ClusterIp<'_>) {
        let mut dataplane = Dataplane::new();
        let (ip, client, unknown) = (at.ip, at.client, at.unknown);
        dataplane.service::<A>(Scope::INTERNAL, TCP, at.known, &[at.pod], true);
        dataplane.cluster_ip::<A>(ip);
        let refused = |description, input: Frame, output| Row {
            program: Program::TcPod,
            drop: Some("unknown-port"),
            ..rejected(description, input, output)
        };
        let quoting = |packet: &Frame| icmp(ip, at.port_unreachable, packet).quoting(at.quoted);
        let (datagram, chunk) = (udp(client, unknown).payload(&[7; 100]), sctp(client, unknown, INIT));
        dataplane.check(&[
            refused(
                "TCP",
                tcp(client, unknown).flags(SYN).numbers(7, 0).payload(&[]),
                reset(unknown, client).flags(RST | ACK).numbers(0, 8),
            ),
            refused("UDP", datagram.clone(), quoting(&datagram)),
            refused("SCTP", chunk.clone(), quoting(&chunk)),
            refused("a port of another protocol", udp(client, at.known), quoting(&udp(client, at.known))),
            Row {
                verdict: Verdict::Drop,
                output: None,
                ..refused("a RST", tcp(client, unknown).flags(RST), reset(unknown, client))
            },
            Row {
                output: Some(tcp(client, at.pod).flags(SYN)),
                ..untouched("its own port", Program::TcPod, tcp(client, at.known).flags(SYN))
            },
            untouched("an address that no service has", Program::TcPod, udp(client, at.stranger)),
            untouched("from outside", Program::TcUplink, udp(client, unknown)),
            untouched("from outside, at XDP", Program::XdpUplink, udp(client, unknown)),
        ]);
        A::remove_cluster_ip(&mut dataplane, flow_key::<A>(TCP, client, unknown).destination);
        dataplane.check(&[untouched("a bit that is left over", Program::TcPod, udp(client, unknown))]);
    }
    check::<Ip4>(&CLUSTER_IP);
    check::<Ip6>(&CLUSTER_IP_V6);
}

#[test]
fn a_datagram_in_fragments_for_an_unknown_port_is_refused_once() {
    let datagram = |part: (usize, usize)| {
        udp(CLUSTER_IP.client, CLUSTER_IP.unknown).payload(&[7; 400]).part(part.0, part.1)
    };
    let mut dataplane = Dataplane::new();
    dataplane.cluster_ip::<Ip4>(CLUSTER_IP.ip);
    let first = datagram((0, 200));
    dataplane.check(&[
        Row {
            program: Program::TcPod,
            drop: Some("unknown-port"),
            ..rejected("the first", first.clone(), icmp(CLUSTER_IP.ip, PORT_UNREACHABLE, &first).quoting(28))
        },
        untouched("the second", Program::TcPod, datagram((200, 200))),
        untouched(
            "TCP's the stack answers",
            Program::TcPod,
            tcp(CLUSTER_IP.client, CLUSTER_IP.unknown).payload(&[7; 400]).part(0, 200),
        ),
    ]);
}
