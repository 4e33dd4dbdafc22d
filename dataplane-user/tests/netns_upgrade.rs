//! What happens under traffic: agents that are killed and replaced, older layouts, backends that drain, many changes.
//! No connection breaks, and none reaches a backend that is not its service's.

mod node;

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, tcp},
    traffic::Traffic,
};
use serde_json::json;
use weir_dataplane::{
    kernel::{
        maps::Maps,
        migrate::{self, Entry},
    },
    programs,
};
use weir_dataplane_ebpf::{Affinity, AffinityKey, Be16, Flow, FlowKey, FlowState, Ip4, Protocol};

/// A layout whose entries mean what today's mean.
const OLDER: u32 = 2;
const NODE_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 30_001);

fn cluster_ip(n: u8) -> SocketAddr {
    ([10, 96, 0, n], 80).into()
}

/// From a pod and from outside.
fn traffic(node: &TestNode, pod: &weir_tests::Namespace, names: &'static str) -> [Traffic; 2] {
    [Traffic::start(pod, cluster_ip(1), names), Traffic::start(&node.client, NODE_PORT, names)]
}

fn all_went_well(traffic: [Traffic; 2]) {
    for (way, traffic) in ["from a pod", "from outside"].iter().zip(traffic) {
        let [exchanges, connections] = traffic.finish();
        println!("{way}: {exchanges} exchanges over lasting connections, {connections} new connections");
        assert!(exchanges > 0 && connections > 0);
    }
}

/// Ids of the programs on the uplink, in TC.
fn on_uplink(node: &TestNode) -> Vec<u32> {
    let (_, programs) =
        node.namespace.inside(|| SchedClassifier::query_tcx("up0", TcAttachType::Ingress)).unwrap();
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

fn flows(node: &TestNode) -> BTreeSet<String> {
    let maps = Maps::open(&node.paths()).unwrap();
    let all = maps.v4.flows.entries().unwrap();
    all.iter().map(|(key, _): &(FlowKey<Ip4>, _)| format!("{key:?}")).collect()
}

fn flow_to(destination: &str) -> FlowKey<Ip4> {
    let destination: SocketAddrV4 = destination.parse().unwrap();
    FlowKey {
        destination: Ip4::from(*destination.ip()),
        destination_port: Be16::new(destination.port()),
        protocol: Protocol::TCP,
        ..FlowKey::default()
    }
}

fn names_below(path: &std::path::Path) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn agents_are_killed_and_replaced() {
    let mut node = TestNode::new(false);
    let pods = [echo_pod(&node, "a"), echo_pod(&node, "b")];
    let (client, _) = node.add_pod("client");
    node.serve(1, &[pods[0].1, pods[1].1]);
    let traffic = traffic(&node, &client, "ab");
    for _ in 0..5 {
        let before = on_uplink(&node);
        node.kill();
        traffic.iter().for_each(Traffic::goes_on);
        assert_eq!(on_uplink(&node), before, "the agent is gone and its program is not");
        node.start();
        traffic.iter().for_each(Traffic::goes_on);
        let after = on_uplink(&node);
        assert_eq!(after.len(), 1);
        assert_ne!(after, before, "its program is replaced, and stands alone");
    }
    all_went_well(traffic);
}

#[test]
fn an_agent_with_newer_layouts_takes_over_what_is_as_it_was() {
    takes_over(false);
}

#[test]
fn an_agent_with_newer_layouts_takes_over_by_copies() {
    takes_over(true);
}

/// An agent starts on what one with older layouts left, with the same maps or with `apart` maps of its own.
fn takes_over(apart: bool) {
    let mut node = TestNode::new(false);
    let pods = [echo_pod(&node, "a"), echo_pod(&node, "b")];
    let (client, _) = node.add_pod("client");
    node.serve(1, &[pods[0].1, pods[1].1]);
    let traffic = traffic(&node, &client, "ab");
    for _ in 0..3 {
        node.kill();
        // As an agent with older layouts leaves it.
        let (now, older) = (node.paths(), node.paths().with_layout(OLDER));
        fs::rename(now.layout(), older.layout()).unwrap();
        let (flows_before, links) =
            (Maps::open(&older).unwrap().v4.flows.entries().unwrap().len(), names_below(&older.links()));
        if apart {
            // As if everything had changed, or an agent had died before it took over.
            fs::create_dir(now.layout()).unwrap();
            fs::create_dir(now.maps()).unwrap();
            let pins = now.maps();
            programs::load(&programs::Options { pins: Some(&pins), ..programs::Options::default() }).unwrap();
        }
        // Its flows had one table, whatever their state.
        let opening = flow_to("203.0.113.9:1");
        let value = Flow { state: FlowState::OPENING, ..Flow::default() };
        Maps::open(&older).unwrap().v4.flows.write(&[opening], &[value]).unwrap();
        let before = on_uplink(&node);
        traffic.iter().for_each(Traffic::goes_on);
        node.start();
        traffic.iter().for_each(Traffic::goes_on);
        let maps = Maps::open(&now).unwrap();
        assert_eq!(maps.v4.flows.get(&opening).unwrap(), None);
        assert_eq!(maps.v4.opening.get(&opening).unwrap(), Some(value));
        assert!(!older.layout().exists(), "nothing of the older agent is left");
        assert_eq!(names_below(&now.links()), links);
        let after = on_uplink(&node);
        assert_eq!(after.len(), 1, "no packet meets two programs");
        assert_ne!(after, before);
        let flows = flows(&node);
        assert!(flows.len() >= flows_before.min(LASTING_FLOWS), "{flows:?}");
    }
    all_went_well(traffic);
    // The plugin's entries came along.
    let maps = Maps::open(&node.paths()).unwrap();
    let endpoints: BTreeSet<Ipv4Addr> =
        maps.v4.endpoints.entries().unwrap().iter().map(|(address, _)| (*address).into()).collect();
    assert!(pods.iter().all(|(_, address)| endpoints.contains(address)), "{endpoints:?}");
}

/// Entries of the lasting connections of both ways, two for each.
const LASTING_FLOWS: usize = 16;

#[test]
fn an_agent_takes_the_links_of_layouts_that_it_does_not_know() {
    let mut node = TestNode::new(false);
    let (_pod, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let links = names_below(&node.paths().links());
    node.kill();
    let newer = node.paths().with_layout(99);
    fs::rename(node.paths().layout(), newer.layout()).unwrap();
    node.start();
    assert!(!newer.layout().exists());
    assert_eq!(on_uplink(&node).len(), 1, "no packet meets two programs");
    assert_eq!(names_below(&node.paths().links()), links);
    assert!(tcp(&node.client, NODE_PORT).is_ok(), "the API says what to serve");
}

#[test]
fn entries_of_another_shape_are_converted() {
    /// A flow of a layout that never was: two addresses, and two numbers.
    fn convert(key: &[u8], value: &[u8]) -> Option<Entry> {
        let [a, b, c, d, service @ ..] = key else { return None };
        if value[0] == 0 {
            return None;
        }
        let key = flow_to(&format!("{a}.{b}.{c}.{d}:80"));
        let words = [key.source.0.bits(), key.destination.0.bits()].map(u32::to_ne_bytes).concat();
        let ports = [key.source_port.bits(), key.destination_port.bits()].map(u16::to_ne_bytes).concat();
        let mut flow = vec![0; size_of::<Flow<Ip4>>()];
        flow[SERVICE_AT..SERVICE_AT + 4].copy_from_slice(service);
        let map = if value[0] == 1 { "flows_v4" } else { "opening_v4" };
        Some((map, [words, ports, vec![key.protocol.0, 0, 0, 0]].concat(), flow))
    }
    const SERVICE_AT: usize = std::mem::offset_of!(Flow<Ip4>, service);

    let node = TestNode::new(false);
    let (now, older) = (node.paths(), node.paths().with_layout(0));
    fs::create_dir(older.layout()).unwrap();
    fs::create_dir(older.maps()).unwrap();
    // Keys and values of eight bytes, under the name of the flows.
    fs::hard_link(now.map("affinity_v4"), older.map("flows_v4")).unwrap();
    let maps = Maps::open(&now).unwrap();
    let entries = [("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 0)].map(|(client, backend)| {
        let client: Ipv4Addr = client.parse().unwrap();
        (AffinityKey { client: Ip4::from(client), service: 7 }, Affinity { backend, last_used_s: 0 })
    });
    let (keys, values): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
    maps.v4.affinity.write(&keys, &values).unwrap();
    let wrong_size = migrate::copy(&older, &now, "flows_v4", None).unwrap_err().to_string();
    assert!(wrong_size.contains("another size"), "{wrong_size}");
    let change = Some(migrate::Change::Entries(convert));
    assert_eq!(migrate::copy(&older, &now, "flows_v4", change).unwrap(), (3, 0));
    let flow = Some(Flow { service: 7, ..Flow::default() });
    assert_eq!(maps.v4.flows.get(&flow_to("10.0.0.1:80")).unwrap(), flow);
    assert_eq!(maps.v4.opening.get(&flow_to("10.0.0.2:80")).unwrap(), flow);
    assert_eq!(maps.v4.flow(&flow_to("10.0.0.3:80")).unwrap(), None, "of no use any more");
}

#[test]
fn backends_drain() {
    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let (client, _) = node.add_pod("client");
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    node.serve(1, &[b]);
    // All of these are b's.
    let lasting =
        [Traffic::start(&client, cluster_ip(1), "ab"), Traffic::start(&node.client, NODE_PORT, "ab")];
    node.serve_conditions(1, &[(a, &ready), (b, &ending)]);
    lasting.iter().for_each(Traffic::goes_on);
    for (from, to) in [(&client, cluster_ip(1)), (&node.client, NODE_PORT)] {
        for _ in 0..16 {
            assert_eq!(tcp(from, to).unwrap(), "a hello", "new connections go where endpoints are ready");
        }
    }
    lasting.iter().for_each(Traffic::goes_on);
    all_went_well(lasting);
    // Their connections have ended; the backend goes, and nobody notices.
    let rest = [Traffic::start(&client, cluster_ip(1), "a"), Traffic::start(&node.client, NODE_PORT, "a")];
    node.serve_conditions(1, &[(a, &ready)]);
    rest.iter().for_each(Traffic::goes_on);
    all_went_well(rest);
}

#[test]
fn endpoints_change_a_thousand_times_a_second() {
    /// Changes, five seconds' worth.
    const CHANGES: u32 = 5_000;
    const EVERY: Duration = Duration::from_millis(1);
    /// Services that change besides.
    const OTHERS: u32 = 200;

    let mut node = TestNode::new(false);
    let (_a, a) = echo_pod(&node, "a");
    let (_b, b) = echo_pod(&node, "b");
    let (client, _) = node.add_pod("client");
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    node.serve_conditions(1, &[(a, &ready), (b, &ready)]);
    let traffic = traffic(&node, &client, "ab");
    let started = Instant::now();
    for change in 0..CHANGES {
        if change % 10 == 0 {
            // The service that is in use: one of its two comes and goes.
            let condition = if change % 20 == 0 { &ending } else { &ready };
            node.serve_conditions(1, &[(a, &ready), (b, condition)]);
        } else {
            let n = 2 + (change % OTHERS) as u8;
            let both = [a, b];
            node.serve(n, &both[..=(change / OTHERS % 2) as usize]);
        }
        std::thread::sleep((started + EVERY * change).saturating_duration_since(Instant::now()));
    }
    let rate = f64::from(CHANGES) / started.elapsed().as_secs_f64();
    println!("{CHANGES} changes, {rate:.0} a second");
    traffic.iter().for_each(Traffic::goes_on);
    all_went_well(traffic);
}
