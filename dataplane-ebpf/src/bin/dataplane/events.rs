//! What is told of single flows and packets to whoever listens: `weir dataplane monitor`.
//!
//! The listener says until when it listens, and says so again while it does: one that was killed is not told for long. While
//! nobody listens an event costs one load of that time, where flows begin and packets end; packets of established flows
//! come by none of these places. What has no room in the ring buffer is counted, and no packet waits for it.

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, maps::ring_buf::RingBufEntry};
use weir_dataplane_ebpf::{
    Address, Be16, Be32, DropReason, Event, EventKind, Flow, FlowKey, FrontendKey, Ip6, Protocol,
};

use crate::maps::{Draft, EVENTS_LOST_MAP, EVENTS_MAP, Family, MONITOR_MAP};

/// The flow of this packet, the client's or its answer, was begun by it.
#[inline(always)]
pub fn begun<A: Family>(draft: &Draft<A>) {
    if draft.packet.news.0 != 0 && is_heard() {
        tell_begun(draft);
    }
}

/// A packet ends here.
#[inline(always)]
pub fn dropped<A: Family>(key: &FlowKey<A>, ifindex: u32, reason: DropReason) {
    if is_heard() {
        tell_dropped(key, ifindex, reason as u8);
    }
}

/// A socket call for this service fails here.
#[inline(always)]
pub fn refused<A: Family>(key: &FrontendKey<A>, reason: DropReason) {
    if is_heard() {
        tell_refused(key, reason as u8);
    }
}

#[inline(always)]
fn is_heard() -> bool {
    let Some(until) = MONITOR_MAP.get_ptr(0) else { return false };
    // SAFETY: an array's entry stays mapped and aligned memory, and any time that user space leaves is valid.
    let until = unsafe { until.read_volatile() };
    until != 0 && now_ns() < until
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper takes no argument and is allowed in every program type.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(never)]
fn tell_begun<A: Family>(draft: &Draft<A>) {
    let Draft { key, packet, flow, .. } = draft;
    let Some(room) = Room::reserve(packet.news, 0, key.protocol) else { return };
    if flow.flags & Flow::<A>::FLAG_REPLY == 0 {
        room.source(&key.source, key.source_port);
        if flow.is_rewritten() {
            room.destination(&flow.source, flow.source_port);
        } else {
            room.destination(&key.destination, key.destination_port);
        }
        room.backend(&flow.destination, flow.destination_port);
    } else {
        room.source(&flow.destination, flow.destination_port);
        room.destination(&flow.source, flow.source_port);
        room.backend(&key.source, key.source_port);
    }
    room.submit(flow.service, packet.ifindex);
}

#[inline(never)]
fn tell_dropped<A: Family>(key: &FlowKey<A>, ifindex: u32, reason: u8) {
    let Some(room) = Room::reserve(EventKind::DROPPED, reason, key.protocol) else { return };
    room.source(&key.source, key.source_port);
    room.destination(&key.destination, key.destination_port);
    room.backend(&Ip6::default(), Be16::new(0));
    room.submit(0, ifindex);
}

#[inline(never)]
fn tell_refused<A: Family>(key: &FrontendKey<A>, reason: u8) {
    let Some(room) = Room::reserve(EventKind::REFUSED, reason, key.protocol) else { return };
    room.source(&Ip6::default(), Be16::new(0));
    room.destination(&key.address, key.port);
    room.backend(&Ip6::default(), Be16::new(0));
    room.submit(0, 0);
}

/// Room in the ring buffer, written field by field where it is: an event on the stack is more than deep calls leave.
struct Room(RingBufEntry<Event>, *mut Event);

impl Room {
    #[inline(always)]
    fn reserve(kind: EventKind, reason: u8, protocol: Protocol) -> Option<Self> {
        let Some(mut entry) = EVENTS_MAP.reserve::<Event>(0) else {
            if let Some(lost) = EVENTS_LOST_MAP.get_ptr_mut(0) {
                // SAFETY: as in `counters::count_drop`.
                unsafe { *lost += 1 };
            }
            return None;
        };
        let event = entry.as_mut_ptr();
        // SAFETY: the entry is this program's own, aligned, and of this size, until it is submitted. So it is below.
        unsafe {
            (&raw mut (*event).time_ns).write(now_ns());
            (&raw mut (*event).kind).write(kind);
            (&raw mut (*event).reason).write(reason);
            (&raw mut (*event).protocol).write(protocol);
            (&raw mut (*event).padding).write(0);
            (&raw mut (*event).padding_word).write(0);
            (&raw mut (*event).padding_end).write(0);
        }
        Some(Self(entry, event))
    }

    #[inline(always)]
    fn source<A: Address>(&self, address: &A, port: Be16) {
        // SAFETY: as in `reserve`.
        unsafe {
            write_mapped(&raw mut (*self.1).source, address);
            (&raw mut (*self.1).source_port).write(port);
        }
    }

    #[inline(always)]
    fn destination<A: Address>(&self, address: &A, port: Be16) {
        // SAFETY: as in `reserve`.
        unsafe {
            write_mapped(&raw mut (*self.1).destination, address);
            (&raw mut (*self.1).destination_port).write(port);
        }
    }

    #[inline(always)]
    fn backend<A: Address>(&self, address: &A, port: Be16) {
        // SAFETY: as in `reserve`.
        unsafe {
            write_mapped(&raw mut (*self.1).backend, address);
            (&raw mut (*self.1).backend_port).write(port);
        }
    }

    #[inline(always)]
    fn submit(self, service: u32, ifindex: u32) {
        // SAFETY: as in `reserve`.
        unsafe {
            (&raw mut (*self.1).service).write(service);
            (&raw mut (*self.1).ifindex).write(ifindex);
        }
        self.0.submit(0);
    }
}

/// Writes an address of either family, word by word.
///
/// # Safety
/// `to` must be writable.
#[inline(always)]
unsafe fn write_mapped<A: Address>(to: *mut Ip6, address: &A) {
    let to = to.cast::<Be32>();
    let write = |index: usize, word: Be32| {
        // SAFETY: an address has four words, and the caller may write them.
        unsafe { to.add(index).write(word) }
    };
    match *address.words().as_ref() {
        [a, b, c, d] => {
            write(0, a);
            write(1, b);
            write(2, c);
            write(3, d);
        }
        [v4] => {
            write(0, Be32::new(0));
            write(1, Be32::new(0));
            write(2, Be32::new(0xffff));
            write(3, v4);
        }
        _ => {}
    }
}
