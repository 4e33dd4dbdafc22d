//! Frontends: the addresses that clients of a Service talk to.

use crate::{Be16, family_layout, layout};

/// An IP protocol number (IANA).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Hop-by-hop options of IPv6.
    pub const HOP_BY_HOP: Self = Self(0);
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// The fragment header of IPv6.
    pub const FRAGMENT: Self = Self(44);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// Destination options of IPv6.
    pub const DESTINATION_OPTIONS: Self = Self(60);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

/// From where a client comes; traffic policies may give each its own backends.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope(pub u8);

impl Scope {
    /// From outside the cluster: arrives on an uplink.
    pub const EXTERNAL: Self = Self(0);
    /// From a pod or a process of this node.
    pub const INTERNAL: Self = Self(1);
    /// From the node itself, on its way out: no frontend is for it.
    pub const NONE: Self = Self(2);
}

/// Key of `frontends_v4` and `frontends_v6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrontendKey<A> {
    /// ClusterIP, node address, LoadBalancer or external IP.
    pub address: A,
    /// The service port or the NodePort.
    pub port: Be16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Whose packets this entry is for.
    pub scope: Scope,
}

/// Value of `frontends_v4` and `frontends_v6`.
///
/// The entry carries its region of the `maglev` map, so that a change of backends is one write: the new table goes
/// into a free region first, then this entry is replaced, and no packet ever sees half of either.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// Which service port this is, for counters and `weir explain`; chosen by the agent, stable while the port lives.
    pub service: u32,
    /// First slot of this service's region in `maglev`.
    pub maglev_offset: u32,
    /// Region size minus one; the size is a power of two, so that a slot is `hash & mask`.
    pub maglev_mask: u32,
    /// Backends behind the region; 0 means that there is nothing to choose and the region must not be read.
    pub backends: u32,
    /// [`Frontend::FLAG_LOCAL_POLICY`] and its siblings.
    pub flags: u32,
    /// Session affinity's timeout in seconds, 0 without affinity.
    pub affinity_timeout_s: u32,
}

impl Frontend {
    /// A traffic policy admits backends of this node only.
    pub const FLAG_LOCAL_POLICY: u32 = 1 << 0;
    /// The address is a node's own: a packet to it that matches no frontend is the host's.
    pub const FLAG_NODE_PORT: u32 = 1 << 1;
    /// Endpoints serve, but the traffic policy admits none of them: a packet is dropped in silence instead of rejected,
    /// so that the client's next try may meet a node that has one.
    pub const FLAG_SERVED_ELSEWHERE: u32 = 1 << 2;
    /// Only clients in the service's source ranges may open connections; without any, nobody may.
    pub const FLAG_SOURCE_RANGES: u32 = 1 << 3;
    /// The node itself is in one of them. Its sockets are asked for before they have a source address.
    pub const FLAG_NODE_IN_RANGE: u32 = 1 << 4;
    /// Packets for a backend on another node go there whole, inside a packet to that node, and the backend's answers go to
    /// the client from there (direct server return).
    pub const FLAG_DIRECT_RETURN: u32 = 1 << 5;
    /// The address is a cluster IP, which stands in `cluster_ips_v4` or `cluster_ips_v6` for as long as it has a frontend.
    pub const FLAG_CLUSTER_IP: u32 = 1 << 6;
    /// Beside [`Frontend::FLAG_DIRECT_RETURN`]: they go there by themselves, and the first of them name this frontend in an
    /// option ([`crate::FrontendOption`]). Of IPv4 frontends alone.
    pub const FLAG_OPTION: u32 = 1 << 7;
}

layout!(Protocol = 1, Scope = 1, Frontend = 24);
family_layout!(FrontendKey = 8, 20);
