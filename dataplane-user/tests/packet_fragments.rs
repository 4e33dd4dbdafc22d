//! Fragments: the first says whose all of them are.

mod packets;

use packets::{
    Dataplane, Family, Frame, Program, Row, Verdict, dropped,
    frame::{Kind, SCTP, SYN, TCP, UDP, icmp, sctp, tcp, udp},
    into_pod, out,
};
use weir_dataplane_ebpf::{Fragment, FragmentKey, Ip4, Ip6, Protocol, Scope};

/// Addresses of one family.
struct Texts {
    node: &'static str,
    empty: &'static str,
    client: &'static str,
    pod: &'static str,
    pod_ip: &'static str,
    fragments: &'static str,
}

const V4: Texts = Texts {
    node: "192.168.0.1:30080",
    empty: "192.168.0.1:30081",
    client: "192.168.0.9:40000",
    pod: "10.244.0.5:8080",
    pod_ip: "10.244.0.5",
    fragments: "fragments_v4",
};
const V6: Texts = Texts {
    node: "[fd00::1]:30080",
    empty: "[fd00::1]:30081",
    client: "[fd00::9]:40000",
    pod: "[fd00:244::5]:8080",
    pod_ip: "fd00:244::5",
    fragments: "fragments_v6",
};

/// Bytes of a fragment that is not the last.
const SIZE: usize = 64;

fn service<A: Family>(texts: &Texts) -> Dataplane {
    let mut dataplane = Dataplane::new();
    for protocol in [TCP, UDP, SCTP] {
        dataplane.service::<A>(Scope::EXTERNAL, protocol, texts.node, &[texts.pod], true);
        dataplane.service::<A>(Scope::EXTERNAL, protocol, texts.empty, &[], true);
    }
    dataplane.endpoint::<A>(texts.pod_ip);
    dataplane
}

/// A datagram of three fragments.
fn datagram(source: &str, destination: &str) -> Frame {
    udp(source, destination).payload(&[7; SIZE * 2 + 20])
}

fn untouched(program: Program, description: &'static str, input: Frame) -> Row {
    Row { description, program, input, verdict: Verdict::Pass, output: None, drop: None }
}

fn both(check: impl Fn(&Texts, &mut Dataplane)) {
    check(&V4, &mut service::<Ip4>(&V4));
    check(&V6, &mut service::<Ip6>(&V6));
}

#[test]
fn later_fragments_follow_their_first_one() {
    both(|texts, dataplane| {
        let (asked, served) = (datagram(texts.client, texts.node), datagram(texts.client, texts.pod));
        let (said, sent) = (datagram(texts.pod, texts.client), datagram(texts.node, texts.client));
        let bare = |frame: &Frame| frame.clone().without_checksum().id(7);
        let part = |frame: &Frame, at: usize| frame.clone().part(at * SIZE, SIZE);
        dataplane.check(&[
            untouched(Program::TcUplink, "one that comes first", part(&asked, 1)),
            untouched(Program::XdpUplink, "XDP leaves the first", part(&asked, 0)),
            into_pod("the first", part(&asked, 0), part(&served, 0)),
            untouched(Program::XdpUplink, "XDP leaves the second", part(&asked, 1)),
            into_pod("the third before the second", part(&asked, 2), part(&served, 2)),
            into_pod("the second", part(&asked, 1), part(&served, 1)),
            untouched(Program::TcUplink, "of another packet", part(&asked, 1).id(9)),
            untouched(Program::TcUplink, "of another sender", part(&datagram(texts.pod, texts.node), 1)),
            out("the answer's first", part(&said, 0), part(&sent, 0)),
            out("the answer's second", part(&said, 1), part(&sent, 1)),
            out("the answer's third", part(&said, 2), part(&sent, 2)),
            into_pod("the first of an established flow", part(&asked, 0).id(5), part(&served, 0).id(5)),
            into_pod("the last of it", part(&asked, 2).id(5), part(&served, 2).id(5)),
            into_pod("the first without checksum", part(&bare(&asked), 0), part(&bare(&served), 0)),
            into_pod("the second of it", part(&bare(&asked), 1), part(&bare(&served), 1)),
        ]);
    });
}

#[test]
fn tcp_and_sctp() {
    both(|texts, dataplane| {
        let (asked, served) = (
            tcp(texts.client, texts.node).flags(SYN).payload(&[7; 100]),
            tcp(texts.client, texts.pod).flags(SYN).payload(&[7; 100]),
        );
        dataplane.check(&[
            untouched(Program::TcUplink, "a first without the whole header", asked.clone().part(0, 16)),
            untouched(Program::TcUplink, "the rest of it", asked.clone().part(16, 400)),
            into_pod("a whole header", asked.clone().part(0, 24), served.clone().part(0, 24)),
            into_pod("the rest", asked.clone().part(24, 400), served.clone().part(24, 400)),
            untouched(
                Program::TcUplink,
                "a checksum that needs the packet's length",
                sctp(texts.client, texts.node, 1).payload(&[7; 100]).part(0, 64),
            ),
        ]);
    });
}

#[test]
fn a_first_fragment_that_is_not_served_takes_the_memory_with_it() {
    both(|texts, dataplane| {
        let (asked, served) = (datagram(texts.client, texts.node), datagram(texts.client, texts.pod));
        let other = texts.node.replace("30080", "22");
        dataplane.check(&[
            into_pod("a first", asked.clone().part(0, SIZE), served.clone().part(0, SIZE)),
            untouched(
                Program::TcUplink,
                "nobody's, with that identification",
                datagram(texts.client, &other).part(0, SIZE),
            ),
            untouched(Program::TcUplink, "one of either", asked.part(SIZE, SIZE)),
        ]);
    });
}

#[test]
fn memory_ends() {
    fn check<A: Family>(texts: &Texts) {
        let mut dataplane = service::<A>(texts);
        let (asked, served) = (datagram(texts.client, texts.node), datagram(texts.client, texts.pod));
        dataplane.check(&[
            into_pod("the first", asked.clone().part(0, SIZE), served.clone().part(0, SIZE)),
            into_pod("the second", asked.clone().part(SIZE, SIZE), served.part(SIZE, SIZE)),
        ]);
        let mut memory = dataplane.hash::<FragmentKey<A>, Fragment>(texts.fragments);
        let (key, value) = memory.iter().next().expect("the first").expect("nobody else writes");
        let protocol = Protocol(if texts.node.starts_with('[') { 0 } else { UDP });
        assert_eq!(key.protocol, protocol);
        let long_ago = value.seen_s.checked_sub(Fragment::LIFE_S + 1).expect("the machine is up for long");
        memory.insert(key, Fragment { seen_s: long_ago, ..value }, 0).expect("it is there");
        dataplane.check(&[untouched(Program::TcUplink, "too late", asked.part(SIZE, SIZE))]);
    }
    check::<Ip4>(&V4);
    check::<Ip6>(&V6);
}

#[test]
fn what_cannot_go_on_ends_here() {
    both(|texts, dataplane| {
        let asked = datagram(texts.client, texts.node);
        let served = datagram(texts.client, texts.pod);
        dataplane.check(&[
            dropped("a last hop", asked.clone().part(0, SIZE).ttl(1), "ttl-exceeded"),
            into_pod("the first", asked.clone().part(0, SIZE), served.part(0, SIZE)),
            dropped("a last hop for the second", asked.clone().part(SIZE, SIZE).ttl(1), "ttl-exceeded"),
            dropped("half of the first", asked.part(0, SIZE).cut(14 + 40 + 8 + 4), "truncated"),
        ]);
    });
    let (client, empty) = (V6.client, V6.empty);
    service::<Ip6>(&V6).check(&[
        dropped("no endpoint", datagram(client, empty).part(0, SIZE), "no-backend"),
        untouched(Program::TcUplink, "of a dropped packet", datagram(client, empty).part(SIZE, SIZE)),
    ]);
}

#[test]
fn a_sender_is_told_that_nobody_serves() {
    const PORT_UNREACHABLE: Kind = (3, 3, 0);
    let first = datagram(V4.client, V4.empty).part(0, SIZE);
    let answer = icmp("192.168.0.1", PORT_UNREACHABLE, &first).quoting(28);
    service::<Ip4>(&V4).check(&[
        Row {
            description: "the first",
            program: Program::TcUplink,
            verdict: Verdict::Redirect,
            output: Some(answer.id(0).fragment(0x4000).link([0; 6], [2, 0, 0, 0, 0, 1])),
            input: first,
            drop: Some("no-backend"),
        },
        untouched(Program::TcUplink, "the second", datagram(V4.client, V4.empty).part(SIZE, SIZE)),
    ]);
}

#[test]
fn a_fragment_header_around_a_whole_packet_does_not_matter() {
    // An atomic fragment (RFC 6946).
    let whole = |destination| udp(V6.client, destination).part(0, SIZE);
    service::<Ip6>(&V6).check(&[into_pod("whole", whole(V6.node), whole(V6.pod))]);
}
