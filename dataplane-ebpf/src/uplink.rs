//! Uplinks: the node's own addresses towards the outside.

use crate::{Ip4, Ip6, layout};

/// Value of `uplinks`, keyed by interface index: the source of what Weir sends to other nodes by this link in a client's
/// stead. Written by the agent, which follows the link's addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uplink {
    /// The link's first IPv4 address, zero without one.
    pub address_v4: Ip4,
    /// The same, IPv6.
    pub address_v6: Ip6,
}

layout!(Uplink = 20);
