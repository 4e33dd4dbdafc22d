//! Pods' packets to addresses outside the cluster, and the answers to them.

mod packets;

use packets::{
    Dataplane, Family, Frame, HOST_MAC, POD_MAC, Program, Row, Verdict,
    frame::{
        ACK, DATA, FIN, ICMP, ICMPV6, INIT, INIT_ACK, Kind, RST, SCTP, SYN, TCP, UDP, echo, icmp, sctp, tcp,
        udp,
    },
};
use weir_dataplane_ebpf::{
    Endpoint, Flow, FlowState, Ip4, Ip6, Mac, NodeConfig, Scope, Uplink, hash,
    maps::{MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, MASQUERADE_TRIES},
};
use weir_tests::Namespace;

/// What a family's addresses are called.
struct Names {
    pod: &'static str,
    pod_ip: &'static str,
    another_pod: &'static str,
    another_pod_ip: &'static str,
    /// Not this node's.
    stranger: &'static str,
    outside: &'static str,
    outside_ip: &'static str,
    node: &'static str,
    router: &'static str,
    icmp: u8,
    too_big: Kind,
    network_length: usize,
    /// What pods reach with their own addresses.
    inside: (&'static str, u32),
    pod_elsewhere: &'static str,
    unreachable: &'static str,
    service: &'static str,
}

const V4: Names = Names {
    pod: "10.244.0.5:40000",
    pod_ip: "10.244.0.5",
    another_pod: "10.244.0.6:40000",
    another_pod_ip: "10.244.0.6",
    stranger: "10.244.0.7:40000",
    outside: "203.0.113.9:443",
    outside_ip: "203.0.113.9",
    node: "198.51.100.1",
    router: "198.51.100.2",
    icmp: ICMP,
    too_big: (3, 4, 1_300),
    network_length: 20,
    inside: ("10.0.0.0", 8),
    pod_elsewhere: "10.244.8.5:8080",
    unreachable: "192.168.9.9:443",
    service: "203.0.113.80:443",
};
const V6: Names = Names {
    pod: "[fd00:244::5]:40000",
    pod_ip: "fd00:244::5",
    another_pod: "[fd00:244::6]:40000",
    another_pod_ip: "fd00:244::6",
    stranger: "[fd00:244::7]:40000",
    outside: "[2001:db8:9::9]:443",
    outside_ip: "2001:db8:9::9",
    node: "2001:db8::1",
    router: "2001:db8::2",
    icmp: ICMPV6,
    too_big: (2, 0, 1_300),
    network_length: 40,
    inside: ("fd00::", 8),
    pod_elsewhere: "[fd00:244:8::5]:8080",
    unreachable: "[2001:db8:b::9]:443",
    service: "[2001:db8:80::80]:443",
};
/// The link address that what is outside is reached by.
const NEXT: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// The MTU of the uplink.
const MTU: usize = 1_500;
/// The loopback device, which a test run's packets come in by: here it is the uplink, and the pods' link too.
const LINK: u32 = 1;

/// A way to the outside.
fn in_a_network(work: impl FnOnce() + Send) {
    let namespace = Namespace::new().expect("a namespace of its own");
    for words in [
        "link set lo up mtu 1500",
        "address add 198.51.100.1/24 dev lo",
        "address add 2001:db8::1/64 dev lo nodad",
        "neighbour add 203.0.113.9 lladdr 02:00:00:00:02:02 dev lo nud permanent",
        "neighbour add 2001:db8:9::9 lladdr 02:00:00:00:02:02 dev lo nud permanent",
        "route add 203.0.113.9/32 dev lo",
        "-6 route add 2001:db8:9::9/128 dev lo",
        "route add 203.0.113.77/32 dev lo",
    ] {
        namespace.ip(words).expect("a link, an address, a neighbour or a route");
    }
    namespace.inside(|| {
        for family in ["ipv4", "ipv6"] {
            std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").expect("a setting");
        }
        work();
    });
}

fn address<A: Family>(text: &str) -> A {
    A::parse(text.parse().expect("an address"))
}

/// Two pods of a node that masquerades both families.
fn node<A: Family>(names: &Names) -> Dataplane {
    let mut dataplane = Dataplane::new();
    let uplink = Uplink { address_v4: address(V4.node), address_v6: address(V6.node) };
    dataplane.hash("uplinks").insert(LINK, uplink, 0).expect("room");
    for ip in [names.pod_ip, names.another_pod_ip] {
        let link = Endpoint { ifindex: LINK, pod_mac: Mac(POD_MAC), host_mac: Mac(HOST_MAC) };
        A::insert_endpoint(&mut dataplane, address(ip), link);
    }
    let (network, prefix) = names.inside;
    let map = if size_of::<A>() == 4 { "non_masquerade_v4" } else { "non_masquerade_v6" };
    let key = aya::maps::lpm_trie::Key::new(prefix, address::<A>(network));
    dataplane.trie::<A, u32>(map).insert(&key, 0_u32, 0).expect("room");
    masquerade(&mut dataplane, NodeConfig::FLAG_MASQUERADE_V4 | NodeConfig::FLAG_MASQUERADE_V6);
    dataplane
}

fn masquerade(dataplane: &mut Dataplane, flags: u32) {
    let config = dataplane.array::<NodeConfig>("node_config").get(&0, 0).expect("one entry");
    dataplane.configure(NodeConfig { flags, ..config });
}

fn both(
    check: impl Fn(&Names, &mut Dataplane, &dyn Fn(&mut Dataplane, u8, &str, &str) -> Half) + Sync + Send,
) {
    in_a_network(|| {
        check(&V4, &mut node::<Ip4>(&V4), &half::<Ip4>);
        check(&V6, &mut node::<Ip6>(&V6), &half::<Ip6>);
    });
}

/// What a pod's half of a flow says.
struct Half {
    port: u16,
    state: FlowState,
    packets: u64,
}

fn half<A: Family>(dataplane: &mut Dataplane, protocol: u8, pod: &str, outside: &str) -> Half {
    let flow = dataplane.flow::<A>(protocol, pod, outside).expect("the pod's half");
    assert_eq!(flow.flags & Flow::<A>::FLAG_EGRESS, Flow::<A>::FLAG_EGRESS);
    let port = flow.source_port.get();
    let ports = MASQUERADE_PORT_FIRST..MASQUERADE_PORT_FIRST + MASQUERADE_PORTS;
    assert!(ports.contains(&port), "port {port} may collide with a socket");
    Half { port, state: flow.state, packets: flow.packets }
}

fn at(ip: &str, port: u16) -> String {
    std::net::SocketAddr::new(ip.parse().expect("an address"), port).to_string()
}

/// A pod's packet that leaves by the uplink.
fn leaves(description: &'static str, input: Frame, output: Frame) -> Row {
    let output = Some(output.ttl(63).link([0; 6], NEXT));
    Row { description, program: Program::TcPod, input, verdict: Verdict::Redirect, output, drop: None }
}

/// An answer that goes into the pod.
fn comes(description: &'static str, input: Frame, output: Frame) -> Row {
    packets::into_pod(description, input, output)
}

/// A packet that stays as it is.
fn passes(program: Program, description: &'static str, input: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Pass, output: None, drop: None }
}

#[test]
fn a_connection_leaves_with_the_nodes_address_and_its_answers_come_back() {
    both(|names, dataplane, half| {
        let (pod, outside) = (names.pod, names.outside);
        let syn = tcp(pod, outside).flags(SYN);
        let (verdict, _) = dataplane.run(Program::TcPod, &syn.bytes());
        assert_eq!(verdict, Verdict::Redirect, "{:?}", dataplane.drops());
        let own = &at(names.node, half(dataplane, TCP, pod, outside).port);
        dataplane.check(&[
            leaves("SYN again", syn.clone(), tcp(own, outside).flags(SYN)),
            passes(Program::XdpUplink, "XDP leaves answers to TC", tcp(outside, own).flags(SYN | ACK)),
            comes("SYN-ACK", tcp(outside, own).flags(SYN | ACK), tcp(outside, pod).flags(SYN | ACK)),
        ]);
        assert_eq!(half(dataplane, TCP, pod, outside).state, FlowState::OPENING, "one side has spoken");
        dataplane.check(&[
            leaves("ACK", tcp(pod, outside), tcp(own, outside)),
            passes(Program::XdpUplink, "XDP leaves these too", tcp(outside, own)),
            comes("data", tcp(outside, own).payload(&[7; 900]), tcp(outside, pod).payload(&[7; 900])),
            leaves("more", tcp(pod, outside).payload(&[8; 901]), tcp(own, outside).payload(&[8; 901])),
        ]);
        let established = half(dataplane, TCP, pod, outside);
        assert_eq!((established.state, established.packets), (FlowState::ESTABLISHED, 4));
        dataplane.check(&[
            leaves("FIN", tcp(pod, outside).flags(FIN | ACK), tcp(own, outside).flags(FIN | ACK)),
            comes("its answer", tcp(outside, own).flags(FIN | ACK), tcp(outside, pod).flags(FIN | ACK)),
            leaves("the last ACK", tcp(pod, outside), tcp(own, outside)),
        ]);
        assert_eq!(half(dataplane, TCP, pod, outside).state, FlowState::CLOSED);
        dataplane.check(&[
            leaves("the same port again", syn, tcp(own, outside).flags(SYN)),
            comes("is refused", tcp(outside, own).flags(RST | ACK), tcp(outside, pod).flags(RST | ACK)),
        ]);
    });
}

#[test]
fn datagrams_and_associations_leave_likewise() {
    both(|names, dataplane, half| {
        let (pod, outside) = (names.pod, names.outside);
        dataplane.run(Program::TcPod, &udp(pod, outside).bytes());
        dataplane.run(Program::TcPod, &sctp(pod, outside, INIT).bytes());
        let own = &at(names.node, half(dataplane, UDP, pod, outside).port);
        dataplane.check(&[
            leaves("a datagram", udp(pod, outside), udp(own, outside)),
            leaves(
                "without a checksum",
                udp(pod, outside).without_checksum(),
                udp(own, outside).without_checksum(),
            ),
            comes("its answer", udp(outside, own), udp(outside, pod)),
            leaves("the next", udp(pod, outside), udp(own, outside)),
            comes("and its answer", udp(outside, own), udp(outside, pod)),
        ]);
        assert_eq!(half(dataplane, UDP, pod, outside).state, FlowState::ESTABLISHED);
        let own = &at(names.node, half(dataplane, SCTP, pod, outside).port);
        dataplane.check(&[
            comes("INIT ACK", sctp(outside, own, INIT_ACK), sctp(outside, pod, INIT_ACK)),
            leaves("data", sctp(pod, outside, DATA), sctp(own, outside, DATA)),
            comes("and back", sctp(outside, own, DATA), sctp(outside, pod, DATA)),
        ]);
        assert_eq!(half(dataplane, SCTP, pod, outside).state, FlowState::ESTABLISHED);
    });
}

#[test]
fn echoes_leave_by_an_identifier_of_the_node() {
    both(|names, dataplane, half| {
        let (pod, outside, node) = (names.pod_ip, names.outside_ip, names.node);
        let (ours, theirs) = (at(pod, 77), at(outside, 0));
        dataplane.run(Program::TcPod, &echo(pod, outside, true, 77).bytes());
        let id = half(dataplane, names.icmp, &ours, &theirs).port;
        dataplane.check(&[
            leaves("a request", echo(pod, outside, true, 77), echo(node, outside, true, id)),
            comes("its answer", echo(outside, node, false, id), echo(outside, pod, false, 77)),
            leaves("the next", echo(pod, outside, true, 77), echo(node, outside, true, id)),
            comes("and its answer", echo(outside, node, false, id), echo(outside, pod, false, 77)),
            passes(Program::TcUplink, "the node's own", echo(outside, node, false, id ^ 1)),
            passes(Program::TcUplink, "somebody pings the node", echo(outside, node, true, id)),
            passes(Program::TcPod, "the pod answers one", echo(pod, outside, false, 78)),
            comes(
                "a router's small MTU",
                icmp(names.router, names.too_big, &echo(node, outside, true, id)),
                icmp(names.router, names.too_big, &echo(pod, outside, true, 77)),
            ),
            comes(
                "no more than RFC 792 asks for",
                icmp(names.router, names.too_big, &echo(node, outside, true, id))
                    .quoting(names.network_length + 8),
                icmp(names.router, names.too_big, &echo(pod, outside, true, 77))
                    .quoting(names.network_length + 8),
            ),
        ]);
        assert_eq!(half(dataplane, names.icmp, &ours, &theirs).state, FlowState::ESTABLISHED);
    });
}

#[test]
fn errors_reach_the_pod() {
    both(|names, dataplane, half| {
        let (pod, outside) = (names.pod, names.outside);
        dataplane.run(Program::TcPod, &tcp(pod, outside).flags(SYN).bytes());
        dataplane.run(Program::TcPod, &udp(pod, outside).bytes());
        let own = &at(names.node, half(dataplane, TCP, pod, outside).port);
        let own_udp = &at(names.node, half(dataplane, UDP, pod, outside).port);
        let error = |quoted: &Frame| icmp(names.router, names.too_big, quoted);
        dataplane.check(&[
            comes("a small MTU", error(&tcp(own, outside)), error(&tcp(pod, outside))),
            comes("of a datagram", error(&udp(own_udp, outside)), error(&udp(pod, outside))),
            passes(Program::TcUplink, "about another port", error(&tcp(&at(names.node, 80), outside))),
        ]);
    });
}

#[test]
fn what_stays_in_the_cluster_or_answers_keeps_its_address() {
    both(|names, dataplane, _| {
        let stays = |description, destination: &str| {
            passes(Program::TcPod, description, tcp(names.pod, destination).flags(SYN))
        };
        let local = &at(names.another_pod_ip, 80);
        dataplane.check(&[
            stays("a pod of another node", names.pod_elsewhere),
            stays("no route", names.unreachable),
            stays("the node itself", &at(names.node, 22)),
            passes(Program::TcPod, "a datagram inside", udp(names.pod, names.pod_elsewhere)),
            passes(Program::TcPod, "no pod of this node", tcp(names.stranger, names.outside).flags(SYN)),
            passes(Program::TcPod, "who was asked", tcp(names.pod, names.outside).flags(SYN | ACK)),
            passes(Program::TcPod, "of no flow", tcp(names.pod, names.outside)),
            passes(Program::TcPod, "the stack says so", tcp(names.pod, names.outside).flags(SYN).ttl(1)),
            Row {
                program: Program::TcPod,
                ..comes("a pod of this node", tcp(names.pod, local), tcp(names.pod, local))
            },
            passes(Program::TcUplink, "nobody's answer", tcp(names.outside, &at(names.node, 20_000))),
        ]);
        dataplane.hash::<u32, Uplink>("uplinks").remove(&LINK).expect("it is there");
        let syn = tcp(names.another_pod, names.outside).flags(SYN);
        dataplane.check(&[passes(Program::TcPod, "the way out is no uplink", syn)]);
    });
}

#[test]
fn it_is_off_unless_asked_for() {
    both(|names, dataplane, _| {
        for flags in [
            0,
            if names.icmp == ICMP { NodeConfig::FLAG_MASQUERADE_V6 } else { NodeConfig::FLAG_MASQUERADE_V4 },
        ] {
            masquerade(dataplane, flags);
            dataplane.check(&[
                passes(Program::TcPod, "SYN", tcp(names.pod, names.outside).flags(SYN)),
                passes(Program::TcPod, "a datagram", udp(names.pod, names.outside)),
                passes(Program::TcPod, "an echo", echo(names.pod_ip, names.outside_ip, true, 77)),
            ]);
        }
    });
}

#[test]
fn a_lost_half_is_found_again() {
    in_a_network(|| {
        let mut dataplane = node::<Ip4>(&V4);
        let (pod, outside) = (V4.pod, V4.outside);
        dataplane.run(Program::TcPod, &tcp(pod, outside).flags(SYN).bytes());
        let own = &at(V4.node, half::<Ip4>(&mut dataplane, TCP, pod, outside).port);
        dataplane.run(Program::TcUplink, &tcp(outside, own).flags(SYN | ACK).bytes());
        dataplane.remove_flow::<Ip4>(TCP, pod, outside);
        dataplane.check(&[leaves("opening", tcp(pod, outside), tcp(own, outside))]);
        dataplane.run(Program::TcPod, &tcp(pod, outside).bytes());
        assert_eq!(dataplane.established::<Ip4>(), 2);
        dataplane.remove_flow::<Ip4>(TCP, pod, outside);
        dataplane.check(&[leaves("established", tcp(pod, outside), tcp(own, outside))]);
        dataplane.remove_flow::<Ip4>(TCP, outside, own);
        // A packet that changes the flow's life looks after the other half at once.
        dataplane.run(Program::TcPod, &tcp(pod, outside).flags(FIN | ACK).bytes());
        dataplane.check(&[comes("the answer's", tcp(outside, own), tcp(outside, pod))]);
        dataplane.remove_flow::<Ip4>(TCP, pod, outside);
        dataplane.run(Program::TcUplink, &tcp(outside, own).flags(FIN | ACK).bytes());
        let again = half::<Ip4>(&mut dataplane, TCP, pod, outside);
        assert_eq!(at(V4.node, again.port), *own, "by the answer's");
    });
}

/// The port that a tuple tries first.
fn first_port(source: &str) -> u16 {
    let key = packets::flow_key::<Ip4>(TCP, source, V4.outside);
    MASQUERADE_PORT_FIRST + (hash::flow(&key) as u16 & (MASQUERADE_PORTS - 1))
}

#[test]
fn two_flows_have_two_ports_and_what_finds_none_ends() {
    in_a_network(|| {
        let mut dataplane = node::<Ip4>(&V4);
        let wanted = first_port(V4.pod);
        let rival = (1_024..u16::MAX).map(|port| at(V4.another_pod_ip, port));
        let rival = &rival.into_iter().find(|source| first_port(source) == wanted).expect("one in 16,384");
        dataplane.run(Program::TcPod, &tcp(V4.pod, V4.outside).flags(SYN).bytes());
        dataplane.run(Program::TcPod, &tcp(rival, V4.outside).flags(SYN).bytes());
        let first = half::<Ip4>(&mut dataplane, TCP, V4.pod, V4.outside).port;
        let second = half::<Ip4>(&mut dataplane, TCP, rival, V4.outside).port;
        assert_eq!(first, wanted);
        assert_ne!(first, second, "both answers would carry the same tuple");
        let (first, second) = (&at(V4.node, first), &at(V4.node, second));
        dataplane.check(&[
            comes("the first's", tcp(V4.outside, first), tcp(V4.outside, V4.pod)),
            comes("the second's", tcp(V4.outside, second), tcp(V4.outside, rival)),
        ]);
        // All ports that a tuple tries are others'.
        let key = packets::flow_key::<Ip4>(TCP, V4.another_pod, V4.outside);
        for attempt in 0..MASQUERADE_TRIES {
            let tried = (hash::flow(&key) as u16).wrapping_add(attempt * 509) & (MASQUERADE_PORTS - 1);
            let taken = at(V4.node, MASQUERADE_PORT_FIRST + tried);
            let answer = packets::flow_key::<Ip4>(TCP, V4.outside, &taken);
            let _ = dataplane.hash("flows_v4").insert(answer, Flow::<Ip4>::default(), 0);
        }
        dataplane.check(&[Row {
            verdict: Verdict::Drop,
            output: None,
            drop: Some("ports-exhausted"),
            ..passes(Program::TcPod, "none is left", tcp(V4.another_pod, V4.outside).flags(SYN))
        }]);
    });
}

/// A backend outside, asked by a client outside, has the same tuples: both kinds of flows take their ports from one pool.
#[test]
fn a_services_flow_and_a_pods_have_two_ports() {
    in_a_network(|| {
        let mut dataplane = node::<Ip4>(&V4);
        dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, V4.service, &[V4.outside], false);
        let wanted = first_port(V4.pod);
        let served = |client: &str| {
            let key = packets::flow_key::<Ip4>(TCP, client, V4.service);
            MASQUERADE_PORT_FIRST + (hash::flow(&key) as u16 & (MASQUERADE_PORTS - 1))
        };
        let client = (1_024..u16::MAX).map(|port| at("203.0.113.77", port)).find(|it| served(it) == wanted);
        let client = &client.expect("one in 16,384");
        dataplane.run(Program::TcUplink, &tcp(client, V4.service).flags(SYN).bytes());
        let flow = dataplane.flow::<Ip4>(TCP, client, V4.service).expect("the client's half");
        assert_eq!((flow.source, flow.source_port.get()), (address(V4.node), wanted));
        dataplane.run(Program::TcPod, &tcp(V4.pod, V4.outside).flags(SYN).bytes());
        let own = half::<Ip4>(&mut dataplane, TCP, V4.pod, V4.outside).port;
        assert_ne!(own, wanted);
        let own = &at(V4.node, own);
        dataplane.check(&[comes("the pod's answer", tcp(V4.outside, own), tcp(V4.outside, V4.pod))]);
        let (_, answer) = dataplane.run(Program::TcUplink, &tcp(V4.outside, &at(V4.node, wanted)).bytes());
        assert_eq!(answer[14..], tcp(V4.service, client).ttl(63).bytes()[14..], "the service's answer");
    });
}

#[test]
fn fragments_follow_their_first_one() {
    both(|names, dataplane, half| {
        let (pod, outside) = (names.pod, names.outside);
        dataplane.run(Program::TcPod, &udp(pod, outside).bytes());
        let own = &at(names.node, half(dataplane, UDP, pod, outside).port);
        let part = |source: &str, destination: &str, n: usize| {
            udp(source, destination).payload(&[7; 150]).part(n * 64, 64)
        };
        dataplane.check(&[
            leaves("the first", part(pod, outside, 0), part(own, outside, 0)),
            leaves("the last", part(pod, outside, 2), part(own, outside, 2)),
            comes("the answer's first", part(outside, own, 0), part(outside, pod, 0)),
            comes("and its second", part(outside, own, 1), part(outside, pod, 1)),
        ]);
        let (pod, outside, node) = (names.pod_ip, names.outside_ip, names.node);
        dataplane.run(Program::TcPod, &echo(pod, outside, true, 77).bytes());
        let id = half(dataplane, names.icmp, &at(pod, 77), &at(outside, 0)).port;
        let part = |source: &str, destination: &str, request, id, n: usize| {
            echo(source, destination, request, id).part(n * 16, 16)
        };
        dataplane.check(&[
            leaves("an echo's first", part(pod, outside, true, 77, 0), part(node, outside, true, id, 0)),
            leaves("its second", part(pod, outside, true, 77, 1), part(node, outside, true, id, 1)),
            comes("the answer's first", part(outside, node, false, id, 0), part(outside, pod, false, 77, 0)),
            comes("its second", part(outside, node, false, id, 1), part(outside, pod, false, 77, 1)),
        ]);
    });
}

#[test]
fn what_does_not_fit_through_the_uplink_is_told_its_sender() {
    let kernel = nix::sys::utsname::uname().expect("every kernel tells");
    if kernel.release().to_string_lossy().starts_with("5.10.") {
        // Linux 5.12 is the first whose `bpf_fib_lookup` tells a link's MTU; before it no flow knows what fits.
        println!("NOT RUN: this kernel tells programs no MTU");
        return;
    }
    both(|names, dataplane, half| {
        let (pod, outside) = (names.pod, names.outside);
        let header = names.network_length;
        dataplane.run(Program::TcPod, &tcp(pod, outside).flags(SYN).bytes());
        let own = &at(names.node, half(dataplane, TCP, pod, outside).port);
        let long = |extra: usize| vec![7; MTU - header - 20 + extra];
        let told = |packet: &Frame| {
            icmp(names.outside_ip, (names.too_big.0, names.too_big.1, MTU as u32), packet)
                .quoting(header + 8)
                .id(0)
                .fragment(if header == 20 { 0x4000 } else { 0 })
                .link([0; 6], [2, 0, 0, 0, 0, 1])
        };
        let too_big = |description, input: Frame| {
            let output = Some(told(&input));
            Row { output, drop: Some("too-big"), ..leaves(description, input.clone(), input) }
        };
        let (fits, longer) = (tcp(pod, outside).payload(&long(0)), tcp(pod, outside).payload(&long(1)));
        dataplane.check(&[
            leaves("fits", fits, tcp(own, outside).payload(&long(0))),
            too_big("one more byte", longer),
            too_big("a first packet", udp(names.another_pod, outside).payload(&long(30))),
        ]);
    });
}
