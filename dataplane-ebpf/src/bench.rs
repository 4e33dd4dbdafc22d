//! What a measurement tells its driver program: the frame, and how to vary its flow.
//!
//! The test run of the kernel hands one frame to a program a million times and never restores it, so that a balancer
//! would see its own output from the second run on. The driver puts the frame back, gives it the next flow, and calls the
//! program under test; the same driver over an empty program is what must be subtracted.

use crate::layout;

/// Bytes of every frame that is measured: enough for Ethernet, IPv6 and UDP, and for Ethernet, IPv4 and TCP.
pub const FRAME_LENGTH: usize = 64;

/// The one value of `load`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The frame, in words: the driver copies eight of them.
    pub frame: [u64; FRAME_LENGTH / 8],
    /// Number of the next packet.
    pub count: u32,
    /// The flow's number is `(count * stride) & mask`. An odd stride visits every flow once in a round, in another
    /// order than that in which a stride of 1 made their entries: memory order would flatter the caches.
    pub stride: u32,
    /// Number of flows, a power of two, minus one.
    pub mask: u32,
    /// Zero.
    pub padding: u32,
}

layout!(Load = 80);
