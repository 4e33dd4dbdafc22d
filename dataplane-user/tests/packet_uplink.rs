//! Packets from outside: `xdp_uplink`, and `tc_uplink` behind it.

mod packets;

use packets::{
    Dataplane, Family, HOST_MAC, POD_MAC, Program, Row, Verdict,
    frame::{ABORT, ACK, C_TAG, DATA, FIN, INIT, INIT_ACK, RST, S_TAG, SCTP, SYN, TCP, UDP, sctp, tcp, udp},
};
use weir_dataplane_ebpf::{
    Backend, FlowState, Ip4, Ip6, Scope, filter,
    maps::{MASQUERADE_PORT_FIRST, MASQUERADE_PORTS},
};

const NODE: &str = "192.168.0.1:30080";
const CLIENT: &str = "192.168.0.9:40000";
const POD: &str = "10.244.0.5:8080";

fn node_port() -> Dataplane {
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, NODE, &[POD], true);
    dataplane.service::<Ip4>(Scope::EXTERNAL, UDP, NODE, &[POD], true);
    dataplane
}

/// A row of XDP that changes the packet, or leaves it alone.
fn xdp(description: &'static str, input: packets::Frame, output: Option<packets::Frame>) -> Row {
    Row { description, program: Program::XdpUplink, input, verdict: Verdict::Pass, output, drop: None }
}

fn dropped(description: &'static str, input: packets::Frame, reason: &'static str) -> Row {
    Row {
        description,
        program: Program::XdpUplink,
        input,
        verdict: Verdict::Drop,
        output: None,
        drop: Some(reason),
    }
}

#[test]
fn node_port_to_a_pod_of_this_node() {
    node_port().check(&[
        xdp("first TCP packet", tcp(CLIENT, NODE).flags(SYN), Some(tcp(CLIENT, POD).flags(SYN))),
        xdp("the flow goes on", tcp(CLIENT, NODE), Some(tcp(CLIENT, POD))),
        xdp("UDP is its own flow", udp(CLIENT, NODE), Some(udp(CLIENT, POD))),
        xdp("UDP goes on", udp(CLIENT, NODE), Some(udp(CLIENT, POD))),
        xdp(
            "a datagram without checksum stays without",
            udp(CLIENT, NODE).without_checksum(),
            Some(udp(CLIENT, POD).without_checksum()),
        ),
    ]);
}

#[test]
fn ipv6_takes_the_same_path() {
    let (node, client, pod) = ("[fd00::1]:30080", "[fd00::9]:40000", "[fd00:244::5]:8080");
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip6>(Scope::EXTERNAL, TCP, node, &[pod], true);
    dataplane.service::<Ip6>(Scope::EXTERNAL, UDP, node, &[pod], true);
    dataplane.check(&[
        xdp("first TCP packet", tcp(client, node).flags(SYN), Some(tcp(client, pod).flags(SYN))),
        xdp("the flow goes on", tcp(client, node), Some(tcp(client, pod))),
        xdp("UDP", udp(client, node), Some(udp(client, pod))),
        xdp("UDP goes on", udp(client, node), Some(udp(client, pod))),
        xdp("an extension header is not read", tcp(client, node).protocol(44), None),
        xdp("ICMPv6 passes", tcp(client, node).protocol(58), None),
        dropped("too short for its headers", tcp(client, node).cut(60), "truncated"),
    ]);
}

/// The checksum covers the ports and not the addresses, and follows both ways.
#[test]
fn sctp_takes_the_same_path() {
    fn check<A: Family>(node: &str, client: &str, other: &str, pod: &str, same_port: &str) {
        let mut dataplane = Dataplane::new();
        dataplane.service::<A>(Scope::EXTERNAL, SCTP, node, &[pod], true);
        dataplane.service::<A>(Scope::EXTERNAL, SCTP, same_port, &[pod], true);
        let state = |dataplane: &mut Dataplane| {
            dataplane.flow::<A>(SCTP, client, node).expect("the client's half").state
        };
        let answer = |description, input, output| Row {
            program: Program::TcPod,
            verdict: Verdict::Redirect,
            ..xdp(description, input, Some(output))
        };
        dataplane.check(&[
            xdp("INIT", sctp(client, node, INIT), Some(sctp(client, pod, INIT))),
            answer("INIT ACK", sctp(pod, client, INIT_ACK), sctp(node, client, INIT_ACK).ttl(63)),
        ]);
        assert_eq!(state(&mut dataplane), FlowState::OPENING, "an answer proves no client");
        dataplane.check(&[
            xdp("data", sctp(client, node, DATA), Some(sctp(client, pod, DATA))),
            xdp(
                "much data",
                sctp(client, node, DATA).payload(&[7; 1_400]),
                Some(sctp(client, pod, DATA).payload(&[7; 1_400])),
            ),
            xdp(
                "a checksum that is left to a card stays so",
                sctp(client, node, DATA).unfinished_checksum(),
                Some(sctp(client, pod, DATA).unfinished_checksum()),
            ),
            xdp("a port that stays", sctp(other, same_port, INIT), Some(sctp(other, pod, INIT))),
        ]);
        assert_eq!(state(&mut dataplane), FlowState::ESTABLISHED);
        dataplane.check(&[xdp("ABORT", sctp(client, node, ABORT), Some(sctp(client, pod, ABORT)))]);
        assert_eq!(state(&mut dataplane), FlowState::CLOSED);
        dataplane.check(&[dropped(
            "half a header",
            sctp(client, node, DATA).payload(&[]).cut(14 + 20 + 14),
            "truncated",
        )]);
    }
    check::<Ip4>(NODE, CLIENT, "192.168.0.8:40000", POD, "192.168.0.3:8080");
    check::<Ip6>(
        "[fd00::1]:30080",
        "[fd00::9]:40000",
        "[fd00::8]:40000",
        "[fd00:244::5]:8080",
        "[fd00::3]:8080",
    );
}

#[test]
fn what_is_not_ours_passes_untouched() {
    node_port().check(&[
        xdp("another port of the node", tcp(CLIENT, "192.168.0.1:22"), None),
        xdp("another address", tcp(CLIENT, "192.168.0.2:30080"), None),
        xdp("ICMP", tcp(CLIENT, NODE).protocol(1), None),
        xdp("SCTP of another service", sctp(CLIENT, NODE, INIT), None),
        xdp("DCCP", tcp(CLIENT, NODE).protocol(33), None),
        xdp("IP options", tcp(CLIENT, NODE).options(&[1, 1, 1, 0]), None),
        xdp("the first fragment", udp(CLIENT, NODE).fragment(0x2000), None),
        xdp("a later fragment", udp(CLIENT, NODE).fragment(0x0010), None),
        xdp("a group's frame", tcp(CLIENT, NODE).link([2; 6], [1, 0, 0x5e, 0, 0, 1]), None),
        xdp("a server's SYN-ACK opens nothing", tcp(CLIENT, NODE).flags(SYN | ACK), None),
        xdp(
            "an unfinished checksum is tc_uplink's",
            tcp(CLIENT, NODE).flags(SYN).unfinished_checksum(),
            None,
        ),
    ]);
}

/// A tag says that the frame is another link's: that of its VLAN, which may be an uplink itself and gets it without the tag.
#[test]
fn tagged_frames_are_another_links() {
    let mut dataplane = node_port();
    dataplane.endpoint::<Ip4>("10.244.0.5");
    let frame = || tcp(CLIENT, NODE).flags(SYN);
    for program in [Program::XdpUplink, Program::TcUplink] {
        let tagged = |description, input| Row { program, ..xdp(description, input, None) };
        dataplane.check(&[
            tagged("802.1Q", frame().tag(C_TAG, 5)),
            tagged("a priority without a VLAN", frame().tag(C_TAG, 0)),
            tagged("a priority and a VLAN", frame().tag(C_TAG, 0xe005)),
            tagged("802.1ad", frame().tag(S_TAG, 5)),
            tagged("802.1ad and 802.1Q", frame().tag(S_TAG, 5).tag(C_TAG, 6)),
            tagged("ends in its tag", frame().tag(C_TAG, 5).cut(16)),
            tagged("half a header", frame().tag(C_TAG, 5).cut(30)),
        ]);
    }
    assert_eq!(Ip4::flows(&mut dataplane), [], "none is looked at");
    dataplane.check(&[xdp("without a tag", frame(), Some(tcp(CLIENT, POD).flags(SYN)))]);
}

#[test]
fn drops_are_counted() {
    node_port().check(&[
        dropped("half a TCP header", tcp(CLIENT, NODE).cut(14 + 20 + 10), "truncated"),
        dropped("half a UDP header", udp(CLIENT, NODE).cut(14 + 20 + 6), "truncated"),
        dropped("half an IPv4 header", tcp(CLIENT, NODE).cut(14 + 12), "truncated"),
    ]);
}

#[test]
fn a_flow_leaves_a_backend_that_is_gone() {
    let mut dataplane = Dataplane::new();
    let service = dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, NODE, &[POD], true);
    dataplane.check(&[xdp("opens", tcp(CLIENT, NODE).flags(SYN), Some(tcp(CLIENT, POD).flags(SYN)))]);

    dataplane.set_backend::<Ip4>(service.first_backend, POD, 0);
    dataplane.check(&[dropped("the maps are changing", tcp(CLIENT, NODE), "stale-backend")]);

    let other = "10.244.0.6:8080";
    let flags = Backend::<Ip4>::FLAG_ACTIVE | Backend::<Ip4>::FLAG_LOCAL;
    dataplane.set_backend::<Ip4>(service.first_backend, other, flags);
    dataplane.check(&[xdp("the id serves another pod now", tcp(CLIENT, NODE), Some(tcp(CLIENT, other)))]);
}

#[test]
fn a_frontend_may_go_while_its_flows_stay() {
    let mut dataplane = node_port();
    dataplane.check(&[xdp("opens", tcp(CLIENT, NODE).flags(SYN), Some(tcp(CLIENT, POD).flags(SYN)))]);
    let key = weir_dataplane_ebpf::FrontendKey {
        address: Ip4::from(std::net::Ipv4Addr::new(192, 168, 0, 1)),
        port: weir_dataplane_ebpf::Be16::new(30080),
        protocol: weir_dataplane_ebpf::Protocol::TCP,
        scope: Scope::EXTERNAL,
    };
    dataplane.hash::<_, weir_dataplane_ebpf::Frontend>("frontends_v4").remove(&key).expect("it was written");
    dataplane.check(&[
        xdp("the flow goes on", tcp(CLIENT, NODE), Some(tcp(CLIENT, POD))),
        xdp("no new one", tcp("192.168.0.9:40001", NODE).flags(SYN), None),
    ]);
}

#[test]
fn states_follow_the_flags() {
    use FlowState as S;

    let mut dataplane = node_port();
    let state = |dataplane: &mut Dataplane| {
        let client = dataplane.flow::<Ip4>(TCP, CLIENT, NODE).expect("client's half").state;
        let server = dataplane.flow::<Ip4>(TCP, POD, CLIENT).expect("backend's half").state;
        (client, server)
    };
    let send = |dataplane: &mut Dataplane, program, frame: packets::Frame| {
        dataplane.run(program, &frame.bytes());
        state(dataplane)
    };
    let up = Program::XdpUplink;
    assert_eq!(send(&mut dataplane, up, tcp(CLIENT, NODE).flags(SYN)), (S::OPENING, S::OPENING));
    let answer = tcp(POD, CLIENT).flags(SYN | ACK);
    assert_eq!(
        send(&mut dataplane, Program::TcPod, answer),
        (S::OPENING, S::OPENING),
        "SYN-ACK proves no client"
    );
    assert_eq!(send(&mut dataplane, up, tcp(CLIENT, NODE)), (S::ESTABLISHED, S::ESTABLISHED));
    assert_eq!(send(&mut dataplane, up, tcp(CLIENT, NODE).flags(FIN | ACK)), (S::CLOSING, S::ESTABLISHED));
    let fin = tcp(POD, CLIENT).flags(FIN | ACK);
    assert_eq!(send(&mut dataplane, Program::TcPod, fin), (S::CLOSED, S::CLOSED));
    assert_eq!(
        send(&mut dataplane, up, tcp(CLIENT, NODE).flags(SYN)),
        (S::OPENING, S::OPENING),
        "the port again"
    );
    assert_eq!(send(&mut dataplane, up, tcp(CLIENT, NODE)), (S::ESTABLISHED, S::ESTABLISHED));
    assert_eq!(send(&mut dataplane, up, tcp(CLIENT, NODE).flags(RST)), (S::CLOSED, S::CLOSED));
}

/// Opens a connection of this client, up to the client's acknowledgement.
fn connect(client: &str) -> [Row; 3] {
    [
        xdp("SYN", tcp(client, NODE).flags(SYN), Some(tcp(client, POD).flags(SYN))),
        Row {
            program: Program::TcPod,
            verdict: Verdict::Redirect,
            ..xdp(
                "SYN-ACK",
                tcp(POD, client).flags(SYN | ACK),
                Some(tcp(NODE, client).flags(SYN | ACK).ttl(63)),
            )
        },
        xdp("ACK", tcp(client, NODE), Some(tcp(client, POD))),
    ]
}

/// A million SYNs, while the table of established flows is full: no connection is lost, and new ones are served.
#[test]
fn a_flood_of_syns_harms_no_connection() {
    const OLD: [&str; 2] = ["192.168.0.9:40000", "192.168.0.9:40001"];
    const FLOOD: u32 = 1_000_000;
    let mut dataplane = Dataplane::with_flows(4);
    dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, NODE, &[POD], true);
    dataplane.check(&OLD.into_iter().flat_map(connect).collect::<Vec<_>>());
    let mut frame = tcp("11.0.0.0:0", NODE).flags(SYN).bytes();
    let mut flood = |dataplane: &mut Dataplane, from: u32| {
        for n in from..from + FLOOD / 4 {
            // The programs change checksums and verify none.
            frame[28..30].copy_from_slice(&((n >> 16) as u16).to_be_bytes());
            frame[34..36].copy_from_slice(&(n as u16).to_be_bytes());
            dataplane.run(Program::XdpUplink, &frame);
        }
    };
    for quarter in 0..4 {
        flood(&mut dataplane, quarter * FLOOD / 4);
        for old in OLD {
            dataplane.check(&[xdp("an old connection goes on", tcp(old, NODE), Some(tcp(old, POD)))]);
            assert_eq!(
                dataplane.flow::<Ip4>(TCP, old, NODE).expect("it stays").state,
                FlowState::ESTABLISHED
            );
        }
        let new = format!("192.168.0.10:{}", 40_000 + quarter);
        dataplane.check(&connect(&new));
        dataplane.check(&[xdp("a new connection goes on", tcp(&new, NODE), Some(tcp(&new, POD)))]);
    }
    assert_eq!(dataplane.drops(), [], "nothing is refused");
}

#[test]
fn tc_finishes_what_xdp_began() {
    let mut dataplane = node_port();
    dataplane.endpoint::<Ip4>("10.244.0.5");
    let tc = |description, input, verdict, output| Row {
        description,
        program: Program::TcUplink,
        input,
        verdict,
        output: Some(output),
        drop: None,
    };
    dataplane.check(&[
        tc(
            "what XDP translated goes into the pod",
            tcp(CLIENT, POD),
            Verdict::Redirect,
            tcp(CLIENT, POD).ttl(63).link(HOST_MAC, POD_MAC),
        ),
        tc(
            "a last hop is the stack's to refuse",
            tcp(CLIENT, POD).ttl(1),
            Verdict::Pass,
            tcp(CLIENT, POD).ttl(1),
        ),
        tc(
            "a new flow without XDP",
            tcp(CLIENT, NODE).flags(SYN),
            Verdict::Redirect,
            tcp(CLIENT, POD).flags(SYN).ttl(63).link(HOST_MAC, POD_MAC),
        ),
        tc(
            "it goes on",
            tcp(CLIENT, NODE),
            Verdict::Redirect,
            tcp(CLIENT, POD).ttl(63).link(HOST_MAC, POD_MAC),
        ),
        tc(
            "a datagram without checksum stays without",
            udp(CLIENT, NODE).without_checksum(),
            Verdict::Redirect,
            udp(CLIENT, POD).without_checksum().ttl(63).link(HOST_MAC, POD_MAC),
        ),
        tc(
            "host ports are the host's",
            tcp(CLIENT, "192.168.0.1:22"),
            Verdict::Pass,
            tcp(CLIENT, "192.168.0.1:22"),
        ),
    ]);
    dataplane.check(&[xdp("XDP leaves tc's flow to tc", tcp(CLIENT, NODE), None)]);
}

#[test]
fn a_backend_elsewhere_is_masqueraded_by_tc() {
    let remote = "10.244.7.5:8080";
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, NODE, &[remote], false);
    dataplane.check(&[xdp("XDP leaves it to tc", tcp(CLIENT, NODE).flags(SYN), None)]);
    let (verdict, _) = dataplane.run(Program::TcUplink, &tcp(CLIENT, NODE).flags(SYN).bytes());
    assert_eq!(verdict, Verdict::Redirect, "{:?}", dataplane.drops());
    let flow = dataplane.flow::<Ip4>(TCP, CLIENT, NODE).expect("client's half");
    let port = flow.source_port.get();
    assert!(
        (MASQUERADE_PORT_FIRST..MASQUERADE_PORT_FIRST + MASQUERADE_PORTS).contains(&port),
        "port {port} may collide with a socket"
    );
    let gateway = format!("{}:{port}", packets::GATEWAY_V4);
    dataplane.check(&[
        Row {
            description: "it goes on",
            program: Program::TcUplink,
            input: tcp(CLIENT, NODE),
            verdict: Verdict::Redirect,
            output: Some(tcp(&gateway, remote).ttl(63)),
            drop: None,
        },
        Row {
            description: "the answer leaves by the uplink",
            program: Program::TcUplink,
            input: tcp(remote, &gateway),
            verdict: Verdict::Redirect,
            output: Some(tcp(NODE, CLIENT).ttl(63)),
            drop: None,
        },
        xdp("XDP leaves the answer to tc", tcp(remote, &gateway), None),
        Row {
            description: "no hop left",
            program: Program::TcUplink,
            input: tcp(CLIENT, NODE).ttl(1),
            verdict: Verdict::Drop,
            output: None,
            drop: Some("ttl-exceeded"),
        },
    ]);
}

/// The agent sets bits before it shows frontends. A packet that no bit speaks for costs no look-up, even of its flow.
#[test]
fn the_filter_decides_what_is_looked_up() {
    let mut dataplane = node_port();
    dataplane.check(&[xdp("with its bit", tcp(CLIENT, NODE).flags(SYN), Some(tcp(CLIENT, POD).flags(SYN)))]);
    for word in 0..filter::WORDS {
        dataplane.array::<u64>("filter").set(word, 0, 0).expect("within the bound");
    }
    dataplane.check(&[xdp("without", tcp(CLIENT, NODE), None)]);
}
