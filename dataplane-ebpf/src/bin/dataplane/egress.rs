//! Masquerade: pods talk to addresses outside the cluster by the address of the uplink that they leave by.
//!
//! Such a flow is like a service's of which the destination itself is the backend: two entries in the same tables, kept
//! alive and repaired by the same hands, and a source port of the same range, so that no two flows have one tuple of
//! answers. What is the cluster's own (`non_masquerade`: pods, services, nodes, and what leaves no link) is asked for a
//! flow's first packet alone. The answers come to a port and an address that only such flows have, which is how a packet
//! from outside is known; XDP leaves them to `tc_uplink`, which reaches pods.
//!
//! Only what opens a connection opens a flow: a SYN, an SCTP INIT, an echo request, a datagram. So a pod's answers to who
//! asked it by its own address leave with that, but for datagrams, which say nothing of who asked. A later packet whose
//! half of a flow was lost finds the other half by the ports that its tuple takes.

use aya_ebpf::{bindings::__sk_buff, maps::lpm_trie::Key};
use weir_dataplane_ebpf::{
    Be32, DropReason, Flow, FlowKey, FlowState, Protocol, RangeKey, Scope,
    maps::{MASQUERADE_PORT_FIRST, MASQUERADE_PORTS, MASQUERADE_TRIES},
};

use crate::{
    counters::Verdict,
    flow,
    kernel::now_jiffies,
    maps::{Complaint, Draft, Family, NODE_CONFIG, Packet, UPLINKS_MAP},
    outline::Outlined,
    parse::{Headers, Layout},
    rewrite::{self, Hook},
    route,
    start::{Place, Standing, Started, keep_question, masquerade_port, reserve_answer, standing_answer},
};

/// Whether this family's packets are masqueraded.
#[inline(always)]
pub fn is_on<A: Family>() -> bool {
    // SAFETY: an array's entry stays mapped and aligned memory, and any flags that user space leaves are valid.
    NODE_CONFIG.get_ptr(0).is_some_and(|config| unsafe { (*config).flags } & A::FLAG_MASQUERADE != 0)
}

/// Whether a packet that can have to do with no service may be of a flow that leaves the cluster: any from a pod, and from
/// outside what goes to such a port of the uplink's own address. All others are told by that port.
#[inline(always)]
pub fn concerns<A: Family, H: Hook>(hook: &H, key: &FlowKey<A>) -> bool {
    if !H::HAS_STACK || !H::FORWARDS {
        return false;
    }
    if hook.scope().0 == Scope::INTERNAL.0 {
        return is_on::<A>();
    }
    let port = key.destination_port.get();
    port.wrapping_sub(MASQUERADE_PORT_FIRST) < MASQUERADE_PORTS
        && is_on::<A>()
        && own_address::<A>(hook.ifindex()) == Some(key.destination)
}

/// The node's own address on an uplink. Nothing when the link is none, or has none in this family.
#[inline(always)]
fn own_address<A: Family>(ifindex: u32) -> Option<A> {
    // SAFETY: the agent replaces an entry whole.
    let address = A::uplink_address(unsafe { UPLINKS_MAP.get(ifindex) }?);
    if address == A::default() { None } else { Some(address) }
}

/// Serves the packet in this CPU's draft, which came from a pod and is no service's: opens its flow if it leaves the
/// cluster by an uplink, or finds the half that it has lost. Everything else is the stack's.
#[inline(always)]
pub fn open<A: Layout>(context: *mut __sk_buff) -> Started {
    let Some(draft) = A::draft() else { return Started::Leave };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *draft };
    let (key, packet) = (&draft.key.clone(), draft.packet);
    if !is_on::<A>() || !is_pods(key, &packet) || !leaves(key) {
        return Started::Nobody;
    }
    draft.flow = Flow {
        packets: 1,
        bytes: u64::from(packet.length),
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        last_seen_jiffies: now_jiffies(),
        state: FlowState::OPENING,
        ..Flow::default()
    };
    // Without a next hop the stack asks for it. Without a route, or with one to a link that is no uplink, such as to the
    // node itself, there is no interface or no address here.
    let _ = route::know_next_hop(context.cast(), &mut draft.flow, packet.ifindex);
    let Some(own) = own_address::<A>(draft.flow.ifindex) else { return Started::Nobody };
    draft.flow.source = own;
    draft.flow.flags |= Flow::<A>::FLAG_EGRESS;
    keep(key, &Place::with_stack(context.cast(), packet), draft)
}

/// Whether the packet has the address of the pod behind the link that it came by: no other could be answered.
#[inline(always)]
fn is_pods<A: Family>(key: &FlowKey<A>, packet: &Packet) -> bool {
    // SAFETY: as in `flow::lead_to_pod`.
    unsafe { A::endpoints().get(key.source) }.is_some_and(|endpoint| endpoint.ifindex == packet.ifindex)
}

/// Whether the destination is none of those that pods reach with their own addresses.
#[inline(always)]
fn leaves<A: Family>(key: &FlowKey<A>) -> bool {
    A::non_masquerade().get(Key::new(RangeKey::<A>::ALL_BITS, key.destination)).is_none()
}

/// Whether a packet may begin a flow.
#[inline(always)]
fn opens<A>(key: &FlowKey<A>, packet: &Packet) -> bool {
    match key.protocol {
        Protocol::TCP | Protocol::SCTP => packet.flags.opens(),
        _ => !packet.flags.acknowledges(),
    }
}

/// Finds a port for the draft's flow, and keeps both halves, the answer's first.
#[inline(always)]
fn keep<A: Layout>(key: &FlowKey<A>, place: &Place, draft: &mut Draft<A>) -> Started {
    let opens = opens(key, &place.packet);
    let (mut standing, mut attempt) = (Standing::TAKEN, 0);
    while attempt < MASQUERADE_TRIES {
        draft.flow.source_port = masquerade_port(key, attempt);
        standing = standing_answer(key, &draft.flow, place);
        if standing.is_own() || (opens && standing != Standing::TAKEN) {
            break;
        }
        attempt += 1;
    }
    if attempt == MASQUERADE_TRIES {
        return if opens { Started::Drop(DropReason::PortsExhausted) } else { Started::Nobody };
    }
    rewrite::set_deltas(key, &mut draft.flow);
    if let Err(reason) = reserve_answer(key, standing, place, draft) {
        return Started::Drop(reason);
    }
    keep_question(key, standing, draft);
    Started::Serve
}

/// What becomes of a packet of such a flow that cannot leave; `None` when it can. `header_length` is what each segment of
/// it begins with, from the network header on.
///
/// The stack tells the sender of a packet whose time is up, as any router does. One that is too long gets its answer here,
/// since a packet with the node's own address in it would be nobody's to the stack. Its sender is told whether it may be
/// fragmented or not: a host then makes the fragments itself. (An answer quotes 28 or 48 bytes from the network header on,
/// which are not the right ones behind options.)
#[inline(always)]
pub fn hold_back<A: Outlined, H: Hook>(
    hook: &H,
    headers: &Headers<A>,
    flow: &Flow<A>,
    header_length: u32,
    has_options: bool,
) -> Option<Verdict> {
    if flow.flags & Flow::<A>::FLAG_REPLY != 0 {
        return None;
    }
    if headers.ttl <= 1 {
        return Some(Verdict::Pass);
    }
    let segment = match hook.segment_size() {
        0 => headers.length,
        size => size + header_length,
    };
    if flow.mtu == 0 || headers.length <= u32::from(flow.mtu) || segment <= u32::from(flow.mtu) {
        return None;
    }
    if has_options {
        return Some(Verdict::Drop(DropReason::TooBig));
    }
    flow::present(hook, headers);
    let complaint = Complaint { kind: A::PACKET_TOO_BIG, word: Be32::new(u32::from(flow.mtu)) };
    Some(hook.complain::<A>(complaint, DropReason::TooBig))
}
