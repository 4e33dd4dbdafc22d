//! What goes through a node each second: new connections, datagrams, bytes. Over plain routing, through rulesets of
//! kube-proxy's shape, and with Weir's programs, all on the same links of the same node.
//!
//! ```text
//! client ── up1 ─ up0 ── node ── pod link ── server pod
//!                          └──── pod link ── client pod
//! ```
//! The links are veth. Those of the uplink leave no checksum to hardware.

use std::net::{Ipv4Addr, SocketAddr};

use weir_dataplane::kernel::{bpffs, maps::Maps, xdp::Acceleration};
use weir_tests::{
    Goal, Namespace, Row,
    rules::{self, Endpoint, Family, Protocol, ServicePort, iptables, nftables},
};

use crate::{
    generator::{Kind, PORT, STREAM_PORT, Sink},
    node::{NODE_ADDRESS, POD_CIDR, TestNode},
    objects,
};

/// Samples of each figure.
const RUNS: usize = 5;
/// Services that Weir's measured one is among.
const SIZES: [u32; 3] = [1, 10_000, 50_000];
/// The same of the rulesets. That of nftables with 50,000 takes minutes to load and is a part of its own.
const RULES: [u32; 3] = [1, 1_000, 10_000];
/// Services of the rulesets that datagrams and streams go through.
const MIDDLE: u32 = 1_000;
/// Endpoints of a service.
const ENDPOINTS: u32 = 3;

/// The measured services' node ports, below those of [`rules::many`].
fn node_port(kind: Kind) -> u16 {
    29_000 + kind as u16
}

/// Their cluster addresses, above those.
fn cluster_ip(kind: Kind, size: u32) -> Ipv4Addr {
    rules::many_cluster_ip(size + kind as u32)
}

/// All kinds, connections first.
const KINDS: [Kind; 3] = [Kind::Connections, Kind::Datagrams, Kind::Stream];

/// A way in: from where, and whether the socket hooks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From a pod, by its packets.
    Pod,
    /// From a pod, by its sockets.
    Sockets,
    /// From beyond the uplink.
    Outside,
}

/// The node and what loads it.
struct Bench {
    node: TestNode,
    client: Namespace,
    sink: Sink,
    server: Ipv4Addr,
    _server: Namespace,
}

/// Everything but what takes minutes to load. Each sample of Weir's or of rules is taken next to one of plain routing on a
/// node of its own: what else runs on the machine harms both.
pub(crate) fn measure() -> Vec<Row> {
    let (mut bench, mut plain) = (Bench::new(), Bench::new());
    plain.leave();
    let mut rows = Vec::new();
    for size in SIZES {
        bench.serve(size);
        let ways = [
            (Way::Sockets, "ClusterIP by socket hooks"),
            (Way::Pod, "ClusterIP by TC"),
            (Way::Outside, "NodePort by XDP and TC"),
        ];
        for (way, through) in ways {
            let kinds = if size == 10_000 && way != Way::Sockets { &KINDS[..] } else { &KINDS[..1] };
            rows.extend(kinds.iter().map(|kind| bench.reach(&plain, way, *kind, size, through)));
        }
        if size == 10_000 {
            // As Weir has it on a veth when nobody asks for more.
            bench.accelerate(Acceleration::Auto);
            rows.extend(KINDS.map(|kind| bench.reach(&plain, Way::Outside, kind, size, "NodePort by TC")));
            bench.accelerate(Acceleration::Generic);
        }
    }
    bench.leave();
    for mode in [Mode::Nftables, Mode::Iptables] {
        for size in RULES {
            rows.extend(bench.through_rules(&plain, mode, size));
        }
    }
    rows
}

/// Connections through nftables with 50,000 services.
pub(crate) fn measure_large_nftables() -> Vec<Row> {
    let (mut bench, mut plain) = (Bench::new(), Bench::new());
    bench.leave();
    plain.leave();
    bench.through_rules(&plain, Mode::Nftables, 50_000)
}

/// Where the measured service is reached.
fn address(way: Way, kind: Kind, size: u32) -> SocketAddr {
    match way {
        Way::Outside => (NODE_ADDRESS, node_port(kind)).into(),
        Way::Pod | Way::Sockets => (cluster_ip(kind, size), 80).into(),
    }
}

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nftables,
    Iptables,
}

impl Bench {
    fn new() -> Self {
        let node = TestNode::new(true);
        let (server, address) = node.add_pod("server");
        let (client, _) = node.add_pod("client");
        node.client.ip(&format!("route add {POD_CIDR} via {NODE_ADDRESS}")).expect("a way to the pods");
        let sink = Sink::start(&server);
        Self { node, client, sink, server: address, _server: server }
    }

    /// Weir's maps get so many services.
    fn serve(&mut self, size: u32) {
        for port in self.services(size) {
            objects::apply(&mut self.node.store, objects::of(&port));
        }
        self.node.sync();
    }

    /// Another start, with XDP there.
    fn accelerate(&mut self, acceleration: Acceleration) {
        self.node.kill();
        self.node.acceleration = acceleration;
        self.node.start();
    }

    /// Weir's programs leave; the links stay.
    fn leave(&mut self) {
        self.node.kill();
        bpffs::remove(&self.node.paths()).expect("pins can be removed");
        // What kept unknown service addresses on the node would keep rules from seeing them.
        for range in ["10.96.0.0/12", "10.244.0.0/16"] {
            self.node.namespace.ip(&format!("route del unreachable {range}")).expect("the agent made it");
        }
        self.node.namespace.ip("route add default via 192.0.2.2").expect("a way for everything");
    }

    /// The measured services, one for each kind, are the last of their set, which a list is walked to the end for.
    fn services(&self, size: u32) -> Vec<ServicePort> {
        let mut all = rules::many(size - 1, ENDPOINTS);
        let one = |kind: Kind| {
            let at = (self.server, if kind == Kind::Stream { STREAM_PORT } else { PORT });
            ServicePort {
                protocol: if kind == Kind::Datagrams { Protocol::Udp } else { Protocol::Tcp },
                node_port: Some(node_port(kind)),
                endpoints: vec![Endpoint::ready(at.into(), true)],
                ..ServicePort::new(kind.name(), cluster_ip(kind, size).into())
            }
        };
        all.extend([Kind::Datagrams, Kind::Stream, Kind::Connections].map(one));
        all
    }

    /// Weir's figure, with its goal.
    fn reach(&self, plain: &Self, way: Way, kind: Kind, size: u32, through: &str) -> Row {
        let times = match (kind, way) {
            (Kind::Connections, Way::Sockets) | (Kind::Stream, _) => 1.0,
            (Kind::Connections, _) => 1.1,
            (Kind::Datagrams, _) => 1.2,
        };
        self.measure(plain, way, kind, size, through).goal(Goal::AtLeastTimesPeer(times))
    }

    /// What goes through a service, beside what goes to the pod's own address by plain routing.
    fn measure(&self, plain: &Self, way: Way, kind: Kind, size: u32, through: &str) -> Row {
        let port = if kind == Kind::Stream { STREAM_PORT } else { PORT };
        let pair = |_| {
            let theirs = plain.sample(way, kind, (plain.server, port).into());
            (self.sample(way, kind, address(way, kind, size)), theirs)
        };
        let pairs: Vec<(f64, f64)> = (0..RUNS).map(pair).collect();
        let from = if way == Way::Outside { "outside" } else { "a pod" };
        let name = format!("{}, {through}, {size} services", kind.title());
        Row::pairs(name, kind.unit(), &pairs, &format!("plain routing from {from}"))
    }

    fn sample(&self, way: Way, kind: Kind, to: SocketAddr) -> f64 {
        let (from, cgroup) = match way {
            Way::Pod => (&self.client, None),
            Way::Sockets => (&self.client, Some(&self.node.cgroup)),
            Way::Outside => (&self.node.client, None),
        };
        let sample = self.sink.sample(from, cgroup, kind, to);
        self.forget_flows();
        sample
    }

    /// No agent runs that would remove what is over: one second's connections must not fill the next one's table.
    fn forget_flows(&self) {
        if !self.node.paths().maps().exists() {
            return;
        }
        let maps = Maps::open(&self.node.paths()).expect("they are pinned");
        let flows = maps.v4.flows.entries().expect("they can be read");
        let keys: Vec<_> = flows.into_iter().map(|(key, _)| key).collect();
        maps.v4.flows.remove(&keys).expect("they can be removed");
    }

    fn through_rules(&self, plain: &Self, mode: Mode, size: u32) -> Vec<Row> {
        let mut facts = rules::many_node(NODE_ADDRESS.into());
        facts.pod_ranges = vec![(Family::V4, "10.244.0.0/16".into())];
        let services = self.services(size);
        let node = &self.node.namespace;
        match mode {
            Mode::Nftables => nftables::load(node, &nftables::render(&facts, Family::V4, &services)),
            Mode::Iptables => {
                iptables::load(node, Family::V4, &iptables::render(&facts, Family::V4, &services))
            }
        }
        .expect("the kernel takes the rules");
        let mut all = Vec::new();
        for (way, at) in [(Way::Pod, "ClusterIP"), (Way::Outside, "NodePort")] {
            let kinds = if size == MIDDLE { &KINDS[..] } else { &KINDS[..1] };
            let through = format!("{} {at}", mode.name());
            all.extend(kinds.iter().map(|kind| self.measure(plain, way, *kind, size, &through)));
        }
        match mode {
            Mode::Nftables => nftables::unload(node),
            Mode::Iptables => iptables::unload(node, Family::V4),
        }
        .expect("the kernel forgets the rules");
        all
    }
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}
