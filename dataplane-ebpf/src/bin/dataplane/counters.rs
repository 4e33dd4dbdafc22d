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
