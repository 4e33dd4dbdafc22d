//! What the packet tables share: frames, a dataplane with maps of its own, and the loop over the rows.

#![allow(dead_code, reason = "each table uses its part")]

pub(crate) mod frame;
mod loaded;
pub(crate) mod network;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use aya::{
    Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf},
    programs::{SchedClassifier, Xdp},
};
use weir_dataplane::{
    kernel::{events, packet_log::PacketLog},
    programs::{self, Options},
};
use weir_dataplane_ebpf::{
    Address, Affinity, AffinityKey, Backend, Be16, DROP_REASONS, Endpoint, Event, Flow, FlowKey, FlowState,
    Fragment, FragmentKey, Frontend, FrontendKey, Ip4, Ip6, Mac, NodeConfig, Protocol, Scope, filter,
};

pub(crate) use frame::Frame;
use loaded::Loaded;

/// The node's address in the pod network, where masqueraded packets come from.
pub(crate) const GATEWAY_V4: &str = "10.244.0.1";
/// The same, IPv6.
pub(crate) const GATEWAY_V6: &str = "fd00:244::1";
/// Link addresses of every endpoint that [`Dataplane::endpoint`] makes.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The host's end of every such pod link.
pub(crate) const POD_IFINDEX: u32 = 7;

/// Where a packet goes. XDP's and TC's numbers for it differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Drop,
    Redirect,
}

/// The programs that packets can be run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    XdpUplink,
    TcUplink,
    TcPod,
}

/// A row of a table: a packet and what must become of it.
pub(crate) struct Row {
    pub(crate) description: &'static str,
    pub(crate) program: Program,
    pub(crate) input: Frame,
    pub(crate) verdict: Verdict,
    /// What comes out; the input itself when `None`.
    pub(crate) output: Option<Frame>,
    /// The reason that is counted, once.
    pub(crate) drop: Option<&'static str>,
}

/// At TC on the uplink: a client's packet that goes into the pod.
pub(crate) fn into_pod(description: &'static str, input: Frame, output: Frame) -> Row {
    Row {
        description,
        program: Program::TcUplink,
        input,
        verdict: Verdict::Redirect,
        output: Some(output.ttl(63).link(HOST_MAC, POD_MAC)),
        drop: None,
    }
}

/// A pod's packet that goes out the way that the client's came.
pub(crate) fn out(description: &'static str, input: Frame, output: Frame) -> Row {
    Row {
        description,
        program: Program::TcPod,
        input,
        verdict: Verdict::Redirect,
        output: Some(output.ttl(63)),
        drop: None,
    }
}

/// At TC on the uplink: a packet that ends there.
pub(crate) fn dropped(description: &'static str, input: Frame, reason: &'static str) -> Row {
    Row {
        description,
        program: Program::TcUplink,
        input,
        verdict: Verdict::Drop,
        output: None,
        drop: Some(reason),
    }
}

/// A family's half of the maps, with addresses that come as text.
pub(crate) trait Family: Address + Pod {
    fn parse(ip: IpAddr) -> Self;
    fn insert_frontend(dataplane: &mut Dataplane, key: FrontendKey<Self>, value: Frontend);
    fn set_backend(dataplane: &mut Dataplane, id: u32, value: Backend<Self>);
    fn insert_endpoint(dataplane: &mut Dataplane, ip: Self, value: Endpoint);
    fn insert_cluster_ip(dataplane: &mut Dataplane, address: Self);
    /// Takes it away; its bit in the filter stays.
    fn remove_cluster_ip(dataplane: &mut Dataplane, address: Self);
    /// Takes tunnelled packets from a node.
    fn add_tunnel_peer(dataplane: &mut Dataplane, node: Self);
    fn flow(dataplane: &mut Dataplane, key: &FlowKey<Self>) -> Option<Flow<Self>>;
    fn remove_flow(dataplane: &mut Dataplane, key: &FlowKey<Self>);
    /// Moves all flows to the established ones, as their next packets would.
    fn establish(dataplane: &mut Dataplane);
    /// A node that measurements and tables know a way to.
    fn neighbour() -> Self;
    /// How many entries of established flows there are.
    fn established(dataplane: &mut Dataplane) -> usize;
    /// Keys of all flow entries.
    fn flows(dataplane: &mut Dataplane) -> Vec<FlowKey<Self>>;
}

/// Flows in the order of their clients, the answer's half behind the other.
fn order<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> (Vec<u32>, u16, u8) {
    let reply = flow.flags & Flow::<A>::FLAG_REPLY;
    let client =
        if reply == 0 { (key.source, key.source_port) } else { (flow.destination, flow.destination_port) };
    let address = client.0.words().as_ref().iter().map(|word| word.get()).collect();
    (address, client.1.get(), reply)
}

macro_rules! family {
    ($address:ty, $variant:ident, $suffix:literal) => {
        impl Family for $address {
            fn parse(ip: IpAddr) -> Self {
                match ip {
                    IpAddr::$variant(ip) => ip.into(),
                    other => panic!("{other} is of the other family"),
                }
            }

            fn insert_frontend(dataplane: &mut Dataplane, key: FrontendKey<Self>, value: Frontend) {
                dataplane.widen_filter(key.address, key.port);
                dataplane.hash(concat!("frontends_", $suffix)).insert(key, value, 0).expect("room");
            }

            fn insert_cluster_ip(dataplane: &mut Dataplane, address: Self) {
                dataplane.widen_filter(address, filter::ANY_PORT);
                dataplane.hash(concat!("cluster_ips_", $suffix)).insert(address, 0_u32, 0).expect("room");
            }

            fn remove_cluster_ip(dataplane: &mut Dataplane, address: Self) {
                dataplane
                    .hash::<_, u32>(concat!("cluster_ips_", $suffix))
                    .remove(&address)
                    .expect("it is there");
            }

            fn set_backend(dataplane: &mut Dataplane, id: u32, value: Backend<Self>) {
                dataplane.widen_filter(value.address, value.port);
                dataplane.array(concat!("backends_", $suffix)).set(id, value, 0).expect("within the bound");
            }

            fn insert_endpoint(dataplane: &mut Dataplane, ip: Self, value: Endpoint) {
                dataplane.hash(concat!("endpoints_", $suffix)).insert(ip, value, 0).expect("room");
            }

            fn add_tunnel_peer(dataplane: &mut Dataplane, node: Self) {
                dataplane.hash(concat!("tunnel_peers_", $suffix)).insert(node, 0_u32, 0).expect("room");
            }

            fn flow(dataplane: &mut Dataplane, key: &FlowKey<Self>) -> Option<Flow<Self>> {
                let established = dataplane.hash(concat!("flows_", $suffix)).get(key, 0).ok();
                established.or_else(|| dataplane.hash(concat!("opening_", $suffix)).get(key, 0).ok())
            }

            fn remove_flow(dataplane: &mut Dataplane, key: &FlowKey<Self>) {
                let established = dataplane.hash::<_, Flow<Self>>(concat!("flows_", $suffix)).remove(key);
                let opening = dataplane.hash::<_, Flow<Self>>(concat!("opening_", $suffix)).remove(key);
                established.or(opening).expect("it is there");
            }

            fn establish(dataplane: &mut Dataplane) {
                let opening = dataplane.hash::<FlowKey<Self>, Flow<Self>>(concat!("opening_", $suffix));
                let mut opening: Vec<_> =
                    opening.iter().map(|entry| entry.expect("nobody else writes")).collect();
                opening.sort_by_key(|(key, flow)| order(key, flow));
                for (key, flow) in opening {
                    let flow = Flow { state: FlowState::ESTABLISHED, ..flow };
                    dataplane.hash(concat!("flows_", $suffix)).insert(key, flow, 0).expect("room");
                    dataplane
                        .hash::<_, Flow<Self>>(concat!("opening_", $suffix))
                        .remove(&key)
                        .expect("it is there");
                }
            }

            fn neighbour() -> Self {
                Self::parse(
                    if size_of::<Self>() == 4 { "198.51.100.2" } else { "2001:db8::2" }.parse().expect("one"),
                )
            }

            fn established(dataplane: &mut Dataplane) -> usize {
                dataplane.hash::<FlowKey<Self>, Flow<Self>>(concat!("flows_", $suffix)).keys().count()
            }

            fn flows(dataplane: &mut Dataplane) -> Vec<FlowKey<Self>> {
                let keys = |table: HashMap<&mut MapData, FlowKey<Self>, Flow<Self>>| {
                    table.keys().map(|key| key.expect("nobody else writes")).collect::<HashSet<_>>()
                };
                let mut all = keys(dataplane.hash(concat!("flows_", $suffix)));
                // Without room for both halves, one may be established and opening.
                all.extend(keys(dataplane.hash(concat!("opening_", $suffix))));
                all.into_iter().collect()
            }
        }
    };
}

family!(Ip4, V4, "v4");
family!(Ip6, V6, "v6");

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no ADDRESS:PORT"))
}

/// The programs over private maps.
pub(crate) struct Dataplane {
    ebpf: Loaded,
    services: u32,
    backends: u32,
}

impl Dataplane {
    /// With no services, and a gateway in both families.
    pub(crate) fn new() -> Self {
        Self::with_flows(1024)
    }

    /// With a bound on entries of established flows.
    pub(crate) fn with_flows(flows: u32) -> Self {
        Self::with_options(&[("flows_v4", flows), ("flows_v6", flows)], &Options::default())
    }

    /// Whose programs say what they drop.
    pub(crate) fn with_packet_log() -> Self {
        Self::with_options(&[], &Options { packet_log: true, ..Options::default() })
    }

    /// Whose maps are pinned here, so that user space sees them as well, with these bounds.
    pub(crate) fn pinned(pins: &Path, bounds: &[(&str, u32)]) -> Self {
        Self::with_options(bounds, &Options { pins: Some(pins), ..Options::default() })
    }

    /// With bounds that are small where none is given.
    fn with_options(bounds: &[(&str, u32)], options: &Options<'_>) -> Self {
        let small = [
            ("flows_v4", 1024),
            ("flows_v6", 1024),
            ("maglev", 4096),
            ("backends_v4", 4096),
            ("backends_v6", 4096),
        ];
        // The last one counts.
        let max_entries = [&small, bounds].concat();
        let options = Options { max_entries: &max_entries, ..*options };
        let mut dataplane = Self { ebpf: Loaded::new(&options), services: 0, backends: 0 };
        dataplane.configure(NodeConfig {
            gateway_v4: Ip4::parse(GATEWAY_V4.parse().expect("constant")),
            gateway_v6: Ip6::parse(GATEWAY_V6.parse().expect("constant")),
            flags: 0,
        });
        dataplane
    }

    pub(crate) fn configure(&mut self, config: NodeConfig) {
        self.array::<NodeConfig>("node_config").set(0, config, 0).expect("one entry");
    }

    pub(crate) fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        HashMap::try_from(self.ebpf.map_mut(name).unwrap_or_else(|| panic!("no map {name}")))
            .expect("its layout")
    }

    pub(crate) fn trie<K: Pod, V: Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, V> {
        LpmTrie::try_from(self.ebpf.map_mut(name).unwrap_or_else(|| panic!("no map {name}")))
            .expect("its layout")
    }

    pub(crate) fn array<V: Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        Array::try_from(self.ebpf.map_mut(name).unwrap_or_else(|| panic!("no map {name}")))
            .expect("its layout")
    }

    /// Lets packets to or from here be looked at, as the agent does before it writes a frontend or a backend.
    fn widen_filter<A: Family>(&mut self, address: A, port: Be16) {
        let (word, bit) = filter::position(&address, port);
        let mut words = self.array::<u64>("filter");
        let old = words.get(&word, 0).expect("within the bound");
        words.set(word, old | bit, 0).expect("within the bound");
    }

    /// A service port: `backends` as ADDRESS:PORT; `local` says whether they run on this node.
    pub(crate) fn service<A: Family>(
        &mut self,
        scope: Scope,
        protocol: u8,
        frontend: &str,
        backends: &[&str],
        local: bool,
    ) -> Service {
        self.services += 1;
        let first = self.backends + 1;
        for text in backends {
            self.backends += 1;
            let id = self.backends;
            self.set_backend::<A>(
                id,
                text,
                Backend::<A>::FLAG_ACTIVE | if local { Backend::<A>::FLAG_LOCAL } else { 0 },
            );
        }
        let offset = self.services * 16;
        for slot in 0..16 {
            let id = if backends.is_empty() { 0 } else { first + slot % backends.len() as u32 };
            self.array::<u32>("maglev").set(offset + slot, id, 0).expect("within the bound");
        }
        let value = Frontend {
            service: self.services,
            maglev_offset: offset,
            maglev_mask: 15,
            backends: backends.len() as u32,
            ..Frontend::default()
        };
        let address = socket(frontend);
        let key = FrontendKey {
            address: A::parse(address.ip()),
            port: Be16::new(address.port()),
            protocol: Protocol(protocol),
            scope,
        };
        A::insert_frontend(self, key, value);
        Service { first_backend: first, value }
    }

    /// Makes an address one that services have inside the cluster.
    pub(crate) fn cluster_ip<A: Family>(&mut self, ip: &str) {
        let address = A::parse(ip.parse().expect("an address"));
        A::insert_cluster_ip(self, address);
    }

    pub(crate) fn set_backend<A: Family>(&mut self, id: u32, text: &str, flags: u16) {
        let address = socket(text);
        let value = Backend {
            address: A::parse(address.ip()),
            node: A::default(),
            port: Be16::new(address.port()),
            flags,
        };
        A::set_backend(self, id, value);
    }

    /// A pod of this node.
    pub(crate) fn endpoint<A: Family>(&mut self, ip: &str) {
        let value = Endpoint { ifindex: POD_IFINDEX, pod_mac: Mac(POD_MAC), host_mac: Mac(HOST_MAC) };
        let key = A::parse(ip.parse().expect("an address"));
        A::insert_endpoint(self, key, value);
    }

    pub(crate) fn flow<A: Family>(
        &mut self,
        protocol: u8,
        source: &str,
        destination: &str,
    ) -> Option<Flow<A>> {
        A::flow(self, &flow_key(protocol, source, destination))
    }

    /// How many entries of established flows there are.
    pub(crate) fn established<A: Family>(&mut self) -> usize {
        A::established(self)
    }

    /// Moves all flows to the established ones, as their next packets would.
    pub(crate) fn establish<A: Family>(&mut self) {
        A::establish(self);
    }

    /// Puts a service's backends on another node, which answers its clients itself.
    pub(crate) fn return_directly<A: Family>(
        &mut self,
        (scope, protocol): (Scope, u8),
        frontend: &str,
        service: &Service,
        backends: &[&str],
        node: A,
    ) {
        for (id, text) in (service.first_backend..).zip(backends) {
            let address = socket(text);
            let (address, port) = (A::parse(address.ip()), Be16::new(address.port()));
            A::set_backend(self, id, Backend { address, node, port, flags: Backend::<A>::FLAG_ACTIVE });
        }
        self.add_flags::<A>((scope, protocol), frontend, service, Frontend::FLAG_DIRECT_RETURN);
    }

    /// Gives a service's frontend flags beside those that it was made with.
    pub(crate) fn add_flags<A: Family>(
        &mut self,
        (scope, protocol): (Scope, u8),
        frontend: &str,
        service: &Service,
        flags: u32,
    ) {
        let address = socket(frontend);
        let key = FrontendKey {
            address: A::parse(address.ip()),
            port: Be16::new(address.port()),
            protocol: Protocol(protocol),
            scope,
        };
        let flags = service.value.flags | flags;
        A::insert_frontend(self, key, Frontend { flags, ..service.value });
    }

    pub(crate) fn remove_flow<A: Family>(&mut self, protocol: u8, source: &str, destination: &str) {
        A::remove_flow(self, &flow_key(protocol, source, destination));
    }

    /// Removes all flow entries, and what session affinity and first fragments left behind.
    pub(crate) fn forget_flows(&mut self) {
        for key in Ip4::flows(self) {
            Ip4::remove_flow(self, &key);
        }
        for key in Ip6::flows(self) {
            Ip6::remove_flow(self, &key);
        }
        self.forget::<AffinityKey<Ip4>, Affinity>("affinity_v4");
        self.forget::<AffinityKey<Ip6>, Affinity>("affinity_v6");
        self.forget::<FragmentKey<Ip4>, Fragment>("fragments_v4");
        self.forget::<FragmentKey<Ip6>, Fragment>("fragments_v6");
    }

    fn forget<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut table = self.hash::<K, V>(name);
        let keys: Vec<K> = table.keys().map(|key| key.expect("nobody else writes")).collect();
        for key in keys {
            table.remove(&key).expect("it is there");
        }
    }

    /// Runs one frame; the verdict and what came out.
    pub(crate) fn run(&mut self, program: Program, input: &[u8]) -> (Verdict, Vec<u8>) {
        let mut output = vec![0; input.len() + 64];
        let options =
            TestRunOptions { data_in: Some(input), data_out: Some(&mut output), ..TestRunOptions::default() };
        let result = match program {
            Program::XdpUplink => self.program::<Xdp>(programs::XDP_UPLINK).test_run(options),
            Program::TcUplink => self.program::<SchedClassifier>(programs::TC_UPLINK).test_run(options),
            Program::TcPod => self.program::<SchedClassifier>(programs::TC_POD).test_run(options),
        }
        .expect("BPF_PROG_TEST_RUN");
        let verdict = match (program, result.return_value as i32) {
            (Program::XdpUplink, 2) | (Program::TcUplink | Program::TcPod, -1) => Verdict::Pass,
            (Program::XdpUplink, 1) | (Program::TcUplink | Program::TcPod, 2) => Verdict::Drop,
            (Program::XdpUplink, 3 | 4) | (Program::TcUplink | Program::TcPod, 7) => Verdict::Redirect,
            (_, other) => panic!("{program:?} answered {other}"),
        };
        output.truncate(result.data_size_out as usize);
        (verdict, output)
    }

    fn program<'a, P>(&'a self, name: &str) -> &'a P
    where
        &'a P: TryFrom<&'a aya::programs::Program, Error: std::fmt::Debug>,
    {
        self.ebpf.program(name).unwrap_or_else(|| panic!("no program {name}")).try_into().expect("its type")
    }

    /// A program, to attach it.
    pub(crate) fn program_mut(&mut self, name: &str) -> &mut aya::programs::Program {
        self.ebpf.program_mut(name).unwrap_or_else(|| panic!("no program {name}"))
    }

    /// The reader of what the programs say.
    pub(crate) fn packet_log<T: log::Log>(&mut self, logger: T) -> PacketLog<T> {
        PacketLog::open(&mut self.ebpf, logger).expect("the object has the ring buffer")
    }

    /// What the programs told since this was asked last.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let map = self.ebpf.map_mut("events").expect("events");
        let mut ring = RingBuf::try_from(map).expect("its type");
        let mut all = Vec::new();
        events::drain(&mut ring, |event| all.push(event));
        all
    }

    /// What they could not tell for lack of room.
    pub(crate) fn events_lost(&mut self) -> u64 {
        let map = self.ebpf.map_mut("events_lost").expect("events_lost");
        let lost = PerCpuArray::<_, u64>::try_from(map).expect("its layout");
        lost.get(&0, 0).expect("counter").iter().sum()
    }

    /// Reasons that were counted, with how often.
    pub(crate) fn drops(&mut self) -> Vec<(&'static str, u64)> {
        let map = self.ebpf.map_mut("drops").expect("drops");
        let drops = PerCpuArray::<_, u64>::try_from(map).expect("its layout");
        DROP_REASONS
            .iter()
            .map(|(reason, name)| (*name, drops.get(&(*reason as u32), 0).expect("counter").iter().sum()))
            .filter(|(_, count)| *count != 0)
            .collect()
    }

    /// Runs the rows in order, over the same maps.
    pub(crate) fn check(&mut self, rows: &[Row]) {
        for row in rows {
            let name = row.description;
            let before = self.drops();
            let input = row.input.bytes();
            let (verdict, output) = self.run(row.program, &input);
            assert_eq!(verdict, row.verdict, "{name}: verdict (drops: {:?})", self.drops());
            if verdict != Verdict::Drop {
                let expected = row.output.as_ref().map_or(input, Frame::bytes);
                assert_eq!(hex(&output), hex(&expected), "{name}: output");
            }
            let count =
                |drops: &[(&str, u64)], reason| drops.iter().find(|it| it.0 == reason).map_or(0, |it| it.1);
            let after = self.drops();
            let total = |drops: &[(&str, u64)]| drops.iter().map(|it| it.1).sum::<u64>();
            assert_eq!(
                total(&after) - total(&before),
                u64::from(row.drop.is_some()),
                "{name}: drops {after:?}"
            );
            if let Some(reason) = row.drop {
                assert_eq!(
                    count(&after, reason) - count(&before, reason),
                    1,
                    "{name}: {reason} in {after:?}"
                );
            }
        }
    }
}

/// What [`Dataplane::service`] made.
pub(crate) struct Service {
    pub(crate) first_backend: u32,
    pub(crate) value: Frontend,
}

pub(crate) fn flow_key<A: Family>(protocol: u8, source: &str, destination: &str) -> FlowKey<A> {
    let (source, destination) = (socket(source), socket(destination));
    FlowKey {
        source: A::parse(source.ip()),
        destination: A::parse(destination.ip()),
        source_port: Be16::new(source.port()),
        destination_port: Be16::new(destination.port()),
        protocol: Protocol(protocol),
        ..FlowKey::default()
    }
}

/// Bytes in rows of sixteen, for a readable difference.
fn hex(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(16).map(|row| format!("{row:02x?}")).collect()
}
