//! Direct server return: a client's packet goes to the backend's node whole, inside another one, and the backend's answers
//! leave from there. This node sees half of the traffic, and the client's address stays what it is.
//!
//! The inner packet is the client's own, so that the backend's node needs nothing but its own tables to serve it: Maglev
//! finds the same backend there. IPv4 travels in IPv4 (RFC 2003), IPv6 in IPv6 (RFC 2473). Packets are taken out again for
//! nodes of this cluster alone: anybody else could forge what is inside.

use aya_ebpf::{bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, programs::TcContext};
use weir_dataplane_ebpf::{Be32, DropReason, Flow, Ip4, Ip6};

use crate::{
    counters::Verdict,
    flow,
    maps::{Complaint, UPLINKS_MAP},
    outline::Outlined,
    parse::{self, Frame, Headers, Kind, Layout},
    rewrite::{self, Hook},
    tc,
};

/// How the kernel is asked for room: between the link header and what follows.
pub const AFTER_LINK_HEADER: u32 = BPF_ADJ_ROOM_MAC;

/// Whether a packet of `length` bytes gets through whole when it is longer by `more`.
#[inline(always)]
pub fn fits<A, H: Hook>(hook: &H, length: u32, more: usize, flow: &Flow<A>) -> bool {
    flow.mtu == 0 || length + more as u32 <= u32::from(flow.mtu) || hook.is_segmented()
}

/// Tells a packet's sender what would fit when it is longer by `more`.
#[inline(always)]
pub fn refuse<A: Outlined, H: Hook>(hook: &H, headers: &Headers<A>, more: usize, flow: &Flow<A>) -> Verdict {
    let fits = u32::from(flow.mtu) - more as u32;
    let complaint = Complaint { kind: A::PACKET_TOO_BIG, word: Be32::new(fits) };
    flow::present(hook, headers);
    hook.complain::<A>(complaint, DropReason::TooBig)
}

/// Sends a packet to the flow's node, or tells its sender what would fit. The caller has asked [`rewrite::can_send`].
#[inline(always)]
pub fn serve<A: Outlined, H: Hook>(hook: &H, headers: &Headers<A>, flow: &Flow<A>) -> Verdict {
    if headers.ttl > 1 && !fits(hook, headers.length, A::NETWORK_LENGTH, flow) {
        return refuse(hook, headers, A::NETWORK_LENGTH, flow);
    }
    send::<A, H>(hook, headers.length, headers.ttl, flow)
}

/// Sends a packet of `length` bytes, which fits, to the flow's node.
#[inline(always)]
pub fn send<A: Outlined, H: Hook>(hook: &H, length: u32, ttl: u8, flow: &Flow<A>) -> Verdict {
    if ttl <= 1 {
        return Verdict::Drop(DropReason::TtlExceeded);
    }
    let frame = hook.frame();
    if !frame.holds(A::TRANSPORT) {
        return Verdict::Drop(DropReason::Truncated);
    }
    rewrite::decrement_ttl::<A>(frame, ttl);
    if !hook.make_room(A::NETWORK_LENGTH, A::ENCAPSULATES) {
        return Verdict::Drop(DropReason::RewriteFailed);
    }
    let frame = hook.frame();
    if !frame.holds(A::TRANSPORT) {
        return Verdict::Drop(DropReason::RewriteFailed);
    }
    // A header is written for an answer to the tuple that it is given.
    A::write_header(frame, &flow.reply_key(A::TUNNEL), A::TUNNEL, length as u16);
    frame.write(12, A::ETHERTYPE);
    if flow.flags & Flow::<A>::FLAG_NEXT_HOP == 0 {
        return Verdict::ToNeighbour(flow.ifindex);
    }
    rewrite::write_link_addresses(frame, flow.destination_mac, flow.source_mac);
    Verdict::Out(flow.ifindex)
}

/// Takes a packet out that another node has put in. False: it is none of those.
#[inline(always)]
pub fn receive(context: &TcContext) -> bool {
    let frame = tc::frame(context, Ip6::TRANSPORT);
    // SAFETY: the context is the kernel's, for as long as the program runs.
    let ifindex = unsafe { (*context.skb.skb).ifindex };
    match parse::kind(frame) {
        Ok(Kind::V4) => receive_family::<Ip4>(context, frame, ifindex),
        Ok(Kind::V6) => receive_family::<Ip6>(context, frame, ifindex),
        Err(_) => false,
    }
}

#[inline(always)]
fn receive_family<A: Layout>(context: &TcContext, frame: Frame, ifindex: u32) -> bool {
    if !frame.holds(A::TRANSPORT) || !A::network(frame).is_ok_and(|(protocol, _)| protocol == A::TUNNEL) {
        return false;
    }
    let source = A::read_address(frame, A::ADDRESSES);
    let destination = A::read_address(frame, A::ADDRESSES + size_of::<A>());
    // SAFETY: the agent replaces an entry whole.
    let Some(uplink) = (unsafe { UPLINKS_MAP.get(ifindex) }) else { return false };
    // SAFETY: as above.
    if A::uplink_address(uplink) != destination || unsafe { A::tunnel_peers().get(source) }.is_none() {
        return false;
    }
    context.adjust_room(-(A::NETWORK_LENGTH as i32), AFTER_LINK_HEADER, 0).is_ok()
}
