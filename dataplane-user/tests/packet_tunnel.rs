//! Direct server return: into the tunnel to the backend's node, and out of it there.

mod packets;

use std::{
    cell::{Cell, RefCell},
    io,
    process::Command,
};

use packets::{
    Dataplane, Family, HOST_MAC, POD_MAC, Program, Row, Verdict,
    frame::{ACK, SYN, TCP, UDP, icmp, inside, tcp, udp},
    network::{MTU, NEXT, in_a_network, knows_mtus},
};
use weir_dataplane_ebpf::{Ip4, Ip6, Scope, Uplink};
use weir_tests::eventually;

/// What a family's addresses are called.
struct Names {
    client: &'static str,
    another: &'static str,
    service: &'static str,
    node_port: &'static str,
    own_node_port: &'static str,
    pod: &'static str,
    own: &'static str,
    other: &'static str,
    stranger: &'static str,
}

const V4: Names = Names {
    client: "203.0.113.9:40000",
    another: "203.0.113.10:40000",
    service: "192.0.2.80:80",
    node_port: "198.51.100.2:30080",
    own_node_port: "198.51.100.1:30080",
    pod: "10.244.8.5:8080",
    own: "198.51.100.1",
    other: "198.51.100.2",
    stranger: "198.51.100.9",
};
const V6: Names = Names {
    client: "[2001:db8:9::9]:40000",
    another: "[2001:db8:9::10]:40000",
    service: "[2001:db8:80::80]:80",
    node_port: "[2001:db8::2]:30080",
    own_node_port: "[2001:db8::1]:30080",
    pod: "[fd00:244:8::5]:8080",
    own: "2001:db8::1",
    other: "2001:db8::2",
    stranger: "2001:db8::99",
};
/// A dataplane whose backend is on the other node, or here.
fn dataplane<A: Family>(names: &Names, here: bool) -> Dataplane {
    let mut dataplane = Dataplane::new();
    let uplink = Uplink { address_v4: address(V4.own), address_v6: address(V6.own) };
    dataplane.hash("uplinks").insert(1_u32, uplink, 0).expect("room");
    A::add_tunnel_peer(&mut dataplane, address(names.other));
    for (protocol, frontend) in [
        (TCP, names.service),
        (UDP, names.service),
        (TCP, if here { names.own_node_port } else { names.node_port }),
    ] {
        let service = dataplane.service::<A>(Scope::EXTERNAL, protocol, frontend, &[names.pod], here);
        if !here {
            let node = address(names.other);
            dataplane.return_directly::<A>(
                (Scope::EXTERNAL, protocol),
                frontend,
                &service,
                &[names.pod],
                node,
            );
        }
    }
    if here {
        let ip = names.pod.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']);
        dataplane.endpoint::<A>(ip);
    }
    dataplane
}

fn address<A: Family>(text: &str) -> A {
    A::parse(text.parse().expect("an address"))
}

fn row(program: Program, description: &'static str, input: packets::Frame, output: packets::Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Redirect, output: Some(output), drop: None }
}

fn into_the_tunnel<A: Family>(names: &Names) {
    for program in [Program::XdpUplink, Program::TcUplink] {
        let mut dataplane = dataplane::<A>(names, false);
        let carried =
            |packet: packets::Frame| inside(names.own, names.other, &packet.ttl(63)).link([0; 6], NEXT);
        let sent =
            |description, packet: packets::Frame| row(program, description, packet.clone(), carried(packet));
        dataplane.check(&[
            sent("SYN", tcp(names.client, names.service).flags(SYN)),
            sent("SYN again", tcp(names.client, names.service).flags(SYN)),
            sent("ACK", tcp(names.client, names.service)),
            sent("data", tcp(names.client, names.service).payload(&[7; 1_000])),
            sent("a datagram", udp(names.client, names.service)),
            sent("and the next", udp(names.client, names.service)),
            sent("a node port", tcp(names.client, names.node_port).flags(SYN)),
            Row {
                drop: Some("ttl-exceeded"),
                verdict: Verdict::Drop,
                output: None,
                ..sent("its last hop", tcp(names.client, names.service).ttl(1))
            },
        ]);
        let flow = dataplane.flow::<A>(TCP, names.client, names.service).expect("it is open");
        assert_eq!(flow.packets, 5, "{program:?}: the last hop too");
        assert_eq!(A::flows(&mut dataplane).len(), 3, "no entry for answers, which do not come here");
    }
}

/// What does not fit is the stack's at XDP, and told its sender at TC.
fn too_big<A: Family>(names: &Names, header: usize, too_big: (u8, u8)) {
    let mut dataplane = dataplane::<A>(names, false);
    let fits =
        |extra: usize| tcp(names.client, names.service).payload(&vec![7; MTU - 2 * header - 20 + extra]);
    let carried = inside(names.own, names.other, &fits(0).ttl(63)).link([0; 6], NEXT);
    dataplane.check(&[
        row(Program::XdpUplink, "fits", fits(0), carried.clone()),
        row(Program::TcUplink, "fits", fits(0), carried),
        Row {
            verdict: Verdict::Pass,
            output: None,
            ..row(Program::XdpUplink, "one more byte", fits(1), fits(1))
        },
        Row {
            drop: Some("too-big"),
            ..row(
                Program::TcUplink,
                "is told",
                fits(1),
                icmp(
                    names.service.rsplit_once(':').expect("a port").0.trim_matches(['[', ']']),
                    (too_big.0, too_big.1, (MTU - header) as u32),
                    &fits(1),
                )
                .quoting(header + 8)
                .id(0)
                .fragment(if header == 20 { 0x4000 } else { 0 })
                .link([0; 6], [2, 0, 0, 0, 0, 1]),
            )
        },
    ]);
}

fn out_of_the_tunnel<A: Family>(names: &Names) {
    let mut dataplane = dataplane::<A>(names, true);
    let carried = |from: &str, packet: packets::Frame| inside(from, names.own, &packet);
    let to_pod = |packet: packets::Frame| packet.ttl(63).link(HOST_MAC, POD_MAC);
    let tc = |description, input, output| row(Program::TcUplink, description, input, output);
    let passes = |program, description, input: packets::Frame| Row {
        verdict: Verdict::Pass,
        ..row(program, description, input.clone(), input)
    };
    dataplane.check(&[
        passes(
            Program::XdpUplink,
            "XDP leaves it to TC",
            carried(names.other, tcp(names.client, names.service).flags(SYN)),
        ),
        passes(
            Program::TcUplink,
            "nobody else's is opened",
            carried(names.stranger, tcp(names.client, names.service).flags(SYN)),
        ),
        tc(
            "SYN",
            carried(names.other, tcp(names.client, names.service).flags(SYN)),
            to_pod(tcp(names.client, names.pod).flags(SYN)),
        ),
        Row {
            program: Program::TcPod,
            ..tc(
                "the answer goes to the client itself",
                tcp(names.pod, names.client).flags(SYN | ACK),
                tcp(names.service, names.client).flags(SYN | ACK).ttl(63),
            )
        },
        tc(
            "data",
            carried(names.other, tcp(names.client, names.service)),
            to_pod(tcp(names.client, names.pod)),
        ),
        tc(
            "a node port of the other node",
            carried(names.other, tcp(names.another, names.node_port).flags(SYN)),
            to_pod(tcp(names.another, names.pod).flags(SYN)),
        ),
    ]);
}

#[test]
fn a_packet_for_another_node_goes_there_whole() {
    in_a_network(|| {
        into_the_tunnel::<Ip4>(&V4);
        into_the_tunnel::<Ip6>(&V6);
    });
}

#[test]
fn what_does_not_fit_is_told_its_sender() {
    if !knows_mtus() {
        return;
    }
    in_a_network(|| {
        too_big::<Ip4>(&V4, 20, (3, 4));
        too_big::<Ip6>(&V6, 40, (2, 0));
    });
}

#[test]
fn a_packet_from_another_node_is_served_as_if_it_had_come_here() {
    in_a_network(|| {
        out_of_the_tunnel::<Ip4>(&V4);
        out_of_the_tunnel::<Ip6>(&V6);
    });
}

/// New flows share what the first of them was told of the way, but not for long.
#[test]
fn a_node_that_has_moved_is_found_by_new_flows() {
    in_a_network(|| {
        let dataplane = RefCell::new(dataplane::<Ip4>(&V4, false));
        let ports = Cell::new(40_000);
        let way_of_a_new_flow = || {
            ports.set(ports.get() + 1);
            let frame = tcp(&format!("203.0.113.9:{}", ports.get()), V4.service).flags(SYN);
            let (verdict, output) = dataplane.borrow_mut().run(Program::XdpUplink, &frame.bytes());
            assert_eq!(verdict, Verdict::Redirect);
            output[..6].to_vec()
        };
        assert_eq!(way_of_a_new_flow(), NEXT);
        let moved = [2, 0, 0, 0, 2, 3];
        let words = "neighbour replace 198.51.100.2 lladdr 02:00:00:00:02:03 dev lo nud permanent";
        let status = Command::new("ip").args(words.split(' ')).status().expect("ip (iproute2)");
        assert!(status.success(), "ip {words}");
        eventually("the node is found where it is", || {
            let way = way_of_a_new_flow();
            if way == moved { Ok(()) } else { Err(io::Error::other(format!("{way:x?}")).into()) }
        })
        .unwrap();
    });
}
