//! Session affinity: a client that comes again in time gets the backend that it had.
//!
//! Asked when a flow opens or a socket connects, never for an established packet: those renew what is remembered in the
//! rare upkeep of their flow. A choice is forgotten by its age alone, so that nobody has to clean up; when the map is full
//! the client that was heard longest ago goes, and chooses again.

use aya_ebpf::{bindings::BPF_ANY, maps::LruHashMap};
use weir_dataplane_ebpf::{
    Affinity, AffinityKey, Backend, DropReason, Flow, FlowKey, Frontend, maglev::is_member,
};

use crate::{
    kernel::now_s,
    maglev,
    maps::{Family, MAGLEV},
};

/// What is remembered, by whom it tells clients apart.
pub type Choices<C> = LruHashMap<AffinityKey<C>, Affinity>;

/// The backend for a new connection: the one that the client has, or else the one that `slot` names.
#[inline(always)]
pub fn choose<A: Family, C>(
    choices: &Choices<C>,
    key: &AffinityKey<C>,
    frontend: &Frontend,
    slot: u32,
) -> Result<(u32, &'static Backend<A>), DropReason> {
    match standing(choices, key, frontend) {
        Some(found) => Ok(found),
        None => maglev::backend(frontend, slot),
    }
}

/// The client's backend, if its choice still stands and a new connection may still make it.
#[inline(always)]
fn standing<A: Family, C>(
    choices: &Choices<C>,
    key: &AffinityKey<C>,
    frontend: &Frontend,
) -> Option<(u32, &'static Backend<A>)> {
    if frontend.affinity_timeout_s == 0 || frontend.backends == 0 {
        return None;
    }
    // SAFETY: any value that another CPU leaves is valid: what it names is looked up and checked.
    let choice = unsafe { choices.get(key) }?;
    choice.left_s(now_s(), frontend.affinity_timeout_s)?;
    let id = choice.backend;
    let backend = A::backends().get(id)?;
    let serves = backend.flags & Backend::<A>::FLAG_ACTIVE != 0
        && is_member(frontend, id, backend, |slot| MAGLEV.get(slot).copied());
    serves.then_some((id, backend))
}

/// Remembers what the client was given, as of now.
#[inline(always)]
pub fn record<C>(choices: &Choices<C>, key: &AffinityKey<C>, backend: u32) {
    let choice = Affinity { backend, last_used_s: now_s() };
    let Some(entry) = choices.get_ptr_mut(key) else {
        // Without room the client's next connection takes the backend that its address hashes to.
        let _ = choices.insert(key, choice, u64::from(BPF_ANY));
        return;
    };
    // SAFETY: an entry stays mapped memory. It may be another client's by now, who would then get this backend if that is
    // in his choice, as by chance.
    unsafe {
        if *entry != choice {
            // An unchanged cache line stays shared between CPUs.
            *entry = choice;
        }
    }
}

/// A packet of this flow, of either half, says that its client is still there. What it chose since is left alone.
#[inline(always)]
pub fn renew<A: Family>(key: &FlowKey<A>, flow: &Flow<A>) {
    let client = if flow.flags & Flow::<A>::FLAG_REPLY == 0 { key.source } else { flow.destination };
    let key = AffinityKey { client, service: flow.service };
    // SAFETY: as in `standing`.
    if unsafe { A::affinity().get(key) }.is_none_or(|choice| choice.backend == flow.backend) {
        record(A::affinity(), &key, flow.backend);
    }
}
