//! How much the maps hold, and how full they are.

use weir_dataplane_ebpf::maps;

/// Bounds of the maps; the ABI's, except in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frontends of each family.
    pub frontends: u32,
    /// Backends of each family.
    pub backends: u32,
    /// Slots of all tables together.
    pub slots: u32,
    /// Source ranges of each family.
    pub source_ranges: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frontends: maps::FRONTENDS,
            backends: maps::BACKENDS,
            slots: maps::MAGLEV_SLOTS,
            source_ranges: maps::SOURCE_RANGES,
        }
    }
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frontends, IPv4 and IPv6.
    pub frontends: [u32; 2],
    /// Cluster IPs of both families.
    pub cluster_ips: u32,
    /// Backends, IPv4 and IPv6, those at rest included.
    pub backends: [u32; 2],
    /// Slots, those at rest included.
    pub slots: u32,
    /// Ports of the node.
    pub node_ports: u32,
    /// Source ranges, IPv4 and IPv6.
    pub source_ranges: [u32; 2],
}
