//! IP options and extension headers: packets whose ports stand further behind.

mod packets;

use packets::{
    Dataplane, Family, Frame, Program, Row, Verdict, dropped,
    frame::{
        DATA, DESTINATION_OPTIONS, HOP_BY_HOP, INIT, Kind, ROUTING, SCTP, SYN, TCP, UDP, icmp, sctp, tcp, udp,
    },
    into_pod, out,
};
use weir_dataplane_ebpf::{Ip4, Ip6, Scope};

const NODE: &str = "192.168.0.1:30080";
const EMPTY: &str = "192.168.0.1:30081";
const CLIENT: &str = "192.168.0.9:40000";
const POD: &str = "10.244.0.5:8080";
const NODE_V6: &str = "[fd00::1]:30080";
const CLIENT_V6: &str = "[fd00::9]:40000";
const POD_V6: &str = "[fd00:244::5]:8080";

/// "Router alert" (RFC 2113).
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
/// Padding of six bytes, as what follows an extension header's first byte.
const PADDING: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

fn services<A: Family>(node: &str, pod: &str, pod_ip: &str) -> Dataplane {
    let mut dataplane = Dataplane::new();
    for protocol in [TCP, UDP, SCTP] {
        dataplane.service::<A>(Scope::EXTERNAL, protocol, node, &[pod], true);
    }
    dataplane.endpoint::<A>(pod_ip);
    dataplane
}

fn v4() -> Dataplane {
    services::<Ip4>(NODE, POD, "10.244.0.5")
}

fn v6() -> Dataplane {
    services::<Ip6>(NODE_V6, POD_V6, "fd00:244::5")
}

fn untouched(description: &'static str, input: Frame) -> Row {
    Row { description, program: Program::TcUplink, input, verdict: Verdict::Pass, output: None, drop: None }
}

fn at_xdp(row: Row) -> Row {
    Row { program: Program::XdpUplink, ..row }
}

/// The same packet from another side of the service.
type Make<'a> = &'a dyn Fn(Frame) -> Frame;

/// Both ways of a conversation in all transports, with `make` applied to every packet.
fn conversation(
    description: &'static str,
    (client, node, pod): (&str, &str, &str),
    make: Make<'_>,
) -> Vec<Row> {
    let row = |input, output| into_pod(description, make(input), make(output));
    let answer = |input, output| out(description, make(input), make(output));
    vec![
        row(tcp(client, node).flags(SYN), tcp(client, pod).flags(SYN)),
        row(tcp(client, node), tcp(client, pod)),
        answer(tcp(pod, client), tcp(node, client)),
        row(udp(client, node), udp(client, pod)),
        answer(udp(pod, client), udp(node, client)),
        row(udp(client, node).without_checksum(), udp(client, pod).without_checksum()),
        row(sctp(client, node, INIT), sctp(client, pod, INIT)),
        row(sctp(client, node, DATA).payload(&[7; 900]), sctp(client, pod, DATA).payload(&[7; 900])),
        answer(sctp(pod, client, DATA), sctp(node, client, DATA)),
    ]
}

#[test]
fn options_of_ipv4() {
    let ends = (CLIENT, NODE, POD);
    for options in [
        &[1, 1, 1, 0][..],
        &ROUTER_ALERT,
        // Record route, with room for one address; a time stamp, and bytes behind the end.
        &[7, 7, 4, 0, 0, 0, 0, 1],
        &[68, 8, 5, 0, 0, 0, 0, 0, 0, 9, 9, 9],
        &[1; 40],
    ] {
        v4().check(&conversation("options", ends, &|frame| frame.options(options)));
    }
}

#[test]
fn extension_headers() {
    let ends = (CLIENT_V6, NODE_V6, POD_V6);
    let long = [vec![3], vec![0; 6 + 24]].concat();
    let padded = |frame: Frame, number| frame.extension(number, &PADDING);
    let cases: [Make<'_>; 5] = [
        &|frame| padded(frame, HOP_BY_HOP),
        &|frame| padded(frame, DESTINATION_OPTIONS),
        &|frame| frame.extension(DESTINATION_OPTIONS, &long),
        &|frame| padded(padded(frame, HOP_BY_HOP), DESTINATION_OPTIONS),
        // A whole packet in a fragment header (RFC 6946), and all that may stand before the ports.
        &|frame| {
            let frame = padded(padded(frame, HOP_BY_HOP), DESTINATION_OPTIONS).part(0, 2_000);
            frame.inner_extension(DESTINATION_OPTIONS, &PADDING)
        },
    ];
    for make in cases {
        v6().check(&conversation("extension headers", ends, make));
    }
}

#[test]
fn fragments_of_packets_with_options() {
    let datagram = |source, destination| udp(source, destination).payload(&[7; 100]);
    let row = |description, make: Make<'_>, (client, node, pod)| {
        into_pod(description, make(datagram(client, node)), make(datagram(client, pod)))
    };
    let ends = (CLIENT, NODE, POD);
    v4().check(&[
        row("the first", &|it| it.options(&ROUTER_ALERT).part(0, 64), ends),
        row("the second, from which the options are left out", &|it| it.part(64, 64), ends),
    ]);
    let ends = (CLIENT_V6, NODE_V6, POD_V6);
    let within = |frame: Frame| frame.inner_extension(DESTINATION_OPTIONS, &PADDING);
    v6().check(&[
        row("the first", &|it| within(it).extension(HOP_BY_HOP, &PADDING).part(0, 64), ends),
        row("the second", &|it| within(it).extension(HOP_BY_HOP, &PADDING).part(64, 64), ends),
    ]);
}

#[test]
fn what_is_routed_by_its_source_passes_untouched() {
    let opening = tcp(CLIENT, NODE).flags(SYN);
    v4().check(&[
        untouched("loose", opening.clone().options(&[131, 7, 4, 10, 0, 0, 1, 0])),
        untouched("strict, behind another option", opening.options(&[1, 137, 7, 4, 10, 0, 0, 1])),
    ]);
    let opening = tcp(CLIENT_V6, NODE_V6).flags(SYN);
    v6().check(&[
        untouched("a routing header", opening.clone().extension(ROUTING, &PADDING)),
        untouched(
            "a routing header behind another",
            opening.extension(HOP_BY_HOP, &PADDING).extension(ROUTING, &PADDING),
        ),
    ]);
}

#[test]
fn malformed_headers_are_not_followed() {
    let opening = || tcp(CLIENT, NODE).flags(SYN);
    v4().check(&[
        untouched("an option of no length", opening().options(&[7, 0, 0, 0])),
        untouched("an option of one byte", opening().options(&[7, 1, 0, 0])),
        untouched("an option that ends behind all", opening().options(&[1, 7, 4, 0])),
        untouched("an option without a length", opening().options(&[1, 1, 1, 7])),
        dropped(
            "a header that ends behind the packet",
            opening().options(&[1; 40]).cut(14 + 40),
            "truncated",
        ),
    ]);
    let opening = || tcp(CLIENT_V6, NODE_V6).flags(SYN);
    v6().check(&[
        dropped(
            "one that ends behind the packet",
            opening().extension(HOP_BY_HOP, &[9, 1, 4, 0, 0, 0, 0]),
            "truncated",
        ),
        dropped(
            "one that is as long as can be",
            opening().extension(DESTINATION_OPTIONS, &[255; 7]),
            "truncated",
        ),
        untouched(
            "more than there may be",
            (0..5).fold(opening(), |frame, _| frame.extension(DESTINATION_OPTIONS, &PADDING)),
        ),
        dropped(
            "half a transport header",
            opening().extension(HOP_BY_HOP, &PADDING).payload(&[]).cut(14 + 40 + 8 + 10),
            "truncated",
        ),
    ]);
}

#[test]
fn others_leave_them_alone() {
    let with_options = |frame: Frame| frame.options(&ROUTER_ALERT);
    let mut dataplane = v4();
    dataplane.service::<Ip4>(Scope::EXTERNAL, UDP, EMPTY, &[], true);
    dataplane.check(&[
        at_xdp(untouched("XDP", with_options(tcp(CLIENT, NODE).flags(SYN)))),
        untouched("another port of the node", with_options(tcp(CLIENT, "192.168.0.1:22"))),
        dropped("no endpoint, and no answer", with_options(udp(CLIENT, EMPTY)), "no-backend"),
        into_pod("a flow", udp(CLIENT, NODE), udp(CLIENT, POD)),
        untouched(
            "an error with options",
            with_options(icmp("192.168.0.7", TIME_EXCEEDED, &udp(POD, CLIENT))),
        ),
        untouched(
            "an error about options",
            icmp("192.168.0.7", TIME_EXCEEDED, &with_options(udp(NODE, CLIENT))),
        ),
    ]);
    v6().check(&[at_xdp(untouched(
        "XDP",
        tcp(CLIENT_V6, NODE_V6).flags(SYN).extension(HOP_BY_HOP, &PADDING),
    ))]);
}

const TIME_EXCEEDED: Kind = (11, 0, 0);
