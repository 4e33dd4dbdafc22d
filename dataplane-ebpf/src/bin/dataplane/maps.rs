//! Every map, declared once, and which of them belongs to which address family.
//!
//! Flows are a preallocated hash without eviction: the agent removes what is over, and a live connection is never
//! thrown out to make room for a flood of new ones. Only what can be lost forgets the least recently used: `socket_peers`,
//! which `getpeername` and `recvmsg` ask, and the choices of session affinity, which a new connection asks.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use weir_dataplane_ebpf::{
    Address, Backend, DROP_REASONS, Endpoint, Flow, FlowKey, Frontend, FrontendKey, Ip4, Ip6, Namespace,
    NodeConfig, SocketPeer, SocketPeerKey, Uplink,
    maps::{
        AFFINITY, BACKENDS, ENDPOINTS, FLOWS, FRONTENDS, MAGLEV_SLOTS, NODE_PORTS, SOCKET_AFFINITY,
        SOCKET_PEERS, SOURCE_RANGES, UPLINKS,
    },
};

use crate::{affinity::Choices, source_range::Ranges};

#[map(name = "maglev")]
pub static MAGLEV: Array<u32> = Array::with_max_entries(MAGLEV_SLOTS, 0);
#[map(name = "node_config")]
pub static NODE_CONFIG: Array<NodeConfig> = Array::with_max_entries(1, 0);
#[map(name = "uplinks")]
pub static UPLINKS_MAP: HashMap<u32, Uplink> = HashMap::with_max_entries(UPLINKS, 0);
#[map(name = "node_ports")]
pub static NODE_PORTS_MAP: Array<u32> = Array::with_max_entries(NODE_PORTS, 0);
#[map(name = "drops")]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(DROP_REASONS.len() as u32, 0);

/// Where a new flow is put together: two entries are more than a program's stack has room for. Each CPU has its own, and
/// packet programs do not interrupt each other.
#[repr(C)]
pub struct Draft<A> {
    /// The client's direction.
    pub flow: Flow<A>,
    /// The backend's.
    pub answer: Flow<A>,
}

/// An address family with its maps.
pub trait Family: Address {
    /// Frontends by address, port, protocol and scope.
    fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend>;
    /// Backends by id.
    fn backends() -> &'static Array<Backend<Self>>;
    /// Flow entries by tuple.
    fn flows() -> &'static HashMap<FlowKey<Self>, Flow<Self>>;
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
    /// This CPU's draft of a new flow.
    fn draft() -> Option<*mut Draft<Self>>;
    /// The node's own address in the pod network.
    fn gateway(config: &NodeConfig) -> Self;
    /// The node's own address on an uplink.
    fn uplink_address(uplink: &Uplink) -> Self;
}

macro_rules! family {
    ($address:ty, $gateway:ident, $uplink:ident, $module:ident, $frontends:literal, $backends:literal, $flows:literal, $endpoints:literal, $peers:literal, $affinity:literal, $socket_affinity:literal, $ranges:literal, $draft:literal) => {
        mod $module {
            use super::*;

            #[map(name = $frontends)]
            pub(super) static FRONTENDS_MAP: HashMap<FrontendKey<$address>, Frontend> =
                HashMap::with_max_entries(FRONTENDS, 0);
            #[map(name = $backends)]
            pub(super) static BACKENDS_MAP: Array<Backend<$address>> = Array::with_max_entries(BACKENDS, 0);
            #[map(name = $flows)]
            pub(super) static FLOWS_MAP: HashMap<FlowKey<$address>, Flow<$address>> =
                HashMap::with_max_entries(FLOWS, 0);
            #[map(name = $endpoints)]
            pub(super) static ENDPOINTS_MAP: HashMap<$address, Endpoint> =
                HashMap::with_max_entries(ENDPOINTS, 0);
            #[map(name = $peers)]
            pub(super) static SOCKET_PEERS_MAP: LruHashMap<SocketPeerKey<$address>, SocketPeer<$address>> =
                LruHashMap::with_max_entries(SOCKET_PEERS, 0);
            #[map(name = $affinity)]
            pub(super) static AFFINITY_MAP: Choices<$address> = LruHashMap::with_max_entries(AFFINITY, 0);
            #[map(name = $socket_affinity)]
            pub(super) static SOCKET_AFFINITY_MAP: Choices<Namespace> =
                LruHashMap::with_max_entries(SOCKET_AFFINITY, 0);
            #[map(name = $ranges)]
            pub(super) static SOURCE_RANGES_MAP: Ranges<$address> =
                LpmTrie::with_max_entries(SOURCE_RANGES, 0);
            #[map(name = $draft)]
            pub(super) static DRAFT_MAP: PerCpuArray<Draft<$address>> = PerCpuArray::with_max_entries(1, 0);
        }

        impl Family for $address {
            #[inline(always)]
            fn frontends() -> &'static HashMap<FrontendKey<Self>, Frontend> {
                &$module::FRONTENDS_MAP
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
    Ip4,
    gateway_v4,
    address_v4,
    v4,
    "frontends_v4",
    "backends_v4",
    "flows_v4",
    "endpoints_v4",
    "socket_peers_v4",
    "affinity_v4",
    "socket_affinity_v4",
    "source_ranges_v4",
    "draft_v4"
);
family!(
    Ip6,
    gateway_v6,
    address_v6,
    v6,
    "frontends_v6",
    "backends_v6",
    "flows_v6",
    "endpoints_v6",
    "socket_peers_v6",
    "affinity_v6",
    "socket_affinity_v6",
    "source_ranges_v6",
    "draft_v6"
);
