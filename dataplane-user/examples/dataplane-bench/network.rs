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
    Namespace,
    rules::{self, Endpoint, Family, Protocol, ServicePort, iptables, nftables},
};

use crate::{
    generator::{Kind, PORT, STREAM_PORT, Sink},
    node::{NODE_ADDRESS, POD_CIDR, TestNode},
    objects,
    row::{Goal, Row},
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

/// Everything but what takes minutes to load.
pub(crate) fn measure() -> Vec<Row> {
    let mut bench = Bench::new();
    let mut ours = Vec::new();
    for size in SIZES {
        bench.serve(size);
        let ways = [
            (Way::Sockets, "ClusterIP by socket hooks"),
            (Way::Pod, "ClusterIP by TC"),
            (Way::Outside, "NodePort by XDP and TC"),
        ];
        for (way, through) in ways {
            let kinds = if size == 10_000 && way != Way::Sockets { &KINDS[..] } else { &KINDS[..1] };
            ours.extend(kinds.iter().map(|kind| bench.measure(way, *kind, size, through)));
        }
        if size == 10_000 {
            // As Weir has it on a veth when nobody asks for more.
            bench.accelerate(Acceleration::Auto);
            ours.extend(KINDS.map(|kind| bench.measure(Way::Outside, kind, size, "NodePort by TC")));
            bench.accelerate(Acceleration::Generic);
        }
    }
    bench.leave();
    let plain = bench.plain();
    let beside = |row: Row, way: Way, kind: Kind| {
        let way = if way == Way::Outside { Way::Outside } else { Way::Pod };
        let (peer, ..) =
            plain.iter().find(|(_, w, k)| (*w, *k) == (way, kind)).expect("every way is plain once");
        row.beside(peer)
    };
    let mut rows = Vec::new();
    for (row, way, kind) in ours {
        let times = match (kind, way) {
            (Kind::Connections, Way::Sockets) | (Kind::Stream, _) => 1.0,
            (Kind::Connections, _) => 1.1,
            (Kind::Datagrams, _) => 1.2,
        };
        rows.push(beside(row, way, kind).goal(Goal::TimesPeer(times)));
    }
    for mode in [Mode::Nftables, Mode::Iptables] {
        for size in RULES {
            let measured = bench.through_rules(mode, size);
            rows.extend(measured.into_iter().map(|(row, way, kind)| beside(row, way, kind)));
        }
    }
    rows.extend(plain.into_iter().map(|(row, ..)| row));
    rows
}

/// Connections through nftables with 50,000 services.
pub(crate) fn measure_large_nftables() -> Vec<Row> {
    let mut bench = Bench::new();
    bench.leave();
    let rows = bench.through_rules(Mode::Nftables, 50_000);
    rows.into_iter().map(|(row, ..)| row).collect()
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

type Measured = (Row, Way, Kind);

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

    fn measure(&self, way: Way, kind: Kind, size: u32, through: &str) -> Measured {
        let name = format!("{}, {through}, {size} services", kind.title());
        self.row(&name, way, kind, address(way, kind, size))
    }

    fn row(&self, name: &str, way: Way, kind: Kind, to: SocketAddr) -> Measured {
        let (from, cgroup) = match way {
            Way::Pod => (&self.client, None),
            Way::Sockets => (&self.client, Some(&self.node.cgroup)),
            Way::Outside => (&self.node.client, None),
        };
        let mut samples = Vec::with_capacity(RUNS);
        for _ in 0..RUNS {
            samples.push(self.sink.sample(from, cgroup, kind, to));
            self.forget_flows();
        }
        (Row::of(name, kind.unit(), &samples), way, kind)
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

    /// Routing alone, to the pod's own address.
    fn plain(&self) -> Vec<Measured> {
        let mut all = Vec::new();
        for (way, from) in [(Way::Pod, "from a pod"), (Way::Outside, "from outside")] {
            for kind in KINDS {
                let name = format!("{}, plain routing {from}", kind.title());
                let port = if kind == Kind::Stream { STREAM_PORT } else { PORT };
                all.push(self.row(&name, way, kind, (self.server, port).into()));
            }
        }
        all
    }

    fn through_rules(&self, mode: Mode, size: u32) -> Vec<Measured> {
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
            all.extend(kinds.iter().map(|kind| self.measure(way, *kind, size, &through)));
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
