//! Fragments, and packets with IP options or extension headers: their ports do not stand where they always do, or not in
//! them at all.
//!
//! They are few, and XDP leaves them all to TC. Here they take a path of their own, which reads and writes through the
//! kernel's helpers at offsets that it finds out: slower by some calls, and a small walk for the verifier, since one body
//! serves all transports. What it decides, it asks of the same tables by the same functions.
//!
//! Where the ports are, [`crate::walk`] finds out.
//!
//! The first fragment of a packet has the ports and is served like a whole packet: the change of a checksum is the same
//! whatever else it covers. What it said is remembered (`fragments_v4`, `fragments_v6`), and later fragments go the way
//! of the flow that it names. One that comes before its first, or for which no first was served, passes untouched; so do
//! fragments of SCTP, whose checksum can only be changed by who knows the whole packet's length. The identification
//! stays as the sender chose it. A sender of fragments is told that its service has no endpoint, or not that port, if the
//! headers before the ports are plain and nothing of the answer depends on the rest: for UDP over IPv4.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY},
    programs::TcContext,
};
use weir_dataplane_ebpf::{Be16, DropReason, Flow, Fragment, FrontendOption, Scope};

use crate::{
    counters::Verdict,
    direct_option, echo, egress, events, flow,
    kernel::now_s,
    maps::{Draft, Family},
    opening,
    outline::Outlined,
    parse::{ETHERNET_LENGTH, Error, Headers, Layout, Sctp, Tcp, TcpFlags, Transport, Udp},
    rewrite::{self, Hook as _},
    service,
    start::Started,
    tc::{self, Skb},
    tunnel,
    walk::{Part, Walk, load},
};

/// Serves a packet that [`crate::parse`] does not read.
#[inline(always)]
pub fn serve<A: Outlined, const FORWARDS: bool>(hook: &Skb<'_, FORWARDS>) -> Verdict {
    if let Err(error) = A::read_slowly(hook.skb()) {
        return error.verdict();
    }
    let Some(draft) = A::draft() else { return Verdict::Pass };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &*draft };
    let headers = Headers {
        key: draft.key,
        length: draft.packet.length,
        flags: draft.packet.flags,
        ttl: draft.extent.ttl,
    };
    let part = draft.extent.part;
    let plain = draft.extent.transport as usize == A::TRANSPORT && part.0 != Part::LATER;
    let told = plain && headers.key.protocol == Udp::PROTOCOL;
    let verdict = match decide(hook, &headers, part, told) {
        Verdict::Drop(reason) if told && service::is_told(reason) => hook.refuse::<A, Udp>(&headers, reason),
        verdict => verdict,
    };
    if let Verdict::Drop(reason) | Verdict::Answer(reason) = verdict {
        flow::present(hook, &headers);
        A::tell_dropped(reason);
    }
    verdict
}

/// A known flow or a service's new one. What is neither the stack gets, with all its fragments, unless its sender can be
/// `told` here that there is no such port.
#[inline(always)]
fn decide<A: Outlined, const FORWARDS: bool>(
    hook: &Skb<'_, FORWARDS>,
    headers: &Headers<A>,
    part: Part,
    told: bool,
) -> Verdict {
    if !service::concerns(hook, &headers.key) && !egress::concerns(hook, &headers.key) {
        return leave(hook, headers, told);
    }
    let named = if A::HAS_OPTIONS && FORWARDS && hook.scope().0 == Scope::EXTERNAL.0 {
        direct_option::receive(hook, headers)
    } else {
        Started::Leave
    };
    let served = match named {
        Started::Leave => find(hook, headers, part),
        other => other,
    };
    match served {
        Started::Serve => send(hook, headers),
        Started::Leave => Verdict::Pass,
        Started::Nobody => leave(hook, headers, told),
        Started::Drop(reason) => Verdict::Drop(reason),
    }
}

/// Puts the flow of a packet into the draft, or opens it.
#[inline(always)]
fn find<A: Outlined, const FORWARDS: bool>(
    hook: &Skb<'_, FORWARDS>,
    headers: &Headers<A>,
    part: Part,
) -> Started {
    if flow::copy(hook, headers) {
        return Started::Serve;
    }
    let Some(draft) = flow::present(hook, headers) else { return Started::Leave };
    if part.0 != Part::LATER {
        let started = hook.start::<A>();
        events::begun(draft);
        started
    } else if opening::find(&headers.key, &mut draft.flow) {
        opening::count(&headers.key, headers.length);
        Started::Serve
    } else {
        Started::Nobody
    }
}

/// Nobody's packet.
#[inline(always)]
fn leave<A: Outlined, const FORWARDS: bool>(
    hook: &Skb<'_, FORWARDS>,
    headers: &Headers<A>,
    told: bool,
) -> Verdict {
    if told && service::lacks_port(hook, &headers.key) {
        Verdict::Drop(DropReason::UnknownPort)
    } else {
        Verdict::Pass
    }
}

/// Sends a packet the way of the draft's flow.
#[inline(always)]
fn send<A: Outlined, const FORWARDS: bool>(hook: &Skb<'_, FORWARDS>, headers: &Headers<A>) -> Verdict {
    let Some(draft) = A::draft() else { return Verdict::Pass };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let (flow, extent) = unsafe { (&(*draft).flow, &(*draft).extent) };
    if flow.flags & Flow::<A>::FLAG_EGRESS != 0 {
        // Options of TCP are left out: a packet that is to be cut and is so near to what fits is rare, and lost.
        let header_length = extent.transport - ETHERNET_LENGTH as u32 + Tcp::LENGTH as u32;
        let has_options = extent.transport as usize != A::TRANSPORT;
        if let Some(verdict) = egress::hold_back::<A, _>(hook, headers, flow, header_length, has_options) {
            return verdict;
        }
    }
    let verdict = A::rewrite_slowly(hook.skb());
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let flow = unsafe { &(*draft).flow };
    if flow.flags & Flow::<A>::FLAG_TUNNEL == 0 {
        return verdict;
    }
    tunnel::serve::<A, _>(hook, headers, flow)
}

/// Puts tuple, length, flags and extent of a packet into the draft.
#[inline(always)]
pub fn read<A: Walk>(skb: *mut __sk_buff) -> Result<(), Error> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &mut *A::draft().ok_or(Error::NotOurs)? };
    let context = TcContext::new(skb);
    A::walk(&context, draft)?;
    let length = draft.packet.length;
    let part = draft.extent.part.0;
    draft.key.padding = 0;
    draft.key.padding_word = 0;
    draft.packet.flags = TcpFlags::NONE;
    if part == Part::LATER {
        return recall(draft);
    }
    if part == Part::FIRST {
        // Should this one not be served, then nor shall those that follow it.
        let _ = A::fragments().remove(&A::fragment_key(draft));
    }
    let at = draft.extent.transport as usize;
    let least = match draft.key.protocol {
        Tcp::PROTOCOL => Tcp::LENGTH,
        Udp::PROTOCOL => Udp::LENGTH,
        Sctp::PROTOCOL if part == Part::WHOLE => Sctp::LENGTH,
        protocol if protocol == A::ICMP && egress::is_on::<A>() => echo::LENGTH,
        _ => return Err(Error::NotOurs),
    };
    if at + least > length as usize + ETHERNET_LENGTH {
        // Fragments may be as short as they like; one without the whole header cannot be judged.
        return Err(if part == Part::FIRST { Error::NotOurs } else { Error::Truncated });
    }
    if draft.key.protocol == A::ICMP {
        return echo::read(&context, at, draft);
    }
    let [source_port, destination_port]: [Be16; 2] = load(&context, at)?;
    draft.key.source_port = source_port;
    draft.key.destination_port = destination_port;
    match draft.key.protocol {
        Tcp::PROTOCOL => draft.packet.flags = TcpFlags::of_tcp(load(&context, at + Tcp::FLAGS)?),
        Sctp::PROTOCOL => draft.packet.flags = TcpFlags::of_sctp(load(&context, at + Sctp::CHUNK)?),
        _ => {}
    }
    Ok(())
}

/// Takes the ports from what the packet's first fragment said.
#[inline(always)]
fn recall<A: Walk>(draft: &mut Draft<A>) -> Result<(), Error> {
    // SAFETY: an entry stays mapped memory, and any value that another CPU leaves is a tuple's.
    let first = unsafe { A::fragments().get(&A::fragment_key(draft)) }.ok_or(Error::NotOurs)?;
    if !first.holds(now_s()) {
        return Err(Error::NotOurs);
    }
    draft.key.source_port = first.source_port;
    draft.key.destination_port = first.destination_port;
    draft.key.protocol = first.protocol;
    Ok(())
}

/// Remembers a first fragment's ports.
#[inline(always)]
fn remember<A: Walk>(draft: &Draft<A>) {
    let key = &draft.key;
    let first = Fragment {
        source_port: key.source_port,
        destination_port: key.destination_port,
        seen_s: now_s(),
        protocol: key.protocol,
        padding: 0,
        padding_word: 0,
    };
    let _ = A::fragments().insert(&A::fragment_key(draft), &first, u64::from(BPF_ANY));
}

/// Rewrites the packet in the draft as the draft's flow says: what [`rewrite::translate`] does to others.
#[inline(always)]
pub fn rewrite<A: Outlined>(skb: *mut __sk_buff) -> Verdict {
    let Some(draft) = A::draft() else { return Verdict::Pass };
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let draft = unsafe { &*draft };
    let (flow, extent) = (&draft.flow, &draft.extent);
    let forwards = draft.packet.scope.0 != Scope::NONE.0;
    let leaves = forwards && flow.ifindex != 0;
    if leaves && extent.ttl <= 1 {
        return Verdict::Drop(DropReason::TtlExceeded);
    }
    let context = TcContext::new(skb);
    let named = extent.part.0 != Part::LATER
        && direct_option::is_needed(draft.key.protocol, draft.packet.flags, flow);
    if named && !tunnel::fits(&Skb::from_outside(&context), draft.packet.length, FrontendOption::LENGTH, flow)
    {
        return refuse(&context, draft);
    }
    if extent.part.0 == Part::FIRST {
        remember(draft);
    }
    if flow.flags & Flow::<A>::FLAG_TUNNEL != 0 {
        // It stays as it is, and goes into a tunnel.
        return Verdict::Pass;
    }
    if flow.is_rewritten() {
        if extent.names_frontend && !A::take_out(&context) {
            return Verdict::Drop(DropReason::RewriteFailed);
        }
        let frame = tc::frame(&context, A::TRANSPORT);
        return if forwards { rewrite::lead(frame, extent.ttl, flow) } else { Verdict::Pass };
    }
    if extent.part.0 != Part::LATER && change_transport(&context, draft).is_err() {
        return Verdict::Drop(DropReason::RewriteFailed);
    }
    let frame = tc::frame(&context, A::TRANSPORT);
    if !frame.holds(A::TRANSPORT) {
        return Verdict::Drop(DropReason::Truncated);
    }
    flow.source.write_address(frame, A::ADDRESSES);
    flow.destination.write_address(frame, A::ADDRESSES + size_of::<A>());
    rewrite::change_network_checksum::<A>(frame, flow.network_delta);
    let verdict = if forwards { rewrite::lead(frame, extent.ttl, flow) } else { Verdict::Pass };
    if named && !A::put_in(&Skb::from_outside(&context), &draft.key) {
        return Verdict::Drop(DropReason::RewriteFailed);
    }
    verdict
}

/// Tells the sender of the packet in the draft what would fit with an option.
#[inline(always)]
fn refuse<A: Outlined>(context: &TcContext, draft: &Draft<A>) -> Verdict {
    let headers = Headers {
        key: draft.key,
        length: draft.packet.length,
        flags: draft.packet.flags,
        ttl: draft.extent.ttl,
    };
    tunnel::refuse(&Skb::from_outside(context), &headers, FrontendOption::LENGTH, &draft.flow)
}

/// Writes the ports, and changes the checksum behind them.
#[inline(always)]
fn change_transport<A: Layout>(context: &TcContext, draft: &Draft<A>) -> Result<(), DropReason> {
    let (key, flow) = (&draft.key, &draft.flow);
    if key.protocol == A::ICMP {
        return echo::rewrite(context, draft).map_err(|_| DropReason::RewriteFailed);
    }
    let at = draft.extent.transport as usize;
    let ports = [flow.source_port, flow.destination_port];
    context.store(at, &ports, 0).map_err(|_| DropReason::RewriteFailed)?;
    match key.protocol {
        Tcp::PROTOCOL => tc::change_checksum(context, at + Tcp::CHECKSUM, flow, Tcp::CHECKSUM_OPTIONAL),
        Udp::PROTOCOL => tc::change_checksum(context, at + Udp::CHECKSUM, flow, Udp::CHECKSUM_OPTIONAL),
        _ => change_crc(context, draft).map_err(|_| DropReason::RewriteFailed),
    }
}

/// As [`rewrite::translate`] does it.
#[inline(always)]
fn change_crc<A: Family>(context: &TcContext, draft: &Draft<A>) -> Result<(), Error> {
    let at = draft.extent.transport as usize;
    let change = rewrite::port_change(&draft.key, &draft.flow);
    let old: u32 = load(context, at + Sctp::CHECKSUM)?;
    if change == 0 || old == 0 {
        return Ok(());
    }
    let length = draft.packet.length + ETHERNET_LENGTH as u32 - draft.extent.transport;
    let new = rewrite::crc32c_changed(old, change, length);
    context.store(at + Sctp::CHECKSUM, &new, 0).map_err(|_| Error::Truncated)
}
