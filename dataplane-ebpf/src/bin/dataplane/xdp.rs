//! XDP on uplinks: services for clients outside, before the kernel has made a socket buffer of the packet.
//!
//! A backend on another node gets its packet from here, with this node's address as the source, and its answers come back
//! through here: neither climbs the stack. A backend of this node gets its packet by way of the stack's first steps and
//! `tc_uplink`. Flows whose next hop is not known yet, senders whose checksums are not finished (a veth peer with
//! transmit offload), ICMP errors, fragments, options, and packets that get an answer from here are `tc_uplink`'s.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::{bpf_redirect, bpf_xdp_adjust_head},
    macros::xdp,
    programs::XdpContext,
};
use weir_dataplane_ebpf::{DropReason, Flow, Scope};

use crate::{
    counters::{Verdict, count_drop},
    maps::Complaint,
    outline::Outlined,
    parse::{self, Frame, Headers, Layout, Transport},
    rewrite::Hook,
    service,
    start::Started,
};

/// A frame on an uplink.
pub struct Uplink<'a>(pub &'a XdpContext);

impl Hook for Uplink<'_> {
    const HAS_STACK: bool = false;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.ctx.cast()
    }

    #[inline(always)]
    fn frame(&self) -> Frame {
        Frame::new(self.0.data(), self.0.data_end())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn scope(&self) -> Scope {
        Scope::EXTERNAL
    }

    /// A new flow tells for all its packets: offload is the sending link's property. One finished checksum in 65,536
    /// looks unfinished by chance, and is served by `tc_uplink` just as well.
    #[inline(always)]
    fn unfinished<A: Layout, T: Transport>(&self, headers: &Headers<A>) -> bool {
        if T::CHECKSUM_IS_CRC {
            return false;
        }
        let offset = A::TRANSPORT + T::CHECKSUM;
        let frame = self.frame();
        frame.holds(offset + 2) && frame.read::<u16>(offset) == parse::unfinished_checksum::<A, T>(headers)
    }

    #[inline(always)]
    fn change_transport_checksum<A: Layout, T: Transport>(
        &self,
        frame: Frame,
        flow: &Flow<A>,
    ) -> Result<(), DropReason> {
        let offset = A::TRANSPORT + T::CHECKSUM;
        if let Some(new) = parse::changed_checksum::<T>(frame.read(offset), flow.transport_delta) {
            frame.write(offset, new);
        }
        Ok(())
    }

    #[inline(always)]
    fn start<A: Outlined>(&self) -> Started {
        A::start_at_xdp(self.0.ctx)
    }

    #[inline(always)]
    fn tend<A: Outlined>(&self) {
        A::tend_at_xdp(self.0.ctx);
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn make_room(&self, length: usize, _: u64) -> bool {
        // SAFETY: the context is the kernel's. No bytes of the packet are read past the call but through a new frame.
        unsafe { bpf_xdp_adjust_head(self.0.ctx, -(length as i32)) == 0 }
    }

    #[inline(always)]
    fn send_with_option<A: Outlined>(&self) -> Verdict {
        A::send_with_option_at_xdp(self.0.ctx)
    }

    #[inline(always)]
    fn complain<A: Outlined>(&self, _: Complaint, _: DropReason) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn refuse<A: Outlined, T: Transport>(&self, _: &Headers<A>, _: DropReason) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn serve_icmp<A: Outlined>(&self, _: u32) -> Option<Verdict> {
        Some(Verdict::Pass)
    }

    #[inline(always)]
    fn serve_slowly<A: Outlined>(&self) -> Verdict {
        Verdict::Pass
    }
}

/// See the module. Inline, as the other entry points: the macro's own function would be one more frame on a stack of 512
/// bytes, where kernels such as 5.10 and 6.1 round each up to 32 bytes.
#[xdp]
#[inline(always)]
pub fn xdp_uplink(context: XdpContext) -> u32 {
    let uplink = Uplink(&context);
    match try_uplink(&uplink) {
        Verdict::Drop(reason) => {
            count_drop(reason);
            XDP_DROP
        }
        Verdict::Out(ifindex) if ifindex == uplink.ifindex() => XDP_TX,
        // SAFETY: the helper takes plain numbers.
        Verdict::Out(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        Verdict::Pass | Verdict::Answer(_) | Verdict::ToPod(_) | Verdict::ToNeighbour(_) => XDP_PASS,
    }
}

#[inline(always)]
fn try_uplink(uplink: &Uplink<'_>) -> Verdict {
    let length = (uplink.0.data_end() - uplink.0.data()) as u32;
    service::serve(uplink, length)
}
