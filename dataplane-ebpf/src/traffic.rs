//! Traffic: packets and bytes of every service and backend, as the agent adds them up from the flows.
//!
//! No program touches this map. It is one so that it is pinned beside the flows: the next agent goes on counting, and the
//! command line reads it while none runs.

use crate::{Be16, Ip6, layout};

/// Key of `traffic`: a service port and one of its backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TrafficKey {
    /// [`crate::Frontend::service`]; 0 for everything that has no entry of its own.
    pub service: u32,
    /// The backend's address, IPv4 in its mapped form (RFC 4291, 2.5.5.2); zero for the backends that are gone, and for
    /// those that answer clients themselves, together.
    pub address: Ip6,
    /// The backend's port, or zero.
    pub port: Be16,
    /// Zero.
    pub padding: u16,
}

/// Packets, and their bytes from the network header on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Value of `traffic`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From clients, since the maps were made.
    pub requests: Count,
    /// From the backend.
    pub replies: Count,
    /// How much of `requests` the flow entries held at the last count: an agent that starts counts what they grew by.
    pub standing_requests: Count,
    /// The same of `replies`.
    pub standing_replies: Count,
}

layout!(TrafficKey = 24, Count = 16, Traffic = 64);
