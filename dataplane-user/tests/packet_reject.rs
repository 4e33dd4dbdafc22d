//! Packets for services without endpoints, and the answers that go back for them, byte by byte.

mod packets;

use packets::{
    Dataplane, Family, Frame, Program, Row, Verdict, dropped, flow_key,
    frame::{ACK, FIN, Kind, RST, SYN, TCP, UDP, icmp, tcp, udp},
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
