//! Direct server return by an IPv4 option: put in where the client's packet came, taken out where its backend is.

mod packets;

use packets::{
    Dataplane, Family, Frame, HOST_MAC, POD_MAC, Program, Row, Verdict, dropped,
    frame::{ACK, DATA, FIN, ICMP, INIT, SCTP, SYN, TCP, UDP, icmp, sctp, tcp, udp},
    network::{MTU, NEXT, in_a_network, knows_mtus},
};
use weir_dataplane_ebpf::{
    Be16, Flow, FlowState, Frontend, Ip4, Ip6, Scope, SourceRange, SourceRangeKey, Uplink,
};

const CLIENT: &str = "203.0.113.9:40000";
const ANOTHER: &str = "203.0.113.10:40000";
const SERVICE: &str = "192.0.2.80:80";
/// A service with other backends.
const FOREIGN: &str = "192.0.2.81:80";
/// A node port of the node that the client asks.
const NODE_PORT: &str = "198.51.100.2:30080";
const OWN_NODE_PORT: &str = "198.51.100.1:30080";
const POD: &str = "10.244.8.5:8080";
const OTHER_POD: &str = "10.244.8.6:8080";
const OWN: &str = "198.51.100.1";
const OTHER: &str = "198.51.100.2";
/// "Router alert" (RFC 2113).
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
const TIME_EXCEEDED: (u8, u8, u32) = (11, 0, 0);
const PORT_UNREACHABLE: (u8, u8, u32) = (3, 3, 0);

fn address<A: Family>(text: &str) -> A {
    A::parse(text.parse().expect("an address"))
}

/// The option that names a frontend.
fn option(frontend: &str) -> [u8; 8] {
    let frontend: std::net::SocketAddrV4 = frontend.parse().expect("an IPv4 address and port");
    let parts = [&[0x9a, 8][..], &frontend.port().to_be_bytes(), &frontend.ip().octets()];
    parts.concat().try_into().expect("two words")
}

fn row(program: Program, description: &'static str, input: Frame, output: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Redirect, output: Some(output), drop: None }
}

fn untouched(program: Program, description: &'static str, input: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Pass, output: None, drop: None }
}

/// Where the client's packets come: backends are on the other node.
fn first() -> Dataplane {
    let mut dataplane = Dataplane::new();
    let uplink = Uplink { address_v4: address(OWN), ..Uplink::default() };
    dataplane.hash("uplinks").insert(1_u32, uplink, 0).expect("room");
    for protocol in [TCP, UDP, SCTP] {
        let service = dataplane.service::<Ip4>(Scope::EXTERNAL, protocol, SERVICE, &[POD], false);
        let at = (Scope::EXTERNAL, protocol);
        dataplane.return_directly::<Ip4>(at, SERVICE, &service, &[POD], address(OTHER));
        let flags = Frontend::FLAG_DIRECT_RETURN | Frontend::FLAG_OPTION;
        dataplane.add_flags::<Ip4>(at, SERVICE, &service, flags);
    }
    dataplane
}

/// Where the backends are.
fn second() -> Dataplane {
    let mut dataplane = Dataplane::new();
    let uplink = Uplink { address_v4: address(OWN), ..Uplink::default() };
    dataplane.hash("uplinks").insert(1_u32, uplink, 0).expect("room");
    Ip4::add_tunnel_peer(&mut dataplane, address(OTHER));
    for protocol in [TCP, UDP, SCTP] {
        for frontend in [SERVICE, OWN_NODE_PORT] {
            dataplane.service::<Ip4>(Scope::EXTERNAL, protocol, frontend, &[POD], true);
        }
        dataplane.service::<Ip4>(Scope::EXTERNAL, protocol, FOREIGN, &[OTHER_POD], true);
    }
    for pod in ["10.244.8.5", "10.244.8.6"] {
        dataplane.endpoint::<Ip4>(pod);
    }
    dataplane
}

/// A packet as the first node sends it on.
fn sent(packet: Frame) -> Frame {
    packet.ttl(63).link([0; 6], NEXT)
}

/// At the backend's node: a packet that goes into the pod.
fn arrives(description: &'static str, input: Frame, output: Frame) -> Row {
    row(Program::TcUplink, description, input, output.ttl(63).link(HOST_MAC, POD_MAC))
}

/// At the backend's node: an answer that leaves.
fn answer(description: &'static str, input: Frame, output: Frame) -> Row {
    row(Program::TcPod, description, input, output.ttl(63))
}

/// Both with the option that names the service, which is gone behind this node.
fn named(description: &'static str, input: Frame, output: Frame) -> Row {
    arrives(description, input.options(&option(SERVICE)), output)
}

#[test]
fn the_first_packets_carry_their_frontend() {
    in_a_network(|| {
        for program in [Program::XdpUplink, Program::TcUplink] {
            let mut dataplane = first();
            let with = |description, input: Frame, output: Frame| {
                row(program, description, input, sent(output.options(&option(SERVICE))))
            };
            let without = |description, input, output| row(program, description, input, sent(output));
            dataplane.check(&[
                with("SYN", tcp(CLIENT, SERVICE).flags(SYN), tcp(CLIENT, POD).flags(SYN)),
                with("SYN again", tcp(CLIENT, SERVICE).flags(SYN), tcp(CLIENT, POD).flags(SYN)),
                without("ACK", tcp(CLIENT, SERVICE), tcp(CLIENT, POD)),
                without(
                    "data",
                    tcp(CLIENT, SERVICE).payload(&[7; MTU - 40]),
                    tcp(CLIENT, POD).payload(&[7; MTU - 40]),
                ),
                with("SYN late", tcp(CLIENT, SERVICE).flags(SYN), tcp(CLIENT, POD).flags(SYN)),
                with("in the middle of another", tcp(ANOTHER, SERVICE), tcp(ANOTHER, POD)),
                without("which goes on", tcp(ANOTHER, SERVICE), tcp(ANOTHER, POD)),
                with("a datagram", udp(CLIENT, SERVICE), udp(CLIENT, POD)),
                with("the next", udp(CLIENT, SERVICE), udp(CLIENT, POD)),
                with(
                    "one without a checksum",
                    udp(CLIENT, SERVICE).without_checksum(),
                    udp(CLIENT, POD).without_checksum(),
                ),
                with("INIT", sctp(CLIENT, SERVICE, INIT), sctp(CLIENT, POD, INIT)),
                without("DATA", sctp(CLIENT, SERVICE, DATA), sctp(CLIENT, POD, DATA)),
                Row { program, ..dropped("its last hop", udp(CLIENT, SERVICE).ttl(1), "ttl-exceeded") },
                Row {
                    program,
                    ..dropped("the last hop of another", tcp(CLIENT, SERVICE).ttl(1), "ttl-exceeded")
                },
            ]);
            let flow = dataplane.flow::<Ip4>(TCP, CLIENT, SERVICE).expect("it is known");
            assert_eq!((flow.packets, flow.state), (6, FlowState::ESTABLISHED), "{program:?}");
            assert_eq!(Ip4::flows(&mut dataplane).len(), 4, "no entry for answers, which do not come here");
        }
    });
}

#[test]
fn what_does_not_fit_with_the_option_is_told_its_sender() {
    if !knows_mtus() {
        return;
    }
    in_a_network(|| {
        let mut dataplane = first();
        let datagram = |to: &str, extra: usize| udp(CLIENT, to).payload(&vec![7; MTU - 28 - 8 + extra]);
        let fits = sent(datagram(POD, 0).options(&option(SERVICE)));
        let told = |quoted: &Frame| {
            let frame = icmp("192.0.2.80", (3, 4, MTU as u32 - 8), quoted).quoting(28).id(0);
            frame.fragment(0x4000).link([0; 6], [2, 0, 0, 0, 0, 1])
        };
        let part = |extra| udp(CLIENT, SERVICE).payload(&[7; 4_000]).part(0, MTU - 20 - 12 + extra);
        dataplane.check(&[
            row(Program::XdpUplink, "fits", datagram(SERVICE, 0), fits.clone()),
            row(Program::TcUplink, "fits", datagram(SERVICE, 0), fits),
            untouched(Program::XdpUplink, "one more byte is the stack's", datagram(SERVICE, 1)),
            Row {
                drop: Some("too-big"),
                ..row(Program::TcUplink, "is told", datagram(SERVICE, 1), told(&datagram(SERVICE, 1)))
            },
            Row {
                drop: Some("too-big"),
                ..row(Program::TcUplink, "so is a fragment", part(8), told(&part(8)))
            },
        ]);
    });
}

#[test]
fn fragments_and_other_options_go_along() {
    in_a_network(|| {
        let mut dataplane = first();
        let datagram = |to| udp(CLIENT, to).payload(&[7; 100]);
        let both = [&option(SERVICE)[..], &ROUTER_ALERT].concat();
        let full = [&option(SERVICE)[..], &[1; 32]].concat();
        let open = |to| tcp(CLIENT, to).flags(SYN);
        let tc = |description, input, output| row(Program::TcUplink, description, input, sent(output));
        dataplane.check(&[
            tc(
                "the first fragment",
                datagram(SERVICE).part(0, 64),
                datagram(POD).part(0, 64).options(&option(SERVICE)),
            ),
            tc("the second", datagram(SERVICE).part(64, 64), datagram(POD).part(64, 64)),
            tc("another option", open(SERVICE).options(&ROUTER_ALERT), open(POD).options(&both)),
            tc("as many as there is room for", open(SERVICE).options(&[1; 32]), open(POD).options(&full)),
            dropped("no room", open(SERVICE).options(&[1; 36]), "rewrite-failed"),
            tc("which an established one needs not", tcp(CLIENT, SERVICE), tcp(CLIENT, POD)),
            tc(
                "whatever its options",
                tcp(CLIENT, SERVICE).options(&[1; 40]),
                tcp(CLIENT, POD).options(&[1; 40]),
            ),
        ]);
    });
}

/// Routers beyond the backend's node send their errors to the frontend, and so to this node.
#[test]
fn an_error_about_an_answer_reaches_the_backend() {
    in_a_network(|| {
        let mut dataplane = first();
        let error = |from: &str, to: &str| icmp("203.0.113.1", TIME_EXCEEDED, &udp(from, to));
        dataplane.check(&[
            row(
                Program::TcUplink,
                "opens",
                udp(CLIENT, SERVICE),
                sent(udp(CLIENT, POD).options(&option(SERVICE))),
            ),
            row(Program::TcUplink, "an error", error(SERVICE, CLIENT), sent(error(POD, CLIENT))),
        ]);
        let mut dataplane = second();
        dataplane.check(&[
            named("opens", udp(CLIENT, POD), udp(CLIENT, POD)),
            arrives("it is the pod's", error(POD, CLIENT), error(POD, CLIENT)),
            answer(
                "an error of the pod is the frontend's",
                icmp("10.244.8.5", PORT_UNREACHABLE, &udp(CLIENT, POD)),
                icmp("192.0.2.80", PORT_UNREACHABLE, &udp(CLIENT, SERVICE)),
            ),
        ]);
    });
}

#[test]
fn a_named_frontend_answers() {
    let mut dataplane = second();
    let opening = tcp(CLIENT, POD).flags(SYN);
    dataplane.check(&[
        untouched(Program::XdpUplink, "XDP leaves it to TC", opening.clone().options(&option(SERVICE))),
        named("SYN", opening.clone(), opening.clone()),
        named("SYN again", opening.clone(), opening.clone()),
        answer("SYN-ACK", tcp(POD, CLIENT).flags(SYN | ACK), tcp(SERVICE, CLIENT).flags(SYN | ACK)),
    ]);
    let state = |dataplane: &mut Dataplane, from, to| dataplane.flow::<Ip4>(TCP, from, to).map(|it| it.state);
    assert_eq!(state(&mut dataplane, CLIENT, POD), Some(FlowState::OPENING), "an answer proves no client");
    dataplane.check(&[
        untouched(Program::XdpUplink, "XDP leaves the others to TC too", tcp(CLIENT, POD)),
        arrives("ACK", tcp(CLIENT, POD), tcp(CLIENT, POD)),
        arrives("data", tcp(CLIENT, POD).payload(&[7; 900]), tcp(CLIENT, POD).payload(&[7; 900])),
        answer("data", tcp(POD, CLIENT).payload(&[7; 900]), tcp(SERVICE, CLIENT).payload(&[7; 900])),
    ]);
    assert_eq!(state(&mut dataplane, CLIENT, POD), Some(FlowState::ESTABLISHED));
    assert_eq!(state(&mut dataplane, POD, CLIENT), Some(FlowState::ESTABLISHED));
    let flow = dataplane.flow::<Ip4>(TCP, CLIENT, POD).expect("it is known");
    assert_eq!((flow.packets, flow.backend), (4, 1), "each packet once");
    dataplane.check(&[
        named("a late SYN harms nothing", opening.clone(), opening),
        arrives("FIN", tcp(CLIENT, POD).flags(FIN | ACK), tcp(CLIENT, POD).flags(FIN | ACK)),
        answer("FIN", tcp(POD, CLIENT).flags(FIN | ACK), tcp(SERVICE, CLIENT).flags(FIN | ACK)),
    ]);
    assert_eq!(state(&mut dataplane, CLIENT, POD), Some(FlowState::CLOSED));
    let again = tcp(CLIENT, POD).flags(SYN);
    dataplane.check(&[
        arrives("the port again, by a node port", again.clone().options(&option(NODE_PORT)), again),
        answer("SYN-ACK", tcp(POD, CLIENT).flags(SYN | ACK), tcp(NODE_PORT, CLIENT).flags(SYN | ACK)),
        named("a datagram", udp(CLIENT, POD), udp(CLIENT, POD)),
        answer("its answer", udp(POD, CLIENT), udp(SERVICE, CLIENT)),
        named("the next", udp(CLIENT, POD), udp(CLIENT, POD)),
        named("INIT", sctp(CLIENT, POD, INIT), sctp(CLIENT, POD, INIT)),
        arrives("DATA", sctp(CLIENT, POD, DATA), sctp(CLIENT, POD, DATA)),
        answer("DATA", sctp(POD, CLIENT, DATA), sctp(SERVICE, CLIENT, DATA)),
        named("in the middle of another", tcp(ANOTHER, POD), tcp(ANOTHER, POD)),
        answer("whose answers are the frontend's", tcp(POD, ANOTHER), tcp(SERVICE, ANOTHER)),
    ]);
    assert_eq!(state(&mut dataplane, ANOTHER, POD), Some(FlowState::OPENING), "one packet proves nobody");
}

#[test]
fn only_the_option_is_taken_out() {
    let mut dataplane = second();
    let datagram = udp(CLIENT, POD).payload(&[7; 100]);
    let both = [&option(SERVICE)[..], &ROUTER_ALERT].concat();
    let open = tcp(CLIENT, POD).flags(SYN);
    dataplane.check(&[
        arrives("another behind it", open.clone().options(&both), open.options(&ROUTER_ALERT)),
        named("the first fragment", datagram.clone().part(0, 64), datagram.clone().part(0, 64)),
        arrives("the second", datagram.clone().part(64, 64), datagram.clone().part(64, 64)),
        named("the second, as a router cuts it", datagram.clone().part(64, 64), datagram.part(64, 64)),
    ]);
}

#[test]
fn a_backend_in_the_nodes_own_network_gets_it_by_the_stack() {
    let (server, port) = ("198.51.100.1:8080", OWN_NODE_PORT);
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, SERVICE, &[server], true);
    let passes = |description, input, output| Row {
        verdict: Verdict::Pass,
        ..row(Program::TcUplink, description, input, output)
    };
    let open = tcp(CLIENT, server).flags(SYN);
    dataplane.check(&[
        passes("SYN", open.clone().options(&option(SERVICE)), open),
        untouched(Program::XdpUplink, "XDP counts nothing", tcp(CLIENT, server)),
        passes("ACK", tcp(CLIENT, server), tcp(CLIENT, server)),
        untouched(Program::TcUplink, "another port", tcp(CLIENT, port)),
    ]);
    let flow = dataplane.flow::<Ip4>(TCP, CLIENT, server).expect("it is known");
    assert_eq!((flow.packets, flow.state), (2, FlowState::ESTABLISHED));
    assert!(dataplane.flow::<Ip4>(TCP, server, CLIENT).is_some(), "its answers are the frontend's");
}

#[test]
fn a_lost_half_is_found_again() {
    let mut dataplane = second();
    let fin = FIN | ACK;
    dataplane.check(&[
        named("SYN", tcp(CLIENT, POD).flags(SYN), tcp(CLIENT, POD).flags(SYN)),
        arrives("ACK", tcp(CLIENT, POD), tcp(CLIENT, POD)),
    ]);
    let half = |dataplane: &mut Dataplane, from, to| -> Flow<Ip4> {
        let flow = dataplane.flow::<Ip4>(TCP, from, to).expect("it is there");
        Flow { packets: 0, bytes: 0, last_seen_jiffies: 0, state: FlowState::OPENING, ..flow }
    };
    let (question, reply) = (half(&mut dataplane, CLIENT, POD), half(&mut dataplane, POD, CLIENT));
    dataplane.remove_flow::<Ip4>(TCP, CLIENT, POD);
    // A packet that changes the flow's life looks after the other half at once.
    dataplane.check(&[answer("FIN", tcp(POD, CLIENT).flags(fin), tcp(SERVICE, CLIENT).flags(fin))]);
    assert_eq!(half(&mut dataplane, CLIENT, POD), question);
    dataplane.remove_flow::<Ip4>(TCP, POD, CLIENT);
    dataplane.check(&[arrives("FIN", tcp(CLIENT, POD).flags(fin), tcp(CLIENT, POD).flags(fin))]);
    assert_eq!(half(&mut dataplane, POD, CLIENT), reply);
    dataplane.forget_flows();
    dataplane.check(&[
        named("a datagram", udp(CLIENT, POD), udp(CLIENT, POD)),
        answer("its answer", udp(POD, CLIENT), udp(SERVICE, CLIENT)),
    ]);
    dataplane.remove_flow::<Ip4>(UDP, POD, CLIENT);
    dataplane.check(&[
        named("the next", udp(CLIENT, POD), udp(CLIENT, POD)),
        answer("its answer", udp(POD, CLIENT), udp(SERVICE, CLIENT)),
    ]);
}

#[test]
fn nobody_forges_a_frontend() {
    let mut dataplane = second();
    let open = || tcp(ANOTHER, POD).flags(SYN);
    let forged =
        |description, frontend| dropped(description, open().options(&option(frontend)), "unknown-frontend");
    dataplane.check(&[
        forged("no frontend", "192.0.2.99:80"),
        forged("another port", "192.0.2.80:81"),
        forged("what another backend serves", FOREIGN),
        forged("a node port of who is no node", "198.51.100.9:30080"),
        forged("no node port", "198.51.100.2:30081"),
        dropped(
            "another protocol's backend",
            tcp(ANOTHER, OTHER_POD).flags(SYN).options(&option(SERVICE)),
            "unknown-frontend",
        ),
        dropped(
            "in a packet for a frontend",
            tcp(ANOTHER, SERVICE).flags(SYN).options(&option(SERVICE)),
            "unknown-frontend",
        ),
        untouched(
            Program::TcUplink,
            "in a packet for nobody",
            tcp(ANOTHER, "10.244.8.5:22").flags(SYN).options(&option(SERVICE)),
        ),
        untouched(Program::TcPod, "in a pod's own", tcp(OTHER_POD, POD).flags(SYN).options(&option(SERVICE))),
    ]);
    assert_eq!(Ip4::flows(&mut dataplane), [], "nothing is remembered");
    dataplane.check(&[
        named("somebody's connection", tcp(CLIENT, POD).flags(SYN), tcp(CLIENT, POD).flags(SYN)),
        arrives("goes on", tcp(CLIENT, POD), tcp(CLIENT, POD)),
        dropped(
            "in his name, another true frontend",
            tcp(CLIENT, POD).options(&option(NODE_PORT)),
            "ports-exhausted",
        ),
        dropped(
            "the same with a SYN",
            tcp(CLIENT, POD).flags(SYN).options(&option(NODE_PORT)),
            "ports-exhausted",
        ),
        answer("it is as it was", tcp(POD, CLIENT), tcp(SERVICE, CLIENT)),
    ]);
}

#[test]
fn malformed_options_are_nobodys() {
    let mut dataplane = second();
    let open = |parts: &[&[u8]]| tcp(CLIENT, POD).flags(SYN).options(&parts.concat());
    let whole = option(SERVICE);
    let (port, address) = whole[2..].split_at(2);
    let untouched = |description, input| untouched(Program::TcUplink, description, input);
    let rows = [
        untouched("too short", open(&[&[0x9a, 6], port, &address[..2], &[0, 0]])),
        untouched("too long", open(&[&[0x9a, 12], port, address, &[0; 4]])),
        untouched("ends behind the header", open(&[&[0x9a, 8], port])),
        untouched("not the first", open(&[&[1], &whole, &[0; 3]])),
        untouched("beside a route of the sender's", open(&[&whole, &[131, 3, 4, 0]])),
        untouched("about another protocol", open(&[&whole]).protocol(ICMP)),
    ];
    dataplane.check(&rows);
    dataplane.check(&[dropped("ends behind the packet", open(&[&whole]).cut(14 + 24), "truncated")]);
    assert_eq!(Ip4::flows(&mut dataplane), []);
}

#[test]
fn source_ranges_bind_at_the_backends_node_too() {
    let mut dataplane = second();
    let service = dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, "192.0.2.82:80", &[POD], true);
    let at = (Scope::EXTERNAL, TCP);
    dataplane.add_flags::<Ip4>(at, "192.0.2.82:80", &service, Frontend::FLAG_SOURCE_RANGES);
    let range = SourceRange { service: service.value.service, address: address::<Ip4>("203.0.113.9") };
    dataplane
        .trie::<SourceRange<Ip4>, u32>("source_ranges_v4")
        .insert(&aya::maps::lpm_trie::Key::new(SourceRangeKey::<Ip4>::ALL_BITS, range), 0_u32, 0)
        .expect("room");
    let open = |from| tcp(from, POD).flags(SYN);
    dataplane.check(&[
        dropped("not admitted", open(ANOTHER).options(&option("192.0.2.82:80")), "source-range"),
        arrives("admitted", open(CLIENT).options(&option("192.0.2.82:80")), open(CLIENT)),
    ]);
}

/// The agent gives no IPv6 frontend the flag. Should one have it, its packets take the tunnel.
#[test]
fn ipv6_takes_the_tunnel() {
    in_a_network(|| {
        let (client, service, pod) =
            ("[2001:db8:9::9]:40000", "[2001:db8:80::80]:80", "[fd00:244:8::5]:8080");
        let mut dataplane = Dataplane::new();
        let uplink = Uplink { address_v6: address("2001:db8::1"), ..Uplink::default() };
        dataplane.hash("uplinks").insert(1_u32, uplink, 0).expect("room");
        let made = dataplane.service::<Ip6>(Scope::EXTERNAL, TCP, service, &[pod], false);
        let at = (Scope::EXTERNAL, TCP);
        dataplane.return_directly::<Ip6>(at, service, &made, &[pod], address("2001:db8::2"));
        let flags = Frontend::FLAG_DIRECT_RETURN | Frontend::FLAG_OPTION;
        dataplane.add_flags::<Ip6>(at, service, &made, flags);
        let open = tcp(client, service).flags(SYN);
        dataplane.check(&[row(
            Program::TcUplink,
            "SYN",
            open.clone(),
            packets::frame::inside("2001:db8::1", "2001:db8::2", &open.ttl(63)).link([0; 6], NEXT),
        )]);
        let flow = dataplane.flow::<Ip6>(TCP, client, service).expect("it is open");
        assert_eq!(flow.flags & Flow::<Ip6>::FLAG_OPTION, 0);
        assert_eq!(flow.destination_port, Be16::new(0));
    });
}
