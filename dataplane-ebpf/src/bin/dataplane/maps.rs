//! Every map, declared once, and which of them belongs to which address family.
//!
//! Flows are a preallocated hash without eviction: the agent removes what is over, and a live connection is never
//! thrown out to make room for a flood of new ones. Only what can be lost forgets the least recently used: flows that one
//! side alone has spoken of, what first fragments said, `socket_peers`, which `getpeername` and `recvmsg` ask, and the choices of session affinity,
//! which a new connection asks.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use weir_dataplane_ebpf::{
    Address, Backend, Be16, Be32, DROP_REASONS, Endpoint, EventKind, Flow, FlowKey, Fragment, FragmentKey,
    Frontend, FrontendKey, Ip4, Ip6, Namespace, NodeConfig, Scope, SocketPeer, SocketPeerKey, Traffic,
    TrafficKey, Uplink, filter,
    maps::{
        AFFINITY, BACKENDS, CLUSTER_IPS, ENDPOINTS, EVENTS_BYTES, FLOWS, FRAGMENTS, FRONTENDS, MAGLEV_SLOTS,
        NEXT_HOPS, NODE_PORTS, NON_MASQUERADE, OPENING_FLOWS, SOCKET_AFFINITY, SOCKET_PEERS, SOURCE_RANGES,
        TRAFFIC, TUNNEL_PEERS, UPLINKS,
    },
};

use crate::{affinity::Choices, parse::TcpFlags, route::NextHop, source_range::Ranges, walk::Extent};

#[map(name = "maglev")]
pub static MAGLEV: Array<u32> = Array::with_max_entries(MAGLEV_SLOTS, 0);
#[map(name = "filter")]
pub static FILTER: Array<u64> = Array::with_max_entries(filter::WORDS, 0);
#[map(name = "node_config")]
pub static NODE_CONFIG: Array<NodeConfig> = Array::with_max_entries(1, 0);
#[map(name = "uplinks")]
pub static UPLINKS_MAP: HashMap<u32, Uplink> = HashMap::with_max_entries(UPLINKS, 0);
#[map(name = "node_ports")]
pub static NODE_PORTS_MAP: Array<u32> = Array::with_max_entries(NODE_PORTS, 0);
#[map(name = "drops")]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_REASONS.len() as u32, 0);

/// What is told to whoever listens.
#[map(name = "events")]
pub static EVENTS_MAP: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);
/// What had no room there.
#[map(name = "events_lost")]
pub static EVENTS_LOST_MAP: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Until when somebody listens, in nanoseconds since boot; 0 for nobody.
#[map(name = "monitor")]
pub static MONITOR_MAP: Array<u64> = Array::with_max_entries(1, 0);

/// The agent's own: a map to outlive it beside the flows that it adds up.
#[map(name = "traffic")]
pub static TRAFFIC_MAP: HashMap<TrafficKey, Traffic> = HashMap::with_max_entries(TRAFFIC, BPF_F_NO_PREALLOC);

/// What the start of a flow must know of the packet, beside its tuple.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// The interface that it came in by.
    pub ifindex: u32,
    /// The interface that answers leave by: the same, unless that is a pod's.
    pub way_back: u32,
    /// Bytes from the network header on.
    pub length: u32,
    /// TCP's flags, or what says the same.
    pub flags: TcpFlags,
    /// From where it came.
    pub scope: Scope,
    /// Whether it came inside a packet from another node ([`crate::tunnel`]).
    pub tunnelled: bool,
    /// What it began, zero for nothing.
    pub news: EventKind,
}

/// What an ICMP message says, but for its quote.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Complaint {
    /// Type and code.
    pub kind: Be16,
    /// The word behind the checksum.
    pub word: Be32,
}

/// Where a new flow is put together: two entries are more than a program's stack has room for. Each CPU has its own, and
/// packet programs do not interrupt each other.
#[repr(C)]
pub struct Draft<A> {
    /// The packet's tuple.
    pub key: FlowKey<A>,
    /// The packet.
    pub packet: Packet,
    /// What its sender is to be told.
    pub complaint: Complaint,
    /// Where its parts are, if that is not where they always are.
    pub extent: Extent,
    /// The client's direction.
    pub flow: Flow<A>,
    /// The backend's.
    pub answer: Flow<A>,
}

/// An address family with its maps.
pub trait Family: Address {
    /// [`NodeConfig::FLAG_MASQUERADE_V4`] or its sibling.
    const FLAG_MASQUERADE: u32;

    /// Frontends by address, port, protocol and scope.
    fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend>;
    /// Addresses that services have inside the cluster.
    fn cluster_ips() -> &'static HashMap<Self, u32>;
    /// Backends by id.
    fn backends() -> &'static Array<Backend<Self>>;
    /// Flow entries by tuple, of flows that both sides have spoken of.
    fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>>;
    /// The same of all other flows.
    fn opening() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    /// What first fragments said.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment>;
    /// Pod links of this node by pod address.
    fn endpoints() -> &'static HashMap<Self, Endpoint>;
    /// What translated sockets asked for.
    fn socket_peers() -> &'static LruHashMap<SocketPeerKey<Self>, SocketPeer<Self>>;
    /// Session affinity's choices by client address.
    fn affinity() -> &'static Choices<Self>;
    /// The same by the network namespace of a socket.
    fn socket_affinity() -> &'static Choices<Namespace>;
    /// Who may use load balancer addresses, by service.
    fn source_ranges() -> &'static Ranges<Self>;
    /// What pods reach with their own addresses.
    fn non_masquerade() -> &'static LpmTrie<Self, u32>;
    /// Addresses of other nodes: whose tunnelled packets are taken, and whose node ports are answered for.
    fn tunnel_peers() -> &'static HashMap<Self, u32>;
    /// Next hops that this CPU was told lately, by their destination's hash.
    fn next_hops() -> &'static PerCpuArray<NextHop<Self>>;
    /// This CPU's draft of a new flow.
    fn draft() -> Option<*mut Draft<Self>>;
    /// The node's own address in the pod network.
    fn gateway(config: &NodeConfig) -> Self;
    /// The node's own address on an uplink.
    fn uplink_address(uplink: &Uplink) -> Self;
}

macro_rules! family {
    (
        $module:ident: $address:ty,
        masquerade: $masquerade:ident,
        gateway: $gateway:ident,
        uplink_address: $uplink:ident,
        frontends: $frontends:literal,
        cluster_ips: $cluster_ips:literal,
        backends: $backends:literal,
        flows: $flows:literal,
        opening: $opening:literal,
        fragments: $fragments:literal,
        endpoints: $endpoints:literal,
        socket_peers: $socket_peers:literal,
        affinity: $affinity:literal,
        socket_affinity: $socket_affinity:literal,
        source_ranges: $source_ranges:literal,
        non_masquerade: $non_masquerade:literal,
        tunnel_peers: $tunnel_peers:literal,
        next_hops: $next_hops:literal,
        draft: $draft:literal $(,)?
    ) => {
        mod $module {
            use super::*;

            #[map(name = $frontends)]
            pub(super) static FRONTENDS_MAP: HashMap<FrontendKey<$address>, Frontend> =
                HashMap::with_max_entries(FRONTENDS, 0);
            #[map(name = $cluster_ips)]
            pub(super) static CLUSTER_IPS_MAP: HashMap<$address, u32> =
                HashMap::with_max_entries(CLUSTER_IPS, BPF_F_NO_PREALLOC);
            #[map(name = $backends)]
            pub(super) static BACKENDS_MAP: Array<Backend<$address>> = Array::with_max_entries(BACKENDS, 0);
            #[map(name = $flows)]
            pub(super) static FLOWS_MAP: HashMap<FlowKey<$address>, Flow<$address>> =
                HashMap::with_max_entries(FLOWS, 0);
            #[map(name = $opening)]
            pub(super) static OPENING_MAP: LruHashMap<FlowKey<$address>, Flow<$address>> =
                LruHashMap::with_max_entries(OPENING_FLOWS, 0);
            #[map(name = $fragments)]
            pub(super) static FRAGMENTS_MAP: LruHashMap<FragmentKey<$address>, Fragment> =
                LruHashMap::with_max_entries(FRAGMENTS, 0);
            #[map(name = $endpoints)]
            pub(super) static ENDPOINTS_MAP: HashMap<$address, Endpoint> =
                HashMap::with_max_entries(ENDPOINTS, 0);
            #[map(name = $socket_peers)]
            pub(super) static SOCKET_PEERS_MAP: LruHashMap<SocketPeerKey<$address>, SocketPeer<$address>> =
                LruHashMap::with_max_entries(SOCKET_PEERS, 0);
            #[map(name = $affinity)]
            pub(super) static AFFINITY_MAP: Choices<$address> = LruHashMap::with_max_entries(AFFINITY, 0);
            #[map(name = $socket_affinity)]
            pub(super) static SOCKET_AFFINITY_MAP: Choices<Namespace> =
                LruHashMap::with_max_entries(SOCKET_AFFINITY, 0);
            #[map(name = $source_ranges)]
            pub(super) static SOURCE_RANGES_MAP: Ranges<$address> =
                LpmTrie::with_max_entries(SOURCE_RANGES, 0);
            #[map(name = $non_masquerade)]
            pub(super) static NON_MASQUERADE_MAP: LpmTrie<$address, u32> =
                LpmTrie::with_max_entries(NON_MASQUERADE, 0);
            #[map(name = $tunnel_peers)]
            pub(super) static TUNNEL_PEERS_MAP: HashMap<$address, u32> =
                HashMap::with_max_entries(TUNNEL_PEERS, 0);
            #[map(name = $next_hops)]
            pub(super) static NEXT_HOPS_MAP: PerCpuArray<NextHop<$address>> =
                PerCpuArray::with_max_entries(NEXT_HOPS, 0);
            #[map(name = $draft)]
            pub(super) static DRAFT_MAP: PerCpuArray<Draft<$address>> = PerCpuArray::with_max_entries(1, 0);
        }

        impl Family for $address {
            const FLAG_MASQUERADE: u32 = NodeConfig::$masquerade;

            #[inline(always)]
            fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend> {
                &$module::FRONTENDS_MAP
            }

            #[inline(always)]
            fn cluster_ips() -> &'static HashMap<Self, u32> {
                &$module::CLUSTER_IPS_MAP
            }

            #[inline(always)]
            fn backends() -> &'static Array<Backend<Self>> {
                &$module::BACKENDS_MAP
            }

            #[inline(always)]
            fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>> {
                &$module::FLOWS_MAP
            }

            #[inline(always)]
            fn opening() -> &'static LruHashMap<FlowKey<Self>, Flow<Self>> {
                &$module::OPENING_MAP
            }

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment> {
                &$module::FRAGMENTS_MAP
            }

            #[inline(always)]
            fn endpoints() -> &'static HashMap<Self, Endpoint> {
                &$module::ENDPOINTS_MAP
            }

            #[inline(always)]
            fn socket_peers() -> &'static LruHashMap<SocketPeerKey<Self>, SocketPeer<Self>> {
                &$module::SOCKET_PEERS_MAP
            }

            #[inline(always)]
            fn affinity() -> &'static Choices<Self> {
                &$module::AFFINITY_MAP
            }

            #[inline(always)]
            fn socket_affinity() -> &'static Choices<Namespace> {
                &$module::SOCKET_AFFINITY_MAP
            }

            #[inline(always)]
            fn source_ranges() -> &'static Ranges<Self> {
                &$module::SOURCE_RANGES_MAP
            }

            #[inline(always)]
            fn non_masquerade() -> &'static LpmTrie<Self, u32> {
                &$module::NON_MASQUERADE_MAP
            }

            #[inline(always)]
            fn tunnel_peers() -> &'static HashMap<Self, u32> {
                &$module::TUNNEL_PEERS_MAP
            }

            #[inline(always)]
            fn next_hops() -> &'static PerCpuArray<NextHop<Self>> {
                &$module::NEXT_HOPS_MAP
            }

            #[inline(always)]
            fn draft() -> Option<*mut Draft<Self>> {
                $module::DRAFT_MAP.get_ptr_mut(0)
            }

            #[inline(always)]
            fn gateway(config: &NodeConfig) -> Self {
                config.$gateway
            }

            #[inline(always)]
            fn uplink_address(uplink: &Uplink) -> Self {
                uplink.$uplink
            }
        }
    };
}

family!(
    v4: Ip4,
    masquerade: FLAG_MASQUERADE_V4,
    gateway: gateway_v4,
    uplink_address: address_v4,
    frontends: "frontends_v4",
    cluster_ips: "cluster_ips_v4",
    backends: "backends_v4",
    flows: "flows_v4",
    opening: "opening_v4",
    fragments: "fragments_v4",
    endpoints: "endpoints_v4",
    socket_peers: "socket_peers_v4",
    affinity: "affinity_v4",
    socket_affinity: "socket_affinity_v4",
    source_ranges: "source_ranges_v4",
    non_masquerade: "non_masquerade_v4",
    tunnel_peers: "tunnel_peers_v4",
    next_hops: "next_hops_v4",
    draft: "draft_v4",
);
family!(
    v6: Ip6,
    masquerade: FLAG_MASQUERADE_V6,
    gateway: gateway_v6,
    uplink_address: address_v6,
    frontends: "frontends_v6",
    cluster_ips: "cluster_ips_v6",
    backends: "backends_v6",
    flows: "flows_v6",
    opening: "opening_v6",
    fragments: "fragments_v6",
    endpoints: "endpoints_v6",
    socket_peers: "socket_peers_v6",
    affinity: "affinity_v6",
    socket_affinity: "socket_affinity_v6",
    source_ranges: "source_ranges_v6",
    non_masquerade: "non_masquerade_v6",
    tunnel_peers: "tunnel_peers_v6",
    next_hops: "next_hops_v6",
    draft: "draft_v6",
);
