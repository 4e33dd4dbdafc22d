//! What the dataplane costs and carries, part by part. Prints rows as JSON; `cargo xtask bench dataplane` runs it, as root.
//!
//! Here are the packet programs alone: nanoseconds per packet by `BPF_PROG_TEST_RUN`, and the instructions that the
//! verifier walks. [`live`] sends frames, [`network`] loads a node, [`scale`] fills maps.
//!
//! Every time is the difference to the same driver over an empty program, measured just before it, so that neither the
//! driver nor the kernel's test loop is counted. Each path is checked before it is timed: its verdict, what it did to
//! the frame, and how many flow entries it left.

mod driver;
mod generator;
mod live;
mod network;
#[path = "../../tests/node/mod.rs"]
mod node;
mod objects;
#[path = "../../tests/packets/mod.rs"]
mod packets;
mod row;
mod scale;
mod tidy;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use driver::{Driver, Flows, Hook};
use packets::{
    Dataplane, Family, Frame,
    frame::{SYN, TCP, UDP, tcp, udp},
};
use weir_dataplane::programs::{SOCKET_HOOKS, TC_POD, TC_UPLINK, XDP_UPLINK};
use weir_dataplane_ebpf::{
    Ip4, Ip6, Scope,
    bench::FRAME_LENGTH,
    maps::{FLOWS, OPENING_FLOWS},
};
use weir_tests::{Goal, Namespace, Row};

/// Runs of each figure.
const RUNS: usize = 7;
/// Packets of a run.
const PACKETS: u32 = 1_000_000;
/// Packets of a run in which each opens a flow. Their entries, two each, push none out of the table with its real bound.
const OPENING_PACKETS: u32 = 25_000;
const _: () = assert!(OPENING_PACKETS * 2 < OPENING_FLOWS);
/// Flows of the larger working set, whose entries fit likewise.
const MANY: u32 = 65_536;
/// The order in which entries are made.
const IN_ORDER: u32 = 1;
/// An order in which they are looked up again that no prefetcher guesses; see [`weir_dataplane_ebpf::bench::Load::stride`].
const SCATTERED: u32 = 40_503;

/// The service, for both families and both scopes, and pods of this node behind it.
const FRONTEND_V4: &str = "10.96.0.10:80";
const FRONTEND_V6: &str = "[fd00:96::10]:80";
const PODS_V4: &str = "10.244.0.";
const PODS_V6: &str = "fd00:244::";
/// How many: on other nodes so many that their masquerade ports are enough for all flows.
const PODS_HERE: usize = 3;
const PODS_FAR: usize = 16;
/// Clients, from the ranges for measurements (RFC 2544, RFC 5180). The driver varies the last 16 bits and the port.
const CLIENT_V4: &str = "198.18.0.1:40000";
const CLIENT_V6: &str = "[2001:2::1]:40000";

/// Verdicts, as the kernel numbers them.
const XDP_PASS: i32 = 2;
const XDP_REDIRECT: i32 = 4;
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_REDIRECT: i32 = 7;

/// A program under test.
struct Subject {
    name: &'static str,
    hook: Hook,
}

const SUBJECTS: [Subject; 3] = [
    Subject { name: XDP_UPLINK, hook: Hook::Xdp },
    Subject { name: TC_UPLINK, hook: Hook::Tc },
    Subject { name: TC_POD, hook: Hook::Tc },
];

/// Where the service's backends are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On this node.
    Here,
    /// On another: packets leave with this node's address as their source.
    Far,
    /// On another, which answers the client itself: packets leave whole, inside others.
    Direct,
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Packets of so many flows that have their entries, which are visited with this stride.
    Established(u32, u32),
    /// Every packet is the first of its flow.
    Opening,
    /// No service has the address.
    NoService,
}

/// What can be measured alone.
struct Part {
    name: &'static str,
    measure: fn() -> Vec<Row>,
    by_default: bool,
}

const PARTS: [Part; 5] = [
    Part { name: "packets", measure: measure_packets, by_default: true },
    Part { name: "live", measure: live::measure, by_default: true },
    Part { name: "netns", measure: network::measure, by_default: true },
    Part { name: "scale", measure: scale::measure, by_default: true },
    // Loading it takes minutes.
    Part { name: "nft50k", measure: network::measure_large_nftables, by_default: false },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((word, rest)) if word == generator::WORD => generator::main(rest),
        Some((word, rest)) if word == scale::WORD => scale::remember(rest),
        Some((word, rest)) if word == tidy::WORD => {
            tidy::become_child();
            measure(rest);
        }
        _ => {
            if let Some(word) = words.iter().find(|word| !PARTS.iter().any(|part| part.name == *word)) {
                let names: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
                eprintln!("`{word}` is no part; these are: {}", names.join(", "));
                return ExitCode::FAILURE;
            }
            return tidy::supervise(&words);
        }
    }
    ExitCode::SUCCESS
}

/// Measures the parts that are named, or all that take no more than minutes, and prints their rows.
fn measure(words: &[String]) {
    let is_wanted = |part: &&Part| {
        if words.is_empty() { part.by_default } else { words.iter().any(|word| word == part.name) }
    };
    let rows: Vec<Row> = PARTS.iter().filter(is_wanted).flat_map(|part| (part.measure)()).collect();
    println!("{}", serde_json::to_string_pretty(&rows).expect("plain numbers"));
}

fn measure_packets() -> Vec<Row> {
    let namespace = Namespace::new().expect("a network namespace of its own");
    lay_routes(&namespace);
    namespace.inside(measure_all)
}

/// A way to pods on another node and back to the clients, by a neighbour that is known.
fn lay_routes(namespace: &Namespace) {
    for words in [
        "link add up0 type veth peer name up1",
        "link set up0 up",
        "link set up1 up",
        "address add 198.51.100.1/24 dev up0",
        "address add 2001:db8::1/64 dev up0 nodad",
        "neighbour add 198.51.100.2 lladdr 02:00:00:00:02:02 dev up0 nud permanent",
        "neighbour add 2001:db8::2 lladdr 02:00:00:00:02:02 dev up0 nud permanent",
        "route add default via 198.51.100.2",
        "-6 route add default via 2001:db8::2",
    ] {
        namespace.ip(words).expect("an address, a neighbour and a route");
    }
    namespace.inside(|| {
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{name}"), "1").expect("forwarding can be switched on");
        }
    });
}

fn measure_all() -> Vec<Row> {
    let mut driver = Driver::new();
    let mut rows = Vec::new();
    for subject in &SUBJECTS {
        let mut measure_at = |place, name: &str, frame: &Frame, path| {
            let pairs = time(&mut driver, subject, place, frame, path);
            let row = row::net(&format!("{}: {name}", subject.name), &pairs);
            rows.push(match goal(subject, place, name) {
                Some(nanoseconds) => row.goal(Goal::AtMost(nanoseconds)),
                None => row,
            });
        };
        let mut measure = |name: &str, frame: &Frame, path| measure_at(Place::Here, name, frame, path);
        let tcp_v4 = tcp(CLIENT_V4, FRONTEND_V4);
        let udp_v6 = udp(CLIENT_V6, FRONTEND_V6);
        measure("established, 1 flow, TCP v4", &tcp_v4, Path::Established(1, IN_ORDER));
        measure("established, 1 flow, UDP v4", &udp(CLIENT_V4, FRONTEND_V4), Path::Established(1, IN_ORDER));
        measure("established, 1 flow, UDP v6", &udp_v6, Path::Established(1, IN_ORDER));
        for (order, stride) in [("in order", IN_ORDER), ("scattered", SCATTERED)] {
            let path = Path::Established(MANY, stride);
            measure(&format!("established, 65,536 flows {order}, TCP v4"), &tcp_v4, path);
            measure(&format!("established, 65,536 flows {order}, UDP v6"), &udp_v6, path);
        }
        measure("first packet of a flow, with insert, TCP v4", &tcp_v4.clone().flags(SYN), Path::Opening);
        measure("no service, TCP v4", &tcp(CLIENT_V4, "10.0.0.9:22"), Path::NoService);
        if subject.name == TC_POD {
            continue;
        }
        let mut measure = |name: &str, frame: &Frame, path| {
            measure_at(Place::Far, &format!("backend on another node, {name}"), frame, path);
        };
        measure("established, 1 flow, TCP v4", &tcp_v4, Path::Established(1, IN_ORDER));
        measure("established, 1 flow, UDP v6", &udp_v6, Path::Established(1, IN_ORDER));
        measure("established, 65,536 flows scattered, TCP v4", &tcp_v4, Path::Established(MANY, SCATTERED));
        measure("established, 65,536 flows scattered, UDP v6", &udp_v6, Path::Established(MANY, SCATTERED));
        measure("first packet of a flow, with insert, TCP v4", &tcp_v4.clone().flags(SYN), Path::Opening);
        if subject.hook != Hook::Xdp {
            continue;
        }
        let mut measure = |name: &str, frame: &Frame, path| {
            measure_at(Place::Direct, &format!("direct server return, {name}"), frame, path);
        };
        measure("established, 1 flow, TCP v4", &tcp_v4, Path::Established(1, IN_ORDER));
        measure("established, 1 flow, UDP v6", &udp_v6, Path::Established(1, IN_ORDER));
        measure("established, 65,536 flows scattered, TCP v4", &tcp_v4, Path::Established(MANY, SCATTERED));
        measure("first packet of a flow, with insert, TCP v4", &tcp_v4.clone().flags(SYN), Path::Opening);
    }
    rows.extend(instructions(&mut Dataplane::new(), &driver));
    rows
}

/// What a packet may cost in XDP, whose part is what is for other nodes and what is nobody's.
fn goal(subject: &Subject, place: Place, name: &str) -> Option<f64> {
    const GOALS: [(Place, &str, f64); 7] = [
        (Place::Direct, "established, 1 flow, TCP v4", 73.0),
        (Place::Far, "established, 1 flow, TCP v4", 73.0),
        (Place::Far, "established, 65,536 flows scattered, TCP v4", 160.0),
        (Place::Far, "established, 1 flow, UDP v6", 95.0),
        (Place::Far, "established, 65,536 flows scattered, UDP v6", 200.0),
        (Place::Far, "first packet of a flow, with insert, TCP v4", 600.0),
        (Place::Here, "no service, TCP v4", 25.0),
    ];
    let goal = GOALS.iter().find(|(at, what, _)| *at == place && name.ends_with(what));
    goal.filter(|_| subject.name == XDP_UPLINK).map(|(.., nanoseconds)| *nanoseconds)
}

/// Programs with empty tables of the real size. Every path starts with its own: entries that were removed leave the free
/// ones in disorder, and so the next path would find its own entries scattered.
fn dataplane(place: Place) -> Dataplane {
    let mut dataplane = Dataplane::with_flows(FLOWS);
    for scope in [Scope::EXTERNAL, Scope::INTERNAL] {
        serve::<Ip4>(&mut dataplane, place, (scope, TCP), FRONTEND_V4, PODS_V4);
        serve::<Ip4>(&mut dataplane, place, (scope, UDP), FRONTEND_V4, PODS_V4);
        serve::<Ip6>(&mut dataplane, place, (scope, UDP), FRONTEND_V6, PODS_V6);
    }
    dataplane
}

fn serve<A: Family>(
    dataplane: &mut Dataplane,
    place: Place,
    (scope, protocol): (Scope, u8),
    frontend: &str,
    prefix: &str,
) {
    let count = if place == Place::Here { PODS_HERE } else { PODS_FAR };
    let pods: Vec<IpAddr> =
        (2..2 + count).map(|n| format!("{prefix}{n}").parse().expect("an address")).collect();
    let backends: Vec<String> = pods.iter().map(|pod| SocketAddr::new(*pod, 8080).to_string()).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let service = dataplane.service::<A>(scope, protocol, frontend, &backends, place == Place::Here);
    if place == Place::Direct {
        dataplane.return_directly::<A>((scope, protocol), frontend, &service, &backends, A::neighbour());
    }
    for pod in pods.iter().filter(|_| place == Place::Here) {
        dataplane.endpoint::<A>(&pod.to_string());
    }
}

/// Times of (a program, the empty program) on one path.
fn time(driver: &mut Driver, subject: &Subject, place: Place, frame: &Frame, path: Path) -> Vec<(f64, f64)> {
    let mut dataplane = dataplane(place);
    let hook = subject.hook;
    let frame = padded(frame);
    let target = driver::fd(dataplane.program_mut(subject.name));
    let (count, stride, packets) = match path {
        Path::Established(count, stride) => (count, stride, PACKETS),
        Path::Opening => (OPENING_PACKETS.next_power_of_two(), IN_ORDER, OPENING_PACKETS),
        Path::NoService => (1, IN_ORDER, PACKETS),
    };
    if let Path::Established(count, _) = path {
        // As many at a time as the opening ones have room for. A client's second packet establishes its flow, in the order
        // in which clients come; for UDP it takes an answer.
        for first in (0..count).step_by(OPENING_PACKETS as usize) {
            let flows = Flows { count, stride: IN_ORDER, first };
            for _ in 0..2 {
                driver.run(hook, &target, &frame, flows, OPENING_PACKETS.min(count - first));
            }
            dataplane.establish::<Ip4>();
            dataplane.establish::<Ip6>();
        }
        check_entries(&mut dataplane, place, count);
    }
    let flows = Flows { count, stride, first: 0 };
    let mut pairs = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let empty = driver.run_empty(hook, &frame, flows, packets);
        let outcome = driver.run(hook, &target, &frame, flows, packets);
        let served = path != Path::NoService;
        let verdict = match hook {
            Hook::Xdp if place == Place::Here => XDP_PASS,
            Hook::Xdp => XDP_REDIRECT,
            Hook::Tc if served => TC_ACT_REDIRECT,
            Hook::Tc => TC_ACT_UNSPEC,
        };
        assert_eq!(outcome.verdict, verdict, "{}: verdict", subject.name);
        assert_eq!(destination(&outcome.frame) != destination(&frame), served, "{}: rewrite", subject.name);
        pairs.push((outcome.nanoseconds, empty.nanoseconds));
        if path == Path::Opening {
            check_entries(&mut dataplane, place, packets);
            clear(&mut dataplane);
        }
    }
    pairs
}

/// Makes the frame as long as the driver's.
fn padded(frame: &Frame) -> Vec<u8> {
    let headers = frame.clone().payload(&[]).bytes().len();
    frame.clone().payload(&[0; FRAME_LENGTH][headers..]).bytes()
}

/// The destination address of a frame.
fn destination(frame: &[u8]) -> &[u8] {
    if frame[12..14] == [0x86, 0xdd] { &frame[38..54] } else { &frame[30..34] }
}

/// Each flow has two entries, or one when its answers do not come here. XDP leaves one flow in 65,536 to TC, whose checksum
/// looks unfinished by chance.
fn check_entries(dataplane: &mut Dataplane, place: Place, flows: u32) {
    let expected = if place == Place::Direct { flows } else { flows * 2 };
    let found = (Ip4::flows(dataplane).len() + Ip6::flows(dataplane).len()) as u32;
    assert!(found <= expected && found + 16 >= expected, "{found} entries for {flows} flows");
    assert_ne!(found, 0, "no flow was opened");
}

/// Empties the flow tables.
fn clear(dataplane: &mut Dataplane) {
    for key in Ip4::flows(dataplane) {
        Ip4::remove_flow(dataplane, &key);
    }
    for key in Ip6::flows(dataplane) {
        Ip6::remove_flow(dataplane, &key);
    }
}

/// Instructions that the verifier walked: what a program's branches multiply to, and what the kernel bounds.
fn instructions(dataplane: &mut Dataplane, driver: &Driver) -> Vec<Row> {
    let verified = |program: &aya::programs::Program| {
        program.info().expect("it is loaded").verified_instruction_count().expect("Linux 5.16")
    };
    let packet = [(XDP_UPLINK, "empty_xdp"), (TC_UPLINK, "empty_tc"), (TC_POD, "empty_tc")];
    let socket = SOCKET_HOOKS.map(|name| (name, "empty_socket"));
    packet
        .into_iter()
        .chain(socket)
        .map(|(name, empty)| {
            let count = verified(dataplane.program_mut(name));
            row::count(format!("{name}: verifier"), "instructions", count, verified(driver.empty(empty)))
        })
        .collect()
}
