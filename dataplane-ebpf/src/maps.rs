//! Names and bounds of all maps. A map is pinned under its name.

/// Frontends, by family: every address and port of every service, for each scope.
pub const FRONTENDS: u32 = 65_536;
/// Cluster IPs, by family: none is without a frontend, so that there is always room. Entries take memory as they come.
pub const CLUSTER_IPS: u32 = FRONTENDS;
/// Backends, by family: 5,000 services of 50 endpoints, or 50,000 of five. Ids run from 1.
pub const BACKENDS: u32 = 262_144;
/// Slots of all services' Maglev tables together, 4 bytes each: enough for tables of the preferred size for as many
/// backends, and for those that are about to replace them.
pub const MAGLEV_SLOTS: u32 = 1 << 23;
/// Flow entries, by family; a connection takes two. Without room a new connection stays among the opening ones.
pub const FLOWS: u32 = 262_144;
/// Entries of flows that only one side has spoken of, by family (least recently used go first).
pub const OPENING_FLOWS: u32 = 65_536;
/// Packets of which a fragment is remembered, by family (least recently used go first): 64 MiB of datagrams of 8 KiB.
pub const FRAGMENTS: u32 = 8_192;
/// Pod links of this node, by family.
pub const ENDPOINTS: u32 = 1_024;
/// Links to the outside.
pub const UPLINKS: u32 = 64;
/// Next hops that each CPU remembers, by family; a power of two.
pub const NEXT_HOPS: u32 = 256;
/// Other nodes' addresses, by family: whose tunnelled packets are taken, and whose node ports are answered for.
pub const TUNNEL_PEERS: u32 = 16_384;
/// Sockets that were translated and not yet forgotten, by family (least recently used go first).
pub const SOCKET_PEERS: u32 = 65_536;
/// Clients that session affinity remembers, by family (least recently used go first, and choose again).
pub const AFFINITY: u32 = 65_536;
/// The same for the network namespaces of this node.
pub const SOCKET_AFFINITY: u32 = 16_384;
/// Source ranges of all services together, by family: one for each range of each port of a service.
pub const SOURCE_RANGES: u32 = 65_536;
/// Ranges that pods reach with their own addresses, by family: the cluster's, and two for each of its nodes. Entries take
/// memory as they come.
pub const NON_MASQUERADE: u32 = 65_536;
/// Pairs of service and backend whose traffic is counted apart; what more there are is counted together. Entries take memory
/// as they come.
pub const TRAFFIC: u32 = 65_536;
/// Bytes of the ring buffer that events wait in for whoever listens: some 3,000 events. What has no room is lost and counted.
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Every port of TCP and UDP: which of them are node ports.
pub const NODE_PORTS: u32 = 2 << u16::BITS;

/// Source ports that Weir takes when it must put its own address in the source: below the NodePorts and the kernel's
/// default ephemeral range, so that no frontend has one and no socket of the host connects from one.
pub const MASQUERADE_PORT_FIRST: u16 = 12_288;
/// How many ports from [`MASQUERADE_PORT_FIRST`] on; a power of two. They are taken per backend, port and protocol: a
/// socket of the host that listens on one is in nobody's way.
pub const MASQUERADE_PORTS: u16 = 16_384;
/// Ports that one new flow tries before it counts [`crate::DropReason::PortsExhausted`]. While three quarters of a
/// backend's ports are in use, one new flow in a hundred fails.
pub const MASQUERADE_TRIES: u16 = 16;
