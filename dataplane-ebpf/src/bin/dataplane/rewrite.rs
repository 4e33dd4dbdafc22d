//! From a flow entry to a changed packet.

use core::ffi::c_void;

use weir_dataplane_ebpf::{Address, Be16, DropReason, Endpoint, Flow, FlowKey, Mac, Scope, checksum, crc32c};

use crate::{
    counters::Verdict,
    direct_option, egress,
    maps::Complaint,
    outline::Outlined,
    parse::{Frame, Headers, Layout, Transport},
    start::Started,
    tunnel,
};

/// Where a program is attached, and what it can do there.
pub trait Hook {
    /// Whether it can hand a packet to a pod, and make the stack ask for a neighbour. One that cannot leaves such flows to
    /// one that can.
    const HAS_STACK: bool;
    /// Whether packets are on their way in, and are sent on from here. One that is on its way out already has its way, and
    /// can be nothing but an answer.
    const FORWARDS: bool = true;

    /// The running program's context, for helpers.
    fn context(&self) -> *mut c_void;
    /// The bytes at hand. What was checked on an earlier frame must be checked again.
    fn frame(&self) -> Frame;
    /// The interface that the packet came in by.
    fn ifindex(&self) -> u32;
    /// From where its packets come.
    fn scope(&self) -> Scope;
    /// Whether the sender left the transport checksum to a network card, and this hook cannot tell when changing it.
    fn unfinished<A: Layout, T: Transport>(&self, headers: &Headers<A>) -> bool;
    /// Changes the transport checksum as the flow says. Nothing may be read or written after it.
    fn change_transport_checksum<A: Layout, T: Transport>(
        &self,
        frame: Frame,
        flow: &Flow<A>,
    ) -> Result<(), DropReason>;
    /// Serves the packet in this CPU's draft, which belongs to no established flow.
    fn start<A: Outlined>(&self) -> Started;
    /// Looks after the flow of the packet in this CPU's draft.
    fn tend<A: Outlined>(&self);
    /// Whether the packet came out of a tunnel.
    fn tunnelled(&self) -> bool {
        false
    }
    /// Bytes of payload in each segment that the kernel will cut the packet into; zero when it goes out as it is.
    fn segment_size(&self) -> u32;
    /// Whether the kernel will cut the packet into segments.
    #[inline(always)]
    fn is_segmented(&self) -> bool {
        self.segment_size() != 0
    }
    /// Makes room for `length` bytes behind the link header. They and the link header must all be written then. `flags` are
    /// what the kernel must be told of a packet that is put into another one.
    fn make_room(&self, length: usize, flags: u64) -> bool;
    /// Sends the packet in this CPU's draft with its frontend in an option ([`direct_option::send`]).
    fn send_with_option<A: Outlined>(&self) -> Verdict;
    /// Turns the packet in this CPU's draft into an ICMP message to its sender.
    fn complain<A: Outlined>(&self, complaint: Complaint, reason: DropReason) -> Verdict;
    /// Refuses a packet, in the name of whom it is for.
    fn refuse<A: Outlined, T: Transport>(&self, headers: &Headers<A>, reason: DropReason) -> Verdict;
    /// Serves a packet of the family's ICMP, `length` bytes from the network header on, if it is about a flow. `None`: it
    /// may be one of a flow itself.
    fn serve_icmp<A: Outlined>(&self, length: u32) -> Option<Verdict>;
    /// Serves a packet whose ports do not stand where they always do.
    fn serve_slowly<A: Outlined>(&self) -> Verdict;
}

/// Sets the deltas from the packet's tuple to the flow's.
#[inline(always)]
pub fn set_deltas<A: Layout>(key: &FlowKey<A>, flow: &mut Flow<A>) {
    let addresses = checksum::Sum::default()
        .replace(&key.source, &flow.source)
        .replace(&key.destination, &flow.destination);
    flow.network_delta = addresses.fold();
    flow.transport_delta = addresses
        .replace_word(key.source_port, flow.source_port)
        .replace_word(key.destination_port, flow.destination_port)
        .fold();
}

/// Whether packets of this flow can be sent their way from here.
#[inline(always)]
pub fn can_send<A: Address, H: Hook>(flow: &Flow<A>) -> bool {
    H::HAS_STACK || flow.ifindex == 0 && !flow.is_rewritten() || flow.flags & Flow::<A>::FLAG_NEXT_HOP != 0
}

/// Rewrites the packet as the flow says, and tells which way it goes on. The caller has asked [`can_send`].
#[inline(always)]
pub fn translate<A: Outlined, T: Transport, H: Hook>(
    hook: &H,
    headers: &Headers<A>,
    flow: &Flow<A>,
) -> Verdict {
    let special = if A::HAS_OPTIONS { Flow::<A>::FLAG_OPTION | Flow::<A>::FLAG_NAMED } else { 0 };
    let leaves = if H::HAS_STACK { Flow::<A>::FLAG_EGRESS } else { 0 };
    if flow.flags & (Flow::<A>::FLAG_TUNNEL | special | leaves) != 0 {
        if flow.flags & leaves != 0 {
            return leave::<A, T, H>(hook, headers, flow);
        }
        if flow.flags & Flow::<A>::FLAG_TUNNEL != 0 {
            return tunnel::serve::<A, H>(hook, headers, flow);
        }
        if direct_option::is_needed(T::PROTOCOL, headers.flags, flow) {
            return direct_option::serve::<A, H>(hook, headers, flow);
        }
        if flow.is_rewritten() {
            return if H::FORWARDS { lead::<A>(hook.frame(), headers.ttl, flow) } else { Verdict::Pass };
        }
    }
    change::<A, T, H>(hook, headers, flow)
}

/// The same for a packet of a flow that leaves the cluster.
#[inline(always)]
fn leave<A: Outlined, T: Transport, H: Hook>(hook: &H, headers: &Headers<A>, flow: &Flow<A>) -> Verdict {
    let frame = hook.frame();
    if !frame.holds(A::TRANSPORT + T::LENGTH) {
        return Verdict::Drop(DropReason::Truncated);
    }
    let header_length = A::NETWORK_LENGTH as u32 + T::header_length(frame, A::TRANSPORT);
    egress::hold_back::<A, H>(hook, headers, flow, header_length, false)
        .unwrap_or_else(|| change::<A, T, H>(hook, headers, flow))
}

/// The same for a packet that gets no further header.
#[inline(always)]
pub fn change<A: Outlined, T: Transport, H: Hook>(hook: &H, headers: &Headers<A>, flow: &Flow<A>) -> Verdict {
    let frame = hook.frame();
    if !frame.holds(A::TRANSPORT + T::LENGTH) {
        return Verdict::Drop(DropReason::Truncated);
    }
    let leaves = H::FORWARDS && flow.ifindex != 0;
    if leaves && headers.ttl <= 1 {
        return Verdict::Drop(DropReason::TtlExceeded);
    }
    flow.source.write_address(frame, A::ADDRESSES);
    flow.destination.write_address(frame, A::ADDRESSES + size_of::<A>());
    frame.write(A::TRANSPORT, flow.source_port);
    frame.write(A::TRANSPORT + 2, flow.destination_port);
    change_network_checksum::<A>(frame, flow.network_delta);
    let into_pod = flow.flags & Flow::<A>::FLAG_TO_POD != 0;
    let to_next_hop = flow.flags & Flow::<A>::FLAG_NEXT_HOP != 0;
    if leaves {
        decrement_ttl::<A>(frame, headers.ttl);
        if into_pod || to_next_hop {
            write_link_addresses(frame, flow.destination_mac, flow.source_mac);
        }
    }
    if T::CHECKSUM_IS_CRC {
        change_crc::<A, T>(frame, headers, flow);
    } else if let Err(reason) = hook.change_transport_checksum::<A, T>(frame, flow) {
        return Verdict::Drop(reason);
    }
    if !leaves {
        Verdict::Pass
    } else if into_pod {
        Verdict::ToPod(flow.ifindex)
    } else if to_next_hop {
        Verdict::Out(flow.ifindex)
    } else {
        Verdict::ToNeighbour(flow.ifindex)
    }
}

/// Changes a checksum that covers the ports but not the addresses. A sender that leaves it to its network card leaves zero.
#[inline(always)]
fn change_crc<A: Layout, T: Transport>(frame: Frame, headers: &Headers<A>, flow: &Flow<A>) {
    let change = port_change(&headers.key, flow);
    if change == 0 {
        return;
    }
    let old: u32 = frame.read(A::TRANSPORT + T::CHECKSUM);
    if old != 0 {
        let length = headers.length as u16 - A::NETWORK_LENGTH as u16;
        frame.write(A::TRANSPORT + T::CHECKSUM, crc32c_changed(old, change, u32::from(length)));
    }
}

/// The bits of the two ports, as they stand in the packet, that the flow's rewrite changes.
#[inline(always)]
pub fn port_change<A>(key: &FlowKey<A>, flow: &Flow<A>) -> u32 {
    let words =
        |source: Be16, destination: Be16| u32::from(source.bits()) | u32::from(destination.bits()) << 16;
    words(key.source_port, key.destination_port) ^ words(flow.source_port, flow.destination_port)
}

/// A global function, which the verifier walks once and for all: hundreds of steps that are the same for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc32c_changed(checksum: u32, change: u32, length: u32) -> u32 {
    crc32c::apply(checksum, change, length as u16)
}

/// Hands a packet that needs no translation, or none any more, to a pod of this node. The stack gets what has no hop
/// left: it knows how to say so.
#[inline(always)]
pub fn deliver<A: Layout>(frame: Frame, ttl: u8, endpoint: &Endpoint) -> Verdict {
    if ttl <= 1 || !frame.holds(A::TRANSPORT) {
        return Verdict::Pass;
    }
    decrement_ttl::<A>(frame, ttl);
    write_link_addresses(frame, endpoint.pod_mac, endpoint.host_mac);
    Verdict::ToPod(endpoint.ifindex)
}

/// Sends a packet that is translated already on the flow's way. The stack gets what has no hop left, or no way.
#[inline(always)]
pub fn lead<A: Layout>(frame: Frame, ttl: u8, flow: &Flow<A>) -> Verdict {
    if flow.flags & Flow::<A>::FLAG_TO_POD != 0 {
        let endpoint =
            Endpoint { ifindex: flow.ifindex, pod_mac: flow.destination_mac, host_mac: flow.source_mac };
        return deliver::<A>(frame, ttl, &endpoint);
    }
    if ttl <= 1 || flow.ifindex == 0 || !frame.holds(A::TRANSPORT) {
        return Verdict::Pass;
    }
    decrement_ttl::<A>(frame, ttl);
    if flow.flags & Flow::<A>::FLAG_NEXT_HOP == 0 {
        return Verdict::ToNeighbour(flow.ifindex);
    }
    write_link_addresses(frame, flow.destination_mac, flow.source_mac);
    Verdict::Out(flow.ifindex)
}

/// Addresses the frame.
#[inline(always)]
pub fn write_link_addresses(frame: Frame, destination: Mac, source: Mac) {
    let (Mac([a, b, c, d, e, f]), Mac([g, h, i, j, k, l])) = (destination, source);
    frame.write(0, [a, b, c, d]);
    frame.write(4, [e, f, g, h]);
    frame.write(8, [i, j, k, l]);
}

#[inline(always)]
pub fn decrement_ttl<A: Layout>(frame: Frame, ttl: u8) {
    frame.write(A::TTL, ttl - 1);
    // The time to live is the high byte of its word: the word falls by 0x0100.
    change_network_checksum::<A>(frame, !Be16::new(0x0100).bits());
}

/// Changes the network header's checksum, where there is one.
#[inline(always)]
pub fn change_network_checksum<A: Layout>(frame: Frame, delta: u16) {
    if let Some(offset) = A::NETWORK_CHECKSUM {
        frame.write(offset, checksum::apply(frame.read(offset), delta));
    }
}
