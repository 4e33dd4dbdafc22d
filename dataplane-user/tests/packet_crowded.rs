//! Tables of established flows that fill: closed flows make room for new ones, and live ones stay.

mod packets;

use std::collections::HashSet;

use packets::{
    Dataplane, Family as _, Program, flow_key,
    frame::{ACK, FIN, SYN, TCP, tcp},
};
use tempfile::TempDir;
use weir_dataplane::{
    flows::{self, CLOSED, Lost, Pass},
    kernel::{bpffs, maps::Maps},
    paths::Paths,
    traffic::Ledger,
};
use weir_dataplane_ebpf::{Flow, FlowKey, FlowState, Ip4, Scope};

const NODE: &str = "192.168.0.1:30080";
const POD: &str = "10.244.0.5:8080";
/// Ticks in a second, for the passes.
const HZ: u32 = 250;
/// Entries that the small table has room for.
const ROOM: u32 = 256;

/// A service whose maps user space sees.
struct Place {
    dataplane: Dataplane,
    maps: Maps,
    ledger: Ledger,
    paths: Paths,
    _run_dir: TempDir,
}

impl Drop for Place {
    fn drop(&mut self) {
        bpffs::remove(&self.paths).unwrap();
    }
}

impl Place {
    fn new(flows: u32) -> Self {
        let run_dir = tempfile::Builder::new().prefix("weir-crowded-").tempdir().unwrap();
        let paths = Paths::new(run_dir.path());
        bpffs::ensure(&paths).unwrap();
        let bounds = [("flows_v4", flows), ("backends_v4", 64), ("backends_v6", 64)];
        let mut dataplane = Dataplane::pinned(&paths.maps(), &bounds);
        dataplane.service::<Ip4>(Scope::EXTERNAL, TCP, NODE, &[POD], true);
        let maps = Maps::open(&paths).unwrap();
        Self { dataplane, maps, ledger: Ledger::default(), paths, _run_dir: run_dir }
    }

    /// A packet of a client, by its port.
    fn client(&mut self, port: u16, flags: u8) {
        let frame = tcp(&client(port), NODE).flags(flags).bytes();
        self.dataplane.run(Program::XdpUplink, &frame);
    }

    /// The pod's packet for it.
    fn pod(&mut self, port: u16, flags: u8) {
        let frame = tcp(POD, &client(port)).flags(flags).bytes();
        self.dataplane.run(Program::TcPod, &frame);
    }

    /// Opens a connection.
    fn open(&mut self, port: u16) {
        self.client(port, SYN);
        self.pod(port, SYN | ACK);
        self.client(port, ACK);
    }

    fn close(&mut self, port: u16) {
        self.client(port, FIN | ACK);
        self.pod(port, FIN | ACK);
    }

    /// The client's half, if it stands among the established ones.
    fn established(&self, port: u16) -> Option<Flow<Ip4>> {
        self.maps.v4.flows.get(&flow_key(TCP, &client(port), NODE)).unwrap()
    }

    /// Makes all entries so much older.
    fn pass_time(&self, seconds: u32) {
        let entries = self.maps.v4.flows.entries().unwrap();
        let (keys, mut values): (Vec<FlowKey<Ip4>>, Vec<Flow<Ip4>>) = entries.into_iter().unzip();
        for flow in &mut values {
            flow.last_seen_jiffies = flow.last_seen_jiffies.wrapping_sub(seconds * HZ);
        }
        self.maps.v4.flows.write(&keys, &values).unwrap();
    }

    /// One pass, at the tick of the packet that this sends: another connection's.
    fn collect(&mut self) -> Pass {
        self.client(1, SYN);
        let key = flow_key::<Ip4>(TCP, &client(1), NODE);
        let now = self.maps.v4.opening.get(&key).unwrap().expect("it is opening").last_seen_jiffies;
        let services = HashSet::from([1]);
        flows::pass(&self.maps, now, f64::from(HZ), &mut self.ledger, &services, &Lost::default()).unwrap()
    }
}

fn client(port: u16) -> String {
    format!("192.168.0.9:{port}")
}

#[test]
fn closed_flows_make_room_and_live_ones_stay() {
    const LIVE: std::ops::Range<u16> = 1_000..1_016;
    const HALF_CLOSED: std::ops::Range<u16> = 2_000..2_002;
    /// New connections in a second: with ten seconds of rest for each they would not fit.
    const A_SECOND: u16 = 14;
    let mut place = Place::new(ROOM);
    for port in LIVE.chain(HALF_CLOSED) {
        place.open(port);
    }
    for port in HALF_CLOSED {
        place.client(port, FIN | ACK);
    }
    assert!(!flows::is_crowded(&place.maps).unwrap());
    let mut next = 10_000_u16;
    let (mut early, mut crowded) = (0, false);
    for second in 0..40 {
        for _ in 0..A_SECOND {
            place.open(next);
            assert!(place.established(next).is_some(), "in second {second} there is no room");
            place.close(next);
            assert_eq!(place.established(next).unwrap().state, FlowState::CLOSED);
            next += 1;
        }
        place.pass_time(1);
        crowded |= flows::is_crowded(&place.maps).unwrap();
        early += place.collect().early;
    }
    assert!(u32::from(A_SECOND) * 2 * CLOSED.as_secs() as u32 > ROOM);
    assert!(crowded && early > 0);
    for (ports, state) in [(LIVE, FlowState::ESTABLISHED), (HALF_CLOSED, FlowState::CLOSING)] {
        for port in ports {
            assert_eq!(place.established(port).map(|flow| flow.state), Some(state), "{port}");
        }
    }
}

#[test]
fn closed_flows_have_their_rest_while_there_is_room() {
    let mut place = Place::new(ROOM);
    place.open(1_000);
    place.close(1_000);
    place.pass_time(9);
    assert_eq!(place.collect().early, 0);
    assert!(place.established(1_000).is_some(), "nine seconds are not ten");
    place.pass_time(2);
    let pass = place.collect();
    assert_eq!((place.established(1_000), pass.removed, pass.early), (None, 2, 0));
}

/// Of a table of the real size a part is looked at.
#[test]
fn a_sample_tells_how_full_a_large_table_is() {
    let place = Place::new(weir_dataplane_ebpf::maps::FLOWS);
    assert!(place.maps.v4.flows.fill().unwrap() < 1e-9);
    let mut written = 0_u32;
    for (upto, crowded) in [(90_000_u32, false), (170_000, true)] {
        let keys: Vec<FlowKey<Ip4>> = (written..upto)
            .map(|n| FlowKey {
                source: Ip4::parse(std::net::Ipv4Addr::from_bits(n).into()),
                ..FlowKey::default()
            })
            .collect();
        place.maps.v4.flows.write(&keys, &vec![Flow::default(); keys.len()]).unwrap();
        written = upto;
        let (fill, right) = (place.maps.v4.flows.fill().unwrap(), f64::from(upto) / 262_144.0);
        // Eight times what chance makes of it.
        assert!((fill - right).abs() < 0.2 * right, "{fill} instead of {right}");
        assert_eq!(flows::is_crowded(&place.maps).unwrap(), crowded);
    }
}
