//! Verdicts, and the counter behind each drop.

use weir_dataplane_ebpf::DropReason;

use crate::maps::DROPS;

/// What becomes of a packet.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// The stack, or the next program, goes on with it.
    Pass,
    /// It ends here; the reason is counted.
    Drop(DropReason),
    /// It ends here, and the reason is counted. Its buffer, with an answer to its sender in it, goes back by the link that
    /// it came by.
    Answer(DropReason),
    /// Straight into the pod behind this link.
    ToPod(u32),
    /// Out by this interface, with the link addresses that it has.
    Out(u32),
    /// Out by this interface, to the neighbour that the routes name.
    ToNeighbour(u32),
}

impl Verdict {
    const PASS: u64 = 0;
    const DROP: u64 = 1;
    const ANSWER: u64 = 2;
    const TO_POD: u64 = 3;
    const OUT: u64 = 4;
    const TO_NEIGHBOUR: u64 = 5;

    /// As a global function returns it: the kind, and above it the reason or the interface.
    #[inline(always)]
    pub const fn to_number(self) -> u64 {
        match self {
            Self::Pass => Self::PASS,
            Self::Drop(reason) => Self::DROP | (reason as u64) << 32,
            Self::Answer(reason) => Self::ANSWER | (reason as u64) << 32,
            Self::ToPod(ifindex) => Self::TO_POD | (ifindex as u64) << 32,
            Self::Out(ifindex) => Self::OUT | (ifindex as u64) << 32,
            Self::ToNeighbour(ifindex) => Self::TO_NEIGHBOUR | (ifindex as u64) << 32,
        }
    }

    /// From what a global function returned.
    #[inline(always)]
    pub fn from_number(number: u64) -> Self {
        let value = (number >> 32) as u32;
        match number & 0xffff_ffff {
            Self::DROP => DropReason::from_index(value).map_or(Self::Pass, Self::Drop),
            Self::ANSWER => DropReason::from_index(value).map_or(Self::Pass, Self::Answer),
            Self::TO_POD => Self::ToPod(value),
            Self::OUT => Self::Out(value),
            Self::TO_NEIGHBOUR => Self::ToNeighbour(value),
            _ => Self::Pass,
        }
    }
}

/// Counts a drop.
///
/// Between packet programs the count is exact: none interrupts another on its CPU. Socket hooks run preemptibly, and
/// one that a packet program or another task's hook comes between loses the other's count. The compiler offers no atomic
/// addition for this target, and a refusal that is counted as one of two still shows.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: an array's entry stays mapped and aligned memory, and any count that another program leaves is valid.
        unsafe { *counter += 1 };
    }
}
