//! Events: what programs tell whoever listens, through the ring buffer `events`.

use crate::{Be16, Ip6, Protocol, layout};

/// What happened.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventKind(pub u8);

impl EventKind {
    /// A client's first packet was given a backend.
    pub const OPENED: Self = Self(1);
    /// Both sides of a flow have spoken.
    pub const ESTABLISHED: Self = Self(2);
    /// A packet ended here.
    pub const DROPPED: Self = Self(3);
    /// A socket call failed here.
    pub const REFUSED: Self = Self(4);
}

/// One event. IPv4 addresses are in their mapped form (RFC 4291, 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since boot, time asleep included (`CLOCK_BOOTTIME`).
    pub time_ns: u64,
    /// The client of a flow, or the source of a dropped packet. Zero for a socket call: it has none yet.
    pub source: Ip6,
    /// What the client asked for, or the destination of a dropped packet.
    pub destination: Ip6,
    /// The backend of a flow; its node, with port 0, where it answers clients itself. Else zero.
    pub backend: Ip6,
    /// [`crate::Frontend::service`] of a flow, else 0.
    pub service: u32,
    /// The interface that the packet came in by, 0 for a socket call.
    pub ifindex: u32,
    /// See `source`.
    pub source_port: Be16,
    /// See `destination`.
    pub destination_port: Be16,
    /// See `backend`.
    pub backend_port: Be16,
    /// What happened.
    pub kind: EventKind,
    /// [`crate::DropReason`]'s number, where something was dropped or refused.
    pub reason: u8,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Zero.
    pub padding: u8,
    /// Zero.
    pub padding_word: u16,
    /// Zero.
    pub padding_end: u32,
}

layout!(EventKind = 1, Event = 80);
const _: () =
    assert!(core::mem::offset_of!(Event, service) == 56 && core::mem::offset_of!(Event, kind) == 70);
