//! TC on uplinks and pod links: everything that XDP leaves, everything that pods send, and what backends in the node's own
//! network answer.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use weir_dataplane_ebpf::{Be32, DropReason, Flow, Protocol, Scope, checksum};

use crate::{
    counters::{Verdict, count_drop},
    flow, icmp,
    maps::Complaint,
    outline::{self, Outlined},
    parse::{Frame, Headers, Layout, Transport},
    rewrite::Hook,
    service, slow_path,
    start::Started,
    tunnel,
};

/// Bytes that the longest headers we read take: Ethernet, IPv6, TCP.
const HEADERS_LENGTH: usize = 14 + 40 + 20;
/// `pkt_type` of a packet that is for this machine.
const PACKET_HOST: u32 = 0;

/// A socket buffer: on its way in, to be forwarded, or on its way out already.
pub struct Skb<'a, const FORWARDS: bool> {
    context: &'a TcContext,
    scope: Scope,
    tunnelled: bool,
}

impl<'a> Skb<'a, true> {
    /// A packet from outside.
    #[inline(always)]
    pub const fn from_outside(context: &'a TcContext) -> Self {
        Self { context, scope: Scope::EXTERNAL, tunnelled: false }
    }
}

impl<const FORWARDS: bool> Skb<'_, FORWARDS> {
    /// The kernel's context: what subprograms take, whose registers hold no more than a pointer.
    #[inline(always)]
    pub fn skb(&self) -> *mut __sk_buff {
        self.context.skb.skb
    }
}

/// The bytes of a socket buffer that are at hand: the first `length`, unless the packet is shorter.
#[inline(always)]
pub fn frame(context: &TcContext, length: usize) -> Frame {
    let frame = Frame::new(context.data(), context.data_end());
    if frame.holds(length) {
        return frame;
    }
    // The headers may lie in a fragment of the buffer. A packet that is shorter than that is whole afterwards.
    let all = context.len();
    let length = length as u32;
    let _ = context.pull_data(if all < length { all } else { length });
    Frame::new(context.data(), context.data_end())
}

/// Changes the Internet checksum at this offset as the flow says.
///
/// The helper knows what the program cannot see: whether the sum is complete, left to the card, or kept beside the
/// packet. Each wants the pseudo header's change told apart from the rest.
#[inline(always)]
pub fn change_checksum<A>(
    context: &TcContext,
    offset: usize,
    flow: &Flow<A>,
    optional: bool,
) -> Result<(), DropReason> {
    let optional = if optional { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    let addresses = flow.network_delta;
    let ports = checksum::without(flow.transport_delta, addresses);
    let change = |delta: u16, flags: u64| {
        context
            .l4_csum_replace(offset, 0, u64::from(delta), flags | optional)
            .map_err(|_| DropReason::RewriteFailed)
    };
    change(addresses, u64::from(BPF_F_PSEUDO_HDR))?;
    if ports == 0 || ports == u16::MAX { Ok(()) } else { change(ports, 0) }
}

impl<const FORWARDS: bool> Hook for Skb<'_, FORWARDS> {
    const HAS_STACK: bool = true;
    const FORWARDS: bool = FORWARDS;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context.skb.skb.cast()
    }

    #[inline(always)]
    fn frame(&self) -> Frame {
        Frame::new(self.context.data(), self.context.data_end())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the kernel's, for as long as the program runs.
        unsafe { (*self.context.skb.skb).ifindex }
    }

    #[inline(always)]
    fn scope(&self) -> Scope {
        self.scope
    }

    #[inline(always)]
    fn unfinished<A: Layout, T: Transport>(&self, _: &Headers<A>) -> bool {
        false
    }

    #[inline(always)]
    fn change_transport_checksum<A: Layout, T: Transport>(
        &self,
        _: Frame,
        flow: &Flow<A>,
    ) -> Result<(), DropReason> {
        change_checksum(self.context, A::TRANSPORT + T::CHECKSUM, flow, T::CHECKSUM_OPTIONAL)
    }

    #[inline(always)]
    fn start<A: Outlined>(&self) -> Started {
        match A::start_at_tc(self.skb()) {
            Started::Nobody if FORWARDS && self.scope.0 == Scope::INTERNAL.0 => A::leave(self.skb()),
            started => started,
        }
    }

    #[inline(always)]
    fn tend<A: Outlined>(&self) {
        A::tend_at_tc(self.skb());
    }

    #[inline(always)]
    fn tunnelled(&self) -> bool {
        self.tunnelled
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).gso_size }
    }

    #[inline(always)]
    fn make_room(&self, length: usize, flags: u64) -> bool {
        self.context.adjust_room(length as i32, tunnel::AFTER_LINK_HEADER, flags).is_ok()
    }

    #[inline(always)]
    fn send_with_option<A: Outlined>(&self) -> Verdict {
        A::send_with_option_at_tc(self.skb())
    }

    #[inline(always)]
    fn complain<A: Outlined>(&self, complaint: Complaint, reason: DropReason) -> Verdict {
        let Some(draft) = A::draft() else { return Verdict::Drop(reason) };
        // SAFETY: the draft is this CPU's own, see `Draft`.
        unsafe { (*draft).complaint = complaint };
        if A::complain(self.skb()) { Verdict::Answer(reason) } else { Verdict::Drop(reason) }
    }

    #[inline(always)]
    fn refuse<A: Outlined, T: Transport>(&self, headers: &Headers<A>, reason: DropReason) -> Verdict {
        flow::present(self, headers);
        if T::PROTOCOL != Protocol::TCP {
            return self.complain::<A>(Complaint { kind: A::PORT_UNREACHABLE, word: Be32::new(0) }, reason);
        }
        if A::reset(self.skb()) { Verdict::Answer(reason) } else { Verdict::Drop(reason) }
    }

    #[inline(always)]
    fn serve_icmp<A: Outlined>(&self, length: u32) -> Option<Verdict> {
        icmp::serve::<A, FORWARDS>(self, length)
    }

    #[inline(always)]
    fn serve_slowly<A: Outlined>(&self) -> Verdict {
        slow_path::serve::<A, FORWARDS>(self)
    }
}

/// Packets from outside.
#[classifier]
#[inline(always)]
pub fn tc_uplink(context: TcContext) -> i32 {
    carry_out(&context, try_skb(&Skb::from_outside(&context)))
}

/// Packets from a pod.
#[classifier]
#[inline(always)]
pub fn tc_pod(context: TcContext) -> i32 {
    carry_out(&context, try_skb(&Skb::<true> { context: &context, scope: Scope::INTERNAL, tunnelled: false }))
}

/// Packets on their way out, by an uplink or into a pod: a backend in the node's own network is a process, whose answers
/// come by no other hook. What was forwarded has been through one, and is known by the interface that it came in by.
#[classifier]
#[inline(always)]
pub fn tc_egress(context: TcContext) -> i32 {
    // SAFETY: the context is the kernel's, for as long as the program runs.
    if unsafe { (*context.skb.skb).ingress_ifindex } != 0 {
        return TC_ACT_UNSPEC;
    }
    carry_out(&context, try_skb(&Skb::<false> { context: &context, scope: Scope::NONE, tunnelled: false }))
}

#[inline(always)]
fn try_skb<const FORWARDS: bool>(skb: &Skb<'_, FORWARDS>) -> Verdict {
    // SAFETY: as in `ifindex`.
    let (kind, tagged) = unsafe { ((*skb.context.skb.skb).pkt_type, (*skb.context.skb.skb).vlan_present) };
    if kind != PACKET_HOST || tagged != 0 {
        return Verdict::Pass;
    }
    let tunnelled = skb.scope.0 == Scope::EXTERNAL.0 && outline::receive(skb.skb());
    let length = skb.context.len();
    let _ = frame(skb.context, HEADERS_LENGTH);
    service::serve(&Skb::<FORWARDS> { tunnelled, ..*skb }, length)
}

/// `TC_ACT_UNSPEC` leaves the packet to whatever else is attached; the host's own programs keep their say.
#[inline(always)]
fn carry_out(context: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(reason) => {
            count_drop(reason);
            TC_ACT_SHOT
        }
        Verdict::Answer(reason) => {
            count_drop(reason);
            // SAFETY: the helper takes plain numbers, and the context is the kernel's.
            unsafe { bpf_redirect((*context.skb.skb).ifindex, 0) as i32 }
        }
        // SAFETY: the helper takes plain numbers.
        Verdict::ToPod(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        // SAFETY: the helper takes plain numbers.
        Verdict::Out(ifindex) => unsafe { bpf_redirect(ifindex, 0) as i32 },
        // SAFETY: without a neighbour argument its length is zero.
        Verdict::ToNeighbour(ifindex) => unsafe {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
        },
    }
}
