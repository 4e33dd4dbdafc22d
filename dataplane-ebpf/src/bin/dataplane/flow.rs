//! Packets of known flows: one lookup, and the bookkeeping that an entry needs.
//!
//! The two halves of a flow do not refer to each other; each holds what the other's key and value are made of. Once in
//! [`UPKEEP_JIFFIES`] a packet of either half looks after the other: it marks it as alive, and makes it again when it
//! is gone. So no garbage collection, eviction or lost write can leave half a flow that misroutes.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use weir_dataplane_ebpf::{Backend, EventKind, Flow, FlowKey, FlowState, Protocol, Scope};

use crate::{
    affinity,
    counters::Verdict,
    kernel::now_jiffies,
    maps::{Draft, Family, Packet},
    outline::Outlined,
    parse::{Headers, Layout, TcpFlags, Transport},
    rewrite::{self, Hook},
    route,
};

/// How often a busy half looks after the other: a quarter of a second to two and a half, by the kernel's tick. A power
/// of two, so that passing a multiple of it shows in the bits above.
pub const UPKEEP_JIFFIES: u32 = 256;

/// Serves a packet whose tuple has an entry. `None`: there is none that still holds, and the packet opens a flow.
#[inline(always)]
pub fn follow<A: Outlined, T: Transport, H: Hook>(hook: &H, headers: &Headers<A>) -> Option<Verdict> {
    let flow = A::flows().get_ptr_mut(&headers.key)?;
    // SAFETY: a preallocated entry stays mapped memory. Another CPU may write to it; the fields that the rewrite reads
    // are written before the entry is published, and a lost count or time does no harm.
    let flow = unsafe { &mut *flow };
    if !rewrite::can_send::<A, H>(flow) && !find_way(flow, hook.context(), hook.ifindex()) {
        return Some(Verdict::Pass);
    }
    if !holds(headers, flow) {
        // What the packet opens anew starts among the opening flows, which are asked after this table.
        let _ = A::flows().remove(&headers.key);
        return None;
    }
    touch::<A, H>(hook, headers, flow);
    Some(rewrite::translate::<A, T, H>(hook, headers, flow))
}

/// Copies the entry that [`follow`] would rewrite by into this CPU's draft, and counts the packet. False: there is none.
#[inline(always)]
pub fn copy<A: Outlined, H: Hook>(hook: &H, headers: &Headers<A>) -> bool {
    let Some(flow) = A::flows().get_ptr_mut(&headers.key) else { return false };
    // SAFETY: as in `follow`.
    let flow = unsafe { &mut *flow };
    if !holds(headers, flow) {
        let _ = A::flows().remove(&headers.key);
        return false;
    }
    touch::<A, H>(hook, headers, flow);
    let Some(draft) = A::draft() else { return false };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    unsafe { (*draft).flow = *flow };
    true
}

/// Looks for the next hop of a flow that has none yet: an answer's first packet, or a neighbour that was not known. A pod
/// of this node is not for this hook to reach.
#[inline(never)]
fn find_way<A: Layout>(flow: &mut Flow<A>, context: *mut c_void, ingress: u32) -> bool {
    flow.flags & Flow::<A>::FLAG_TO_POD == 0
        && !flow.is_rewritten()
        && route::find_next_hop(context, flow, ingress)
}

/// Whether the entry may be followed: its backend serves, and the packet does not start a new connection where an old
/// one ended.
#[inline(always)]
fn holds<A: Layout>(headers: &Headers<A>, flow: &Flow<A>) -> bool {
    if headers.flags.opens() && flow.state.0 >= FlowState::CLOSING.0 {
        return false;
    }
    has_backend(flow)
}

/// Whether the backend of a flow serves. Its answers need not ask, and what leaves the cluster has none.
#[inline(always)]
pub fn has_backend<A: Family>(flow: &Flow<A>) -> bool {
    if flow.flags & (Flow::<A>::FLAG_REPLY | Flow::<A>::FLAG_EGRESS) != 0 {
        return true;
    }
    // The address is compared too: an id may serve another backend by now.
    A::backends().get(flow.backend).is_some_and(|backend| {
        backend.flags & Backend::<A>::FLAG_ACTIVE != 0
            && if flow.flags & Flow::<A>::FLAG_TUNNEL == 0 {
                backend.address == flow.destination && backend.port == flow.destination_port
            } else {
                backend.node == flow.destination
            }
    })
}

#[inline(always)]
fn touch<A: Outlined, H: Hook>(hook: &H, headers: &Headers<A>, flow: &mut Flow<A>) {
    flow.packets += 1;
    flow.bytes += u64::from(headers.length);
    let now = now_jiffies();
    let last = flow.last_seen_jiffies;
    if last != now {
        // An unchanged cache line stays shared between CPUs.
        flow.last_seen_jiffies = now;
    }
    let upkeep = (last ^ now) >= UPKEEP_JIFFIES;
    if upkeep || !headers.flags.carries_on() {
        present(hook, headers);
        hook.tend::<A>();
    }
}

/// Puts the packet into this CPU's draft, for the parts that read it there.
#[inline(always)]
pub fn present<A: Layout, H: Hook>(hook: &H, headers: &Headers<A>) -> Option<&'static mut Draft<A>> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *A::draft()? };
    let (ifindex, scope) = (hook.ifindex(), hook.scope());
    let way_back = if scope.0 == Scope::EXTERNAL.0 { ifindex } else { 0 };
    draft.key = headers.key;
    let (length, flags, tunnelled) = (headers.length, headers.flags, hook.tunnelled());
    draft.packet = Packet { ifindex, way_back, length, flags, scope, tunnelled, news: EventKind(0) };
    Some(draft)
}

/// Whether a packet in this direction can show that both sides speak. A server's SYN-ACK to a forged source must not,
/// so for TCP and SCTP it is the client's next packet; for UDP and echoes it is the answer. Answers that leave from the
/// backend's node are not seen here.
#[inline(always)]
pub fn establishes(protocol: Protocol, flags: u8) -> bool {
    flags & (Flow::<Protocol>::FLAG_TUNNEL | Flow::<Protocol>::FLAG_OPTION) != 0
        || matches!(protocol, Protocol::TCP | Protocol::SCTP) == (flags & Flow::<Protocol>::FLAG_REPLY == 0)
}

/// Moves both halves on in their protocol's life, repairs the other one, and renews the client's session affinity. Rare,
/// so that it stays out of the way of the packets that only pass.
#[inline(always)]
pub fn tend<A: Layout>(context: *mut c_void) -> Option<()> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let Draft { key, packet, answer: other, .. } = unsafe { &mut *A::draft()? };
    // SAFETY: as in `follow`.
    let flow = unsafe { &mut *A::flows().get_ptr_mut(&*key)? };
    if flow.ifindex != 0 {
        // Neighbours move and routes change.
        find_way(flow, context, packet.ifindex);
    }
    if flow.flags & Flow::<A>::FLAG_AFFINITY != 0 {
        affinity::renew(key, flow);
    }
    if flow.is_one_way() {
        flow.state = next_state(flow, packet.flags, flow.state);
        return Some(());
    }
    let other_key = flow.other_key(key);
    let Some(standing) = A::flows().get_ptr_mut(&other_key) else {
        *other = opposite(key, flow, packet.way_back);
        let state = next_state(flow, packet.flags, flow.state);
        flow.state = state;
        other.state = state;
        // Full or made by another CPU meanwhile: the next upkeep tries again.
        return A::flows().insert(&other_key, &*other, u64::from(BPF_NOEXIST)).ok();
    };
    // SAFETY: as in `follow`.
    let standing = unsafe { &mut *standing };
    standing.last_seen_jiffies = flow.last_seen_jiffies;
    let state = next_state(flow, packet.flags, standing.state);
    flow.state = state;
    // A FIN closes its own direction only; everything else is true of both.
    if state.0 != FlowState::CLOSING.0 {
        standing.state = state;
    }
    Some(())
}

/// The state after a packet with these flags.
#[inline(always)]
fn next_state<A>(flow: &Flow<A>, flags: TcpFlags, other: FlowState) -> FlowState {
    if flags.resets() {
        FlowState::CLOSED
    } else if flags.finishes() {
        if other.0 >= FlowState::CLOSING.0 { FlowState::CLOSED } else { FlowState::CLOSING }
    } else {
        flow.state
    }
}

/// The other half of a flow: the same change, undone, and the way that this half's packets came.
#[inline(always)]
pub fn opposite<A: Family>(key: &FlowKey<A>, flow: &Flow<A>, way_back: u32) -> Flow<A> {
    let mut other = Flow {
        packets: 0,
        bytes: 0,
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        network_delta: !flow.network_delta,
        transport_delta: !flow.transport_delta,
        last_seen_jiffies: flow.last_seen_jiffies,
        service: flow.service,
        backend: flow.backend,
        ifindex: way_back,
        state: flow.state,
        flags: (flow.flags ^ Flow::<A>::FLAG_REPLY)
            & (Flow::<A>::FLAG_REPLY
                | Flow::<A>::FLAG_AFFINITY
                | Flow::<A>::FLAG_NAMED
                | Flow::<A>::FLAG_EGRESS),
        ..Flow::default()
    };
    if A::HAS_OPTIONS && flow.flags & Flow::<A>::FLAG_NAMED != 0 {
        (other.source, other.source_port) = (flow.source, flow.source_port);
    }
    if way_back == 0 {
        lead_to_pod(&mut other);
    }
    other
}

/// Sets the way into the pod that a flow is rewritten to, if that is a pod of this node.
#[inline(always)]
pub fn lead_to_pod<A: Family>(flow: &mut Flow<A>) {
    // SAFETY: an entry is replaced whole; a link that is just being removed gets no more packets either way.
    if let Some(endpoint) = unsafe { A::endpoints().get(flow.destination) } {
        flow.ifindex = endpoint.ifindex;
        flow.destination_mac = endpoint.pod_mac;
        flow.source_mac = endpoint.host_mac;
        flow.flags |= Flow::<A>::FLAG_TO_POD;
    }
}
