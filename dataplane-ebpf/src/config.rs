//! What the programs must know of their node.

use crate::{Ip4, Ip6, layout};

/// The one value of `node_config`. Written by the agent before any program is attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeConfig {
    /// The node's address in the pod network: source of hairpin connections, IPv4.
    pub gateway_v4: Ip4,
    /// The same, IPv6.
    pub gateway_v6: Ip6,
    /// [`NodeConfig::FLAG_SOCKET_LB`] and its siblings.
    pub flags: u32,
}

impl NodeConfig {
    /// Socket hooks translate `connect` and its kin; without it only packets are translated.
    pub const FLAG_SOCKET_LB: u32 = 1 << 0;
    /// Pods' packets to IPv4 addresses that are not in `non_masquerade_v4` leave with an uplink's own address.
    pub const FLAG_MASQUERADE_V4: u32 = 1 << 1;
    /// The same, IPv6.
    pub const FLAG_MASQUERADE_V6: u32 = 1 << 2;
}

layout!(NodeConfig = 24);
