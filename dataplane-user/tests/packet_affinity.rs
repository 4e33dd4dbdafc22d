//! Session affinity in the packets' path: who keeps a backend, for how long, and when not.

mod packets;

use std::net::SocketAddr;

use packets::{
    Dataplane, Family, Program, Verdict,
    frame::{SYN, TCP, tcp},
};
use weir_dataplane::plan::maglev;
use weir_dataplane_ebpf::{
    Affinity, AffinityKey, Backend, Be16, Flow, Frontend, FrontendKey, Ip4, Ip6, Protocol, Scope, hash,
};

/// Kubernetes' default.
const TIMEOUT_S: u32 = 10_800;
/// The id of every service port here.
const SERVICE: u32 = 7;
/// Clients of each table; some of them move whenever the table changes.
const CLIENTS: u8 = 32;

/// An address family's texts.
trait Texts: Family {
    const NODE: &'static str;
    const AFFINITY: &'static str;

    fn client(n: u8, port: u16) -> String;
    fn backend(n: u8) -> String;
}

impl Texts for Ip4 {
    const NODE: &'static str = "192.168.0.1:30080";
    const AFFINITY: &'static str = "affinity_v4";

    fn client(n: u8, port: u16) -> String {
        format!("192.168.9.{n}:{port}")
    }

    fn backend(n: u8) -> String {
        format!("10.244.0.{n}:8080")
    }
}

impl Texts for Ip6 {
    const NODE: &'static str = "[fd00::1]:30080";
    const AFFINITY: &'static str = "affinity_v6";

    fn client(n: u8, port: u16) -> String {
        format!("[fd00::9:{n}]:{port}")
    }

    fn backend(n: u8) -> String {
        format!("[fd00:244::{n}]:8080")
    }
}

/// A `NodePort` whose backends come and go as an agent would have them. A backend's id is its number.
struct Table {
    dataplane: Dataplane,
    regions: u32,
    backends: Vec<u8>,
}

impl Table {
    fn new<A: Texts>(backends: &[u8]) -> Self {
        let mut table = Self { dataplane: Dataplane::new(), regions: 0, backends: Vec::new() };
        for n in 1..=16 {
            let flags = Backend::<A>::FLAG_ACTIVE | Backend::<A>::FLAG_LOCAL;
            table.dataplane.set_backend::<A>(u32::from(n), &A::backend(n), flags);
        }
        table.point::<A>(backends, TIMEOUT_S);
        table
    }

    /// Points the frontend to a new table of these backends.
    fn point<A: Texts>(&mut self, backends: &[u8], affinity_timeout_s: u32) {
        self.regions += 1;
        self.backends = backends.to_vec();
        let value = self.frontend(affinity_timeout_s);
        for (slot, id) in (value.maglev_offset..).zip(self.slots::<A>()) {
            self.dataplane.array::<u32>("maglev").set(slot, id, 0).expect("within the bound");
        }
        let node: SocketAddr = A::NODE.parse().expect("constant");
        let key = FrontendKey {
            address: A::parse(node.ip()),
            port: Be16::new(node.port()),
            protocol: Protocol::TCP,
            scope: Scope::EXTERNAL,
        };
        A::insert_frontend(&mut self.dataplane, key, value);
    }

    fn frontend(&self, affinity_timeout_s: u32) -> Frontend {
        Frontend {
            service: SERVICE,
            maglev_offset: self.regions * 256,
            maglev_mask: maglev::preferred_size(self.backends.len()) as u32 - 1,
            backends: self.backends.len() as u32,
            flags: Frontend::FLAG_NODE_PORT,
            affinity_timeout_s,
        }
    }

    fn slots<A: Texts>(&self) -> Vec<u32> {
        let mut sorted: Vec<(SocketAddr, u8)> =
            self.backends.iter().map(|n| (A::backend(*n).parse().expect("an address"), *n)).collect();
        sorted.sort_unstable();
        let addresses: Vec<SocketAddr> = sorted.iter().map(|(address, _)| *address).collect();
        let indexes = maglev::table(&addresses, maglev::preferred_size(addresses.len()));
        indexes.into_iter().map(|index| u32::from(sorted[index as usize].1)).collect()
    }

    /// What this client gets without a past.
    fn hashed<A: Texts>(&self, client: u8) -> u8 {
        let hash = hash::client(&address::<A>(client), SERVICE);
        self.slots::<A>()[(hash & self.frontend(0).maglev_mask) as usize] as u8
    }

    /// Opens a connection; the backend that it gets.
    fn connect<A: Texts>(&mut self, client: u8, port: u16) -> u8 {
        let source = A::client(client, port);
        let frame = tcp(&source, A::NODE).flags(SYN).bytes();
        let (verdict, _) = self.dataplane.run(Program::XdpUplink, &frame);
        assert_eq!(verdict, Verdict::Pass, "{source}: {:?}", self.dataplane.drops());
        self.dataplane.flow::<A>(TCP, &source, A::NODE).expect("the client's half").backend as u8
    }

    fn choice<A: Texts>(&mut self, client: u8) -> Option<Affinity> {
        let key = AffinityKey { client: address::<A>(client), service: SERVICE };
        self.dataplane.hash(A::AFFINITY).get(&key, 0).ok()
    }

    /// Makes a client's choice older.
    fn age<A: Texts>(&mut self, client: u8, seconds: u32) {
        let mut choice = self.choice::<A>(client).expect("it was recorded");
        choice.last_used_s = choice.last_used_s.checked_sub(seconds).expect("the machine runs for longer");
        let key = AffinityKey { client: address::<A>(client), service: SERVICE };
        self.dataplane.hash(A::AFFINITY).insert(key, choice, 0).expect("it is there");
    }
}

fn address<A: Texts>(client: u8) -> A {
    A::parse(A::client(client, 1).parse::<SocketAddr>().expect("an address").ip())
}

/// Seconds that a test may take between two readings of the clock.
const SLACK_S: u32 = 5;

fn a_client_keeps_its_backend_and_others_are_free<A: Texts>() {
    let mut table = Table::new::<A>(&[1, 2]);
    let before: Vec<u8> = (0..CLIENTS).map(|client| table.connect::<A>(client, 40_000)).collect();
    assert!(before.contains(&1) && before.contains(&2), "{before:?}");
    table.point::<A>(&[1, 2, 3, 4, 5, 6, 7, 8], TIMEOUT_S);
    let moved = (0..CLIENTS).filter(|c| table.hashed::<A>(*c) != before[usize::from(*c)]).count();
    assert!(moved > 8, "too few clients of this test, {moved}, would have moved");
    for client in 0..CLIENTS {
        assert_eq!(table.connect::<A>(client, 40_001), before[usize::from(client)], "client {client}");
    }
    for client in CLIENTS..2 * CLIENTS {
        assert_eq!(table.connect::<A>(client, 40_000), table.hashed::<A>(client), "new client {client}");
    }
}

#[test]
fn a_client_keeps_its_backend_when_endpoints_come_v4() {
    a_client_keeps_its_backend_and_others_are_free::<Ip4>();
}

#[test]
fn a_client_keeps_its_backend_when_endpoints_come_v6() {
    a_client_keeps_its_backend_and_others_are_free::<Ip6>();
}

#[test]
fn a_choice_ends_with_its_timeout() {
    /// Shorter than the machine's uptime, whose seconds count.
    const SHORT_S: u32 = 30;

    let mut table = Table::new::<Ip4>(&[1, 2]);
    let before: Vec<u8> = (0..CLIENTS).map(|client| table.connect::<Ip4>(client, 40_000)).collect();
    table.point::<Ip4>(&[3, 4, 5, 6, 1, 2], SHORT_S);
    for client in 0..CLIENTS {
        table.age::<Ip4>(client, SHORT_S - SLACK_S);
        assert_eq!(table.connect::<Ip4>(client, 40_001), before[usize::from(client)], "it came in time");
        table.age::<Ip4>(client, SHORT_S);
        let hashed = table.hashed::<Ip4>(client);
        assert_eq!(table.connect::<Ip4>(client, 40_002), hashed, "client {client} came too late");
        let choice = table.choice::<Ip4>(client).expect("the new choice");
        assert_eq!(choice.backend, u32::from(hashed));
    }
}

#[test]
fn a_backend_that_new_connections_may_not_choose_is_left() {
    let mut table = Table::new::<Ip4>(&[1, 2, 3]);
    let before: Vec<u8> = (0..CLIENTS).map(|client| table.connect::<Ip4>(client, 40_000)).collect();
    assert!(before.contains(&1));
    // Still active: connections that it has go on, as those of a terminating pod do.
    table.point::<Ip4>(&[2, 3], TIMEOUT_S);
    for client in 0..CLIENTS {
        let known = before[usize::from(client)];
        let expected = if known == 1 { table.hashed::<Ip4>(client) } else { known };
        assert_eq!(table.connect::<Ip4>(client, 40_001), expected, "client {client} of backend {known}");
    }
}

#[test]
fn a_backend_that_does_not_serve_any_more_is_left() {
    let mut table = Table::new::<Ip4>(&[1]);
    assert_eq!(table.connect::<Ip4>(0, 40_000), 1);
    table.point::<Ip4>(&[2], TIMEOUT_S);
    table.dataplane.set_backend::<Ip4>(1, &Ip4::backend(1), 0);
    assert_eq!(table.connect::<Ip4>(0, 40_001), 2);
    // The id comes back for another pod, which this service does not have.
    table.dataplane.set_backend::<Ip4>(
        2,
        &Ip4::backend(9),
        Backend::<Ip4>::FLAG_ACTIVE | Backend::<Ip4>::FLAG_LOCAL,
    );
    table.point::<Ip4>(&[3, 4], TIMEOUT_S);
    assert_eq!(table.connect::<Ip4>(0, 40_002), table.hashed::<Ip4>(0));
}

#[test]
fn off_is_off_at_once() {
    let mut table = Table::new::<Ip4>(&[1, 2, 3, 4]);
    let known = table.connect::<Ip4>(0, 40_000);
    table.point::<Ip4>(&[1, 2, 3, 4], 0);
    let others = (0..32).filter(|n| table.connect::<Ip4>(0, 40_001 + n) != known).count();
    assert!(others > 8, "{others} of 32 connections left the backend of the first");
}

#[test]
fn traffic_of_either_half_renews_the_choice() {
    let mut table = Table::new::<Ip4>(&[1, 2]);
    let backend = Ip4::backend(table.connect::<Ip4>(0, 40_000));
    let client = Ip4::client(0, 40_000);
    let fresh = table.choice::<Ip4>(0).expect("it was recorded").last_used_s;
    let directions = [
        (Program::XdpUplink, client.as_str(), Ip4::NODE),
        (Program::TcPod, backend.as_str(), client.as_str()),
    ];
    // The first packet after the SYN changes the flow's state, which is upkeep; from then on nothing is.
    for (program, source, destination) in directions {
        table.dataplane.run(program, &tcp(source, destination).bytes());
    }
    for (program, source, destination) in directions {
        let packet = tcp(source, destination).bytes();
        let only_passes = (0..3).any(|_| {
            table.age::<Ip4>(0, 20);
            table.dataplane.run(program, &packet);
            table.choice::<Ip4>(0).expect("it stays").last_used_s < fresh
        });
        assert!(only_passes, "not each of three packets in a row can meet the moment of upkeep");

        let key = packets::flow_key::<Ip4>(TCP, source, destination);
        let mut flow: Flow<Ip4> = table.dataplane.hash("flows_v4").get(&key, 0).expect("the flow");
        assert_ne!(flow.flags & Flow::<Ip4>::FLAG_AFFINITY, 0);
        flow.last_seen_jiffies = flow.last_seen_jiffies.wrapping_sub(1024);
        table.dataplane.hash("flows_v4").insert(key, flow, 0).expect("it is there");
        table.dataplane.run(program, &packet);
        let choice = table.choice::<Ip4>(0).expect("it stays");
        assert!(choice.last_used_s >= fresh, "{source} -> {destination}: {choice:?} since {fresh}");
    }
}

#[test]
fn an_old_connection_does_not_take_its_client_back() {
    let mut table = Table::new::<Ip4>(&[1]);
    assert_eq!(table.connect::<Ip4>(0, 40_000), 1);
    table.point::<Ip4>(&[2], TIMEOUT_S);
    assert_eq!(table.connect::<Ip4>(0, 40_001), 2);
    table.dataplane.run(Program::XdpUplink, &tcp(&Ip4::client(0, 40_000), Ip4::NODE).bytes());
    assert_eq!(table.choice::<Ip4>(0).map(|choice| choice.backend), Some(2));
}
