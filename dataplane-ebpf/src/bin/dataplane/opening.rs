//! Flows of which only one side has spoken: in a table of their own, which forgets the least recently used.
//!
//! Anybody can send a million first packets. Here they only push each other out, while established flows stand in a table
//! that throws nothing out and that nothing enters before both sides have spoken: the client's second packet for TCP, since
//! a server answers a forged source too; the answer for UDP. What is pushed out loses little: Maglev finds the same backend
//! again for the client's next packet.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weir_dataplane_ebpf::{EventKind, Flow, FlowKey, FlowState};

use crate::{
    flow,
    kernel::now_jiffies,
    maps::{Draft, Family},
};

/// EEXIST, as a helper returns it.
pub const EXISTS: i32 = -17;

/// Copies the entry of a tuple. False: there is none.
#[inline(always)]
pub fn find<A: Family>(key: &FlowKey<A>, copy: &mut Flow<A>) -> bool {
    let Some(entry) = A::opening().get_ptr_mut(key) else { return false };
    // SAFETY: an entry stays mapped memory. It may be thrown out and become another flow's while it is copied; if the key
    // still leads to it afterwards, it was this flow's all the time.
    unsafe { *copy = *entry };
    A::opening().get_ptr_mut(key) == Some(entry)
}

/// Counts a packet. Should the entry be another flow's by now, then that has one too many.
#[inline(always)]
pub fn count<A: Family>(key: &FlowKey<A>, length: u32) {
    if let Some(entry) = A::opening().get_ptr_mut(key) {
        // SAFETY: an entry stays mapped memory, and any value of these fields is valid.
        let entry = unsafe { &mut *entry };
        entry.packets += 1;
        entry.bytes += u64::from(length);
        entry.last_seen_jiffies = now_jiffies();
    }
}

/// Moves both halves of the draft's flow to the established ones, the other half first. Without room there they stay, and
/// are served from here. False: another flow has taken the tuple of this one's answers, whose entry was pushed out.
#[inline(always)]
pub fn establish<A: Family>(key: &FlowKey<A>, state: FlowState, draft: &mut Draft<A>, way_back: u32) -> bool {
    if draft.flow.is_one_way() {
        draft.flow.state = state;
        if A::flows().insert(key, &draft.flow, u64::from(BPF_ANY)).is_ok() {
            let _ = A::opening().remove(key);
            draft.packet.news = EventKind::ESTABLISHED;
        }
        return true;
    }
    let other_key = draft.flow.other_key(key);
    if !find(&other_key, &mut draft.answer) {
        draft.answer = flow::opposite(key, &draft.flow, way_back);
    }
    // A FIN closes its own direction only.
    draft.answer.state = FlowState::ESTABLISHED;
    draft.flow.state = state;
    draft.flow.last_seen_jiffies = now_jiffies();
    match A::flows().insert(&other_key, &draft.answer, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        // SAFETY: as in `flow::follow`.
        Err(EXISTS)
            if unsafe { A::flows().get(&other_key) }
                .is_some_and(|other| other.is_other_half(key, &draft.flow)) => {}
        Err(EXISTS) => {
            let _ = A::opening().remove(key);
            return false;
        }
        Err(_) => return true,
    }
    if A::flows().insert(key, &draft.flow, u64::from(BPF_ANY)).is_ok() {
        let _ = A::opening().remove(&other_key);
        let _ = A::opening().remove(key);
        draft.packet.news = EventKind::ESTABLISHED;
    }
    true
}
