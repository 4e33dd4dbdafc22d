//! What the programs tell whoever listens, and that they tell nobody else.

mod packets;

use std::{net::Ipv6Addr, time::Duration};

use packets::{
    Dataplane, Program,
    frame::{ACK, SYN, TCP, UDP, tcp, udp},
};
use weir_dataplane::kernel::events;
use weir_dataplane_ebpf::{DropReason, Event, EventKind, Ip4, Ip6, Scope, maps::EVENTS_BYTES};

/// Until when somebody listens, from now on; before now for one who was killed a while ago.
fn listen(dataplane: &mut Dataplane, seconds: i64) {
    let now = events::since_boot().unwrap().as_secs().cast_signed();
    let until = Duration::from_secs((now + seconds).cast_unsigned()).as_nanos() as u64;
    dataplane.array::<u64>("monitor").set(0, until, 0).unwrap();
}

/// Kind, client, what it asked for, backend, all as text.
fn told(dataplane: &mut Dataplane) -> Vec<(EventKind, String, String, String)> {
    let address = |ip: Ip6, port: weir_dataplane_ebpf::Be16| {
        let ip = Ipv6Addr::from(ip);
        format!("{}:{}", ip.to_ipv4_mapped().map_or(ip.to_string(), |ip| ip.to_string()), port.get())
    };
    let row = |event: &Event| {
        (
            event.kind,
            address(event.source, event.source_port),
            address(event.destination, event.destination_port),
            address(event.backend, event.backend_port),
        )
    };
    dataplane.events().iter().map(row).collect()
}

#[test]
fn a_flow_is_told_when_it_opens_and_when_both_sides_have_spoken() {
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, "10.96.0.1:80", &["10.244.0.9:8080"], true);
    dataplane.service::<Ip6>(Scope::INTERNAL, UDP, "[fd00:96::1]:53", &["[fd00:244::9]:5353"], true);
    listen(&mut dataplane, 60);
    let (client, service) = ("10.244.0.5:40000", "10.96.0.1:80");
    dataplane.run(Program::TcPod, &tcp(client, service).flags(SYN).bytes());
    let row = |kind, client: &str, service: &str, backend: &str| {
        (kind, client.to_owned(), service.to_owned(), backend.to_owned())
    };
    assert_eq!(told(&mut dataplane), [row(EventKind::OPENED, client, service, "10.244.0.9:8080")]);
    for _ in 0..3 {
        dataplane.run(Program::TcPod, &tcp(client, service).flags(ACK).bytes());
    }
    assert_eq!(told(&mut dataplane), [row(EventKind::ESTABLISHED, client, service, "10.244.0.9:8080")]);

    // For UDP the answer says so, and the event names the client as the client all the same.
    dataplane.run(Program::TcPod, &udp("[fd00:244::5]:40000", "[fd00:96::1]:53").bytes());
    dataplane.run(Program::TcPod, &udp("[fd00:244::9]:5353", "[fd00:244::5]:40000").bytes());
    let six = |kind| row(kind, "fd00:244::5:40000", "fd00:96::1:53", "fd00:244::9:5353");
    assert_eq!(told(&mut dataplane), [six(EventKind::OPENED), six(EventKind::ESTABLISHED)]);
}

/// The packet has the backend's address, and an option names what the client asked for.
#[test]
fn a_flow_that_another_node_rewrote_is_told_with_its_frontend() {
    let (client, service, pod) = ("203.0.113.9:40000", "192.0.2.80:80", "10.244.0.9:8080");
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, service, &[pod], true);
    dataplane.endpoint::<Ip4>("10.244.0.9");
    listen(&mut dataplane, 60);
    let open = tcp(client, pod).flags(SYN).options(&[0x9a, 8, 0, 80, 192, 0, 2, 80]);
    dataplane.run(Program::TcUplink, &open.bytes());
    dataplane.run(Program::TcUplink, &tcp(client, pod).bytes());
    let row = |kind| (kind, client.to_owned(), service.to_owned(), pod.to_owned());
    assert_eq!(told(&mut dataplane), [row(EventKind::OPENED), row(EventKind::ESTABLISHED)]);
}

#[test]
fn a_drop_is_told_with_its_reason_by_every_program() {
    for (program, scope) in [
        (Program::XdpUplink, Scope::EXTERNAL),
        (Program::TcUplink, Scope::EXTERNAL),
        (Program::TcPod, Scope::INTERNAL),
    ] {
        let mut dataplane = Dataplane::new();
        let service = dataplane.service::<Ip4>(scope, UDP, "10.96.0.1:53", &["10.244.0.9:5353"], true);
        // An id that is in use no more.
        dataplane.set_backend::<Ip4>(service.first_backend, "10.244.0.9:5353", 0);
        listen(&mut dataplane, 60);
        dataplane.run(program, &udp("10.244.0.5:40000", "10.96.0.1:53").bytes());
        let events = dataplane.events();
        let [event] = &events[..] else { panic!("{program:?}: {events:?}") };
        assert_eq!(event.kind, EventKind::DROPPED, "{program:?}");
        assert_eq!(
            DropReason::from_index(event.reason.into()),
            Some(DropReason::StaleBackend),
            "{program:?}"
        );
        assert_eq!((event.protocol.0, event.destination_port.get()), (UDP, 53), "{program:?}");
    }
}

#[test]
fn nobody_is_told_who_does_not_listen() {
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, TCP, "10.96.0.1:80", &[], true);
    let frame = tcp("10.244.0.5:40000", "10.96.0.1:80").flags(SYN).bytes();
    dataplane.run(Program::TcPod, &frame);
    listen(&mut dataplane, -1);
    dataplane.run(Program::TcPod, &frame);
    assert_eq!(dataplane.events(), []);
    listen(&mut dataplane, 60);
    dataplane.run(Program::TcPod, &frame);
    assert_eq!(dataplane.events().len(), 1);
}

#[test]
fn what_has_no_room_is_counted_and_served() {
    let mut dataplane = Dataplane::new();
    dataplane.service::<Ip4>(Scope::INTERNAL, UDP, "10.96.0.1:53", &["10.244.0.9:5353"], true);
    listen(&mut dataplane, 600);
    // A header of eight bytes stands before each.
    let room = EVENTS_BYTES as usize / (size_of::<Event>() + 8);
    for port in 0..room + 10 {
        let client = format!("10.244.0.5:{}", 10_000 + port);
        dataplane.run(Program::TcPod, &udp(&client, "10.96.0.1:53").bytes());
    }
    let lost = dataplane.events_lost();
    assert!((10..=11).contains(&lost), "{lost}");
    assert_eq!(dataplane.events().len() as u64 + lost, room as u64 + 10);
    assert_eq!(dataplane.drops(), []);
}
