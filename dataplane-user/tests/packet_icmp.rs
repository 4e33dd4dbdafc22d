//! ICMP errors about packets that were rewritten: outside and in the quote, byte by byte.

mod packets;

use packets::{
    Dataplane, Frame, GATEWAY_V4, HOST_MAC, POD_MAC, Program, Row, Verdict,
    frame::{Kind, SYN, TCP, UDP, icmp, tcp, udp},
};
use weir_dataplane_ebpf::{Ip4, Ip6, Scope};

const NODE: &str = "192.168.0.1:30080";
const CLIENT: &str = "192.168.0.9:40000";
const POD: &str = "10.244.0.5:8080";
const ROUTER: &str = "172.16.0.254";

const NODE_V6: &str = "[fd00::1]:30080";
const CLIENT_V6: &str = "[fd00::9]:40000";
const POD_V6: &str = "[fd00:244::5]:8080";
const ROUTER_V6: &str = "fd00:172::254";

const PORT_UNREACHABLE: Kind = (3, 3, 0);
const FRAGMENTATION_NEEDED: Kind = (3, 4, 1400);
const TIME_EXCEEDED: Kind = (11, 0, 0);
const PARAMETER_PROBLEM: Kind = (12, 0, 0x0100_0000);
const PORT_UNREACHABLE_V6: Kind = (1, 4, 0);
const PACKET_TOO_BIG_V6: Kind = (2, 0, 1280);
const TIME_EXCEEDED_V6: Kind = (3, 0, 0);
const PARAMETER_PROBLEM_V6: Kind = (4, 1, 6);

/// A `NodePort` with a pod of this node behind it, a client outside with an open flow of each transport, by way of
/// `program`.
fn node_port(program: Program) -> Dataplane {
    let mut dataplane = Dataplane::new();
    for protocol in [TCP, UDP] {
        dataplane.service::<Ip4>(Scope::EXTERNAL, protocol, NODE, &[POD], true);
        dataplane.service::<Ip6>(Scope::EXTERNAL, protocol, NODE_V6, &[POD_V6], true);
    }
    dataplane.endpoint::<Ip4>("10.244.0.5");
    dataplane.endpoint::<Ip6>("fd00:244::5");
    for (client, node) in [(CLIENT, NODE), (CLIENT_V6, NODE_V6)] {
        dataplane.run(program, &tcp(client, node).flags(SYN).bytes());
        dataplane.run(program, &udp(client, node).bytes());
    }
    dataplane
}

fn row(program: Program, description: &'static str, input: Frame, verdict: Verdict, output: Frame) -> Row {
    Row { description, program, input, verdict, output: Some(output), drop: None }
}

/// Arrives on the uplink, and goes into the pod.
fn into_pod(description: &'static str, input: Frame, output: Frame) -> Row {
    row(Program::TcUplink, description, input, Verdict::Redirect, output.ttl(63).link(HOST_MAC, POD_MAC))
}

/// The same for an error that only its quote changes of.
fn about(description: &'static str, from: &str, kind: Kind, sent: &Frame, translated: &Frame) -> Row {
    into_pod(description, icmp(from, kind, sent), icmp(from, kind, translated))
}

/// Comes from a pod, and leaves by the uplink.
fn out(description: &'static str, input: Frame, output: Frame) -> Row {
    row(Program::TcPod, description, input, Verdict::Redirect, output.ttl(63))
}

#[test]
fn errors_about_a_pods_answers_reach_the_pod() {
    for opened_by in [Program::TcUplink, Program::XdpUplink] {
        node_port(opened_by).check(&[
            about(
                "a router's small MTU",
                ROUTER,
                FRAGMENTATION_NEEDED,
                &tcp(NODE, CLIENT),
                &tcp(POD, CLIENT),
            ),
            into_pod(
                "no more than RFC 792 asks for",
                icmp(ROUTER, FRAGMENTATION_NEEDED, &tcp(NODE, CLIENT)).quoting(28),
                icmp(ROUTER, FRAGMENTATION_NEEDED, &tcp(POD, CLIENT)).quoting(28),
            ),
            into_pod(
                "a quote that ends where the TCP checksum starts",
                icmp(ROUTER, FRAGMENTATION_NEEDED, &tcp(NODE, CLIENT)).quoting(36),
                icmp(ROUTER, FRAGMENTATION_NEEDED, &tcp(POD, CLIENT)).quoting(36),
            ),
            about("a hop too many", ROUTER, TIME_EXCEEDED, &udp(NODE, CLIENT), &udp(POD, CLIENT)),
            about("a parameter", ROUTER, PARAMETER_PROBLEM, &udp(NODE, CLIENT), &udp(POD, CLIENT)),
            about(
                "a datagram without checksum stays without",
                ROUTER,
                TIME_EXCEEDED,
                &udp(NODE, CLIENT).without_checksum(),
                &udp(POD, CLIENT).without_checksum(),
            ),
            about(
                "the client's own port is closed",
                "192.168.0.9",
                PORT_UNREACHABLE,
                &udp(NODE, CLIENT),
                &udp(POD, CLIENT),
            ),
        ]);
    }
}

#[test]
fn errors_about_a_clients_packets_reach_the_client() {
    node_port(Program::TcUplink).check(&[
        out(
            "the pod's port is closed: the service's is",
            icmp("10.244.0.5", PORT_UNREACHABLE, &udp(CLIENT, POD)),
            icmp("192.168.0.1", PORT_UNREACHABLE, &udp(CLIENT, NODE)),
        ),
        out(
            "a router behind the pod keeps its address",
            icmp(ROUTER, FRAGMENTATION_NEEDED, &tcp(CLIENT, POD).payload(&[7; 600])).quoting(548),
            icmp(ROUTER, FRAGMENTATION_NEEDED, &tcp(CLIENT, NODE).payload(&[7; 600])).quoting(548),
        ),
    ]);
}

#[test]
fn ipv6_takes_the_same_path() {
    node_port(Program::TcUplink).check(&[
        into_pod(
            "a router's small MTU",
            icmp(ROUTER_V6, PACKET_TOO_BIG_V6, &tcp(NODE_V6, CLIENT_V6).payload(&[7; 1300])).quoting(1232),
            icmp(ROUTER_V6, PACKET_TOO_BIG_V6, &tcp(POD_V6, CLIENT_V6).payload(&[7; 1300])).quoting(1232),
        ),
        into_pod(
            "a short quote",
            icmp(ROUTER_V6, PACKET_TOO_BIG_V6, &tcp(NODE_V6, CLIENT_V6)).quoting(48),
            icmp(ROUTER_V6, PACKET_TOO_BIG_V6, &tcp(POD_V6, CLIENT_V6)).quoting(48),
        ),
        about(
            "a hop too many",
            ROUTER_V6,
            TIME_EXCEEDED_V6,
            &udp(NODE_V6, CLIENT_V6),
            &udp(POD_V6, CLIENT_V6),
        ),
        about(
            "a parameter",
            ROUTER_V6,
            PARAMETER_PROBLEM_V6,
            &udp(NODE_V6, CLIENT_V6),
            &udp(POD_V6, CLIENT_V6),
        ),
        about(
            "the client's own port is closed",
            "fd00::9",
            PORT_UNREACHABLE_V6,
            &udp(NODE_V6, CLIENT_V6),
            &udp(POD_V6, CLIENT_V6),
        ),
        out(
            "the pod's port is closed: the service's is",
            icmp("fd00:244::5", PORT_UNREACHABLE_V6, &udp(CLIENT_V6, POD_V6)),
            icmp("fd00::1", PORT_UNREACHABLE_V6, &udp(CLIENT_V6, NODE_V6)),
        ),
    ]);
}

#[test]
fn a_masqueraded_flow_is_found_from_both_sides() {
    let remote = "10.244.7.5:8080";
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::EXTERNAL, UDP, NODE, &[remote], false);
    dataplane.run(Program::TcUplink, &udp(CLIENT, NODE).bytes());
    let port = dataplane.flow::<Ip4>(UDP, CLIENT, NODE).expect("client's half").source_port.get();
    let gateway = format!("{GATEWAY_V4}:{port}");
    let uplink = |description, input, output: Frame| {
        row(Program::TcUplink, description, input, Verdict::Redirect, output.ttl(63))
    };
    dataplane.check(&[
        uplink(
            "a router towards the backend",
            icmp(ROUTER, FRAGMENTATION_NEEDED, &udp(&gateway, remote)),
            icmp(ROUTER, FRAGMENTATION_NEEDED, &udp(CLIENT, NODE)),
        ),
        uplink(
            "the backend",
            icmp("10.244.7.5", PORT_UNREACHABLE, &udp(&gateway, remote)),
            icmp("192.168.0.1", PORT_UNREACHABLE, &udp(CLIENT, NODE)),
        ),
        uplink(
            "a router towards the client",
            icmp(ROUTER, FRAGMENTATION_NEEDED, &udp(NODE, CLIENT)),
            icmp(ROUTER, FRAGMENTATION_NEEDED, &udp(remote, &gateway)),
        ),
        uplink(
            "the client, in the node's name",
            icmp("192.168.0.9", PORT_UNREACHABLE, &udp(NODE, CLIENT)),
            icmp(GATEWAY_V4, PORT_UNREACHABLE, &udp(remote, &gateway)),
        ),
    ]);
}

#[test]
fn a_pod_hears_of_its_service_and_of_itself() {
    let (service, client, itself) = ("10.96.0.10:80", "10.244.0.9:40000", "10.244.0.5:40000");
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, UDP, service, &[POD], true);
    dataplane.endpoint::<Ip4>("10.244.0.5");
    dataplane.endpoint::<Ip4>("10.244.0.9");
    dataplane.run(Program::TcPod, &udp(client, service).bytes());
    dataplane.run(Program::TcPod, &udp(itself, service).bytes());
    let port = dataplane.flow::<Ip4>(UDP, itself, service).expect("its half").source_port.get();
    let gateway = format!("{GATEWAY_V4}:{port}");
    let pod = |description, quoted: &Frame, output: &Frame| Row {
        program: Program::TcPod,
        ..into_pod(
            description,
            icmp("10.244.0.5", PORT_UNREACHABLE, quoted),
            icmp("10.96.0.10", PORT_UNREACHABLE, output),
        )
    };
    dataplane.check(&[
        pod("another pod", &udp(client, POD), &udp(client, service)),
        pod("itself, which the node stood in for", &udp(&gateway, POD), &udp(itself, service)),
    ]);
}

#[test]
fn without_a_way_the_stack_has_it() {
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::EXTERNAL, UDP, NODE, &[POD], true);
    dataplane.run(Program::XdpUplink, &udp(CLIENT, NODE).bytes());
    let translated = icmp(ROUTER, TIME_EXCEEDED, &udp(POD, CLIENT));
    dataplane.check(&[row(
        Program::TcUplink,
        "no pod link",
        icmp(ROUTER, TIME_EXCEEDED, &udp(NODE, CLIENT)),
        Verdict::Pass,
        translated.clone(),
    )]);
    node_port(Program::TcUplink).check(&[row(
        Program::TcUplink,
        "no hop left",
        icmp(ROUTER, TIME_EXCEEDED, &udp(NODE, CLIENT)).ttl(1),
        Verdict::Pass,
        translated.ttl(1),
    )]);
}

#[test]
fn what_is_not_about_a_flow_passes_untouched() {
    let untouched =
        |program, description, input: Frame| row(program, description, input.clone(), Verdict::Pass, input);
    let up = |description, input| untouched(Program::TcUplink, description, input);
    let answer = udp(NODE, CLIENT);
    node_port(Program::TcUplink).check(&[
        untouched(Program::XdpUplink, "XDP leaves it to tc", icmp(ROUTER, TIME_EXCEEDED, &answer)),
        up("an unknown flow", icmp(ROUTER, TIME_EXCEEDED, &udp("192.168.0.1:30081", CLIENT))),
        up("the flow's own direction", icmp(ROUTER, TIME_EXCEEDED, &udp(CLIENT, NODE))),
        up("an echo request", icmp(ROUTER, (8, 0, 1), &answer)),
        up("a redirect", icmp(ROUTER, (5, 1, 1), &answer)),
        up("sent to somebody else", icmp(ROUTER, TIME_EXCEEDED, &answer).sent_to("192.168.0.2")),
        up("about a first fragment", icmp(ROUTER, TIME_EXCEEDED, &answer.clone().fragment(0x2000))),
        up("about a later fragment", icmp(ROUTER, TIME_EXCEEDED, &answer.clone().fragment(0x0010))),
        up("about options", icmp(ROUTER, TIME_EXCEEDED, &answer.clone().options(&[1, 1, 1, 0]))),
        up("about DCCP", icmp(ROUTER, TIME_EXCEEDED, &answer.clone().protocol(33))),
        up("a fragment itself", icmp(ROUTER, TIME_EXCEEDED, &answer).fragment(0x2000)),
        up("too short a quote", icmp(ROUTER, TIME_EXCEEDED, &answer).quoting(27)),
        up("no quote", icmp(ROUTER, TIME_EXCEEDED, &answer).quoting(0)),
        up(
            "too short a quote, IPv6",
            icmp(ROUTER_V6, TIME_EXCEEDED_V6, &udp(NODE_V6, CLIENT_V6)).quoting(47),
        ),
        up("a neighbour solicitation", icmp(ROUTER_V6, (135, 0, 0), &udp(NODE_V6, CLIENT_V6))),
    ]);
}
