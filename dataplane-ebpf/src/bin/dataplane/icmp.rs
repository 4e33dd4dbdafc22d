//! ICMP errors about packets that were rewritten (RFC 5508, requirements 4 and 5).
//!
//! An error quotes the packet that it is about as the complaining router or host saw it, which is not what the packet's
//! sender knows. The quoted tuple, reversed, is the key of the entry for the opposite direction, and that entry
//! says both what the quoted packet was at first and which way its sender is:
//!
//! | in the error | becomes |
//! |---|---|
//! | quoted source, and the address that the error is sent to | the entry's destination |
//! | quoted destination | the entry's source |
//! | the error's source | the entry's source where the quoted destination itself complains; a router's own stays |
//!
//! So senders learn a path's MTU, and that a port is closed, through a service as they do without one. Everything else
//! passes untouched: other messages, unknown flows, quotes of fragments or with options, and errors that are not sent
//! to the quoted sender.
//!
//! The bytes are changed in place, whatever the state of the buffer's checksum: ICMP is never left to a card to
//! complete, and a change whose checksum follows leaves a sum that a card made of the whole packet right.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use weir_dataplane_ebpf::{Be16, Flow, FlowKey, checksum};

use crate::{
    counters::Verdict,
    echo, egress,
    maps::Draft,
    opening,
    outline::Outlined,
    parse::{self, ETHERNET_LENGTH, Frame, Layout, Sctp, Tcp, Transport, Udp},
    rewrite::{self, Hook as _},
    tc::{self, Skb},
    tunnel,
};

/// Bytes of an error before the quote.
pub const HEADER_LENGTH: usize = 8;
/// Offset of the checksum in them.
pub const CHECKSUM: usize = 2;
/// Bytes of the quoted packet's transport header that every error has (RFC 792): the ports, and UDP's checksum. TCP's
/// is in longer quotes only, and SCTP's proves nothing in any.
pub const QUOTED_LENGTH: usize = 8;

/// Serves an ICMP packet of `length` bytes. `None`: it may be an echo that leaves the cluster.
#[inline(always)]
pub fn serve<A: Outlined, const FORWARDS: bool>(hook: &Skb<'_, FORWARDS>, length: u32) -> Option<Verdict> {
    let draft = A::draft()?;
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *draft };
    draft.packet.length = length;
    if A::restore(hook.skb()) {
        return Some(if FORWARDS { send(hook, length, draft) } else { Verdict::Pass });
    }
    if FORWARDS && egress::is_on::<A>() { None } else { Some(Verdict::Pass) }
}

/// Sends an error that is restored the way of the draft's flow.
#[inline(always)]
fn send<A: Outlined, const FORWARDS: bool>(
    hook: &Skb<'_, FORWARDS>,
    length: u32,
    draft: &Draft<A>,
) -> Verdict {
    let frame = hook.frame();
    if !frame.holds(A::TRANSPORT) {
        return Verdict::Pass;
    }
    let (ttl, flow) = (frame.read(A::TTL), &draft.flow);
    if flow.flags & Flow::<A>::FLAG_TUNNEL != 0 {
        // About an answer that the backend's node sent in this node's name.
        // No error is answered with an error (RFC 1122, 3.2.2).
        return if tunnel::fits(hook, length, A::NETWORK_LENGTH, flow) {
            tunnel::send::<A, _>(hook, length, ttl, flow)
        } else {
            Verdict::Pass
        };
    }
    if flow.ifindex != 0 {
        return rewrite::lead(frame, ttl, flow);
    }
    // SAFETY: as in `flow::lead_to_pod`.
    match unsafe { A::endpoints().get(flow.destination) } {
        Some(endpoint) => rewrite::deliver::<A>(frame, ttl, endpoint),
        None => Verdict::Pass,
    }
}

/// Makes the error in the draft one about the packet as it was sent; the entry that says so is in the draft afterwards.
#[inline(always)]
pub fn restore<A: Layout>(skb: *mut __sk_buff) -> Option<()> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *A::draft()? };
    let length = draft.packet.length;
    let quote_at = A::NETWORK_LENGTH + HEADER_LENGTH;
    let frame = tc::frame(&TcContext::new(skb), quote_at + A::TRANSPORT + Tcp::LENGTH);
    let quote = frame.after(quote_at);
    let shortest = A::TRANSPORT + QUOTED_LENGTH;
    if (length as usize) < quote_at + shortest - ETHERNET_LENGTH
        || !quote.holds(shortest)
        || !A::is_error(frame.read(A::TRANSPORT))
    {
        return None;
    }
    match A::network(quote).ok()? {
        (Tcp::PROTOCOL, _) => restore_quote::<A, Tcp>(frame, quote, draft),
        (Udp::PROTOCOL, _) => restore_quote::<A, Udp>(frame, quote, draft),
        (Sctp::PROTOCOL, _) => restore_quote::<A, Sctp>(frame, quote, draft),
        (protocol, _) if protocol == A::ICMP => restore_echo::<A>(frame, quote, draft),
        _ => None,
    }
}

/// The same for a quoted echo request.
#[inline(always)]
fn restore_echo<A: Layout>(frame: Frame, quote: Frame, draft: &mut Draft<A>) -> Option<()> {
    let key = echo::quoted_key::<A>(quote)?.reversed();
    find(&key, &mut draft.flow)?;
    if A::read_address(frame, A::ADDRESSES + size_of::<A>()) != key.destination {
        return None;
    }
    let flow = &draft.flow;
    let change = echo::restore(quote, flow, change_quoted_network(quote, flow));
    finish(frame, &key, flow, change);
    Some(())
}

/// The same, once the quoted transport is known. `quote` is the frame from where it would begin if the quoted packet
/// were alone in it, so that both have their fields at the same offsets.
#[inline(always)]
fn restore_quote<A: Layout, T: Transport>(frame: Frame, quote: Frame, draft: &mut Draft<A>) -> Option<()> {
    let key = parse::key::<A, T>(quote).reversed();
    find(&key, &mut draft.flow)?;
    if draft.flow.flags & Flow::<A>::FLAG_TUNNEL != 0 {
        return Some(());
    }
    let (flow, length) = (&draft.flow, draft.packet.length);
    let destination = A::read_address(frame, A::ADDRESSES + size_of::<A>());
    if destination != key.destination {
        return None;
    }
    if flow.is_rewritten() {
        // The first node has restored it.
        return Some(());
    }
    let change = change_quote::<A, T>(quote, flow, length);
    finish(frame, &key, flow, change);
    Some(())
}

/// Addresses the error, and changes its checksum by that and by what its quote changed.
#[inline(always)]
fn finish<A: Layout>(frame: Frame, key: &FlowKey<A>, flow: &Flow<A>, mut change: checksum::Sum) {
    let addresses = change_addresses(frame, key, flow);
    if A::NETWORK_CHECKSUM.is_none() {
        change = change.add_word(Be16::from_bits(addresses));
    }
    let offset = A::TRANSPORT + CHECKSUM;
    frame.write(offset, checksum::apply(frame.read(offset), change.fold()));
}

/// Copies the entry of a tuple, whether its flow is established or opening.
#[inline(always)]
fn find<A: Layout>(key: &FlowKey<A>, copy: &mut Flow<A>) -> Option<()> {
    // SAFETY: as in `flow::follow`.
    if let Some(flow) = unsafe { A::flows().get(key) } {
        *copy = *flow;
        return Some(());
    }
    opening::find(key, copy).then_some(())
}

/// Restores the quoted packet's addresses; returns what the error's checksum changes by, once its ports are restored too.
/// The entry's own deltas fit, since the quote has the same two tuples in it, the other way round.
#[inline(always)]
fn change_quoted_network<A: Layout>(quote: Frame, flow: &Flow<A>) -> checksum::Sum {
    flow.destination.write_address(quote, A::ADDRESSES);
    flow.source.write_address(quote, A::ADDRESSES + size_of::<A>());
    let change = checksum::Sum::default().add_word(Be16::from_bits(flow.transport_delta));
    let Some(offset) = A::NETWORK_CHECKSUM else { return change };
    let old = quote.read(offset);
    let new = checksum::apply(old, flow.network_delta);
    quote.write(offset, new);
    change.replace_word(Be16::from_bits(old), Be16::from_bits(new))
}

/// Restores the quoted packet; returns what the error's checksum changes by.
#[inline(always)]
fn change_quote<A: Layout, T: Transport>(quote: Frame, flow: &Flow<A>, length: u32) -> checksum::Sum {
    let mut change = change_quoted_network(quote, flow);
    quote.write(A::TRANSPORT, flow.destination_port);
    quote.write(A::TRANSPORT + 2, flow.source_port);
    if T::CHECKSUM_IS_CRC {
        // Over all of a packet of which the quote has a part: nobody can check it, and nobody does.
        return change;
    }
    let offset = A::TRANSPORT + T::CHECKSUM;
    let end = A::NETWORK_LENGTH + HEADER_LENGTH + offset + 2;
    if (length as usize) + ETHERNET_LENGTH < end || !quote.holds(offset + 2) {
        return change;
    }
    let old = quote.read(offset);
    if let Some(new) = parse::changed_checksum::<T>(old, flow.transport_delta) {
        quote.write(offset, new);
        change = change.replace_word(Be16::from_bits(old), Be16::from_bits(new));
    }
    change
}

/// Addresses the error itself; returns by how much that changes the sum of its addresses. `key` is the quoted tuple,
/// reversed.
#[inline(always)]
fn change_addresses<A: Layout>(frame: Frame, key: &FlowKey<A>, flow: &Flow<A>) -> u16 {
    let mut change = checksum::Sum::default().replace(&key.destination, &flow.destination);
    flow.destination.write_address(frame, A::ADDRESSES + size_of::<A>());
    if A::read_address(frame, A::ADDRESSES) == key.source {
        change = change.replace(&key.source, &flow.source);
        flow.source.write_address(frame, A::ADDRESSES);
    }
    let change = change.fold();
    rewrite::change_network_checksum::<A>(frame, change);
    change
}
