//! The parts of the path that are global functions to the verifier.
//!
//! It walks each of them once for a program, and not again for every state in which a packet may get there: without them
//! the programs are larger than it accepts. Such a function takes the kernel's context and returns a number; what else it
//! must know stands in this CPU's [`crate::maps::Draft`], and what it has to say does too.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::TcContext,
};
use weir_dataplane_ebpf::{DropReason, Ip4, Ip6};

use crate::{
    counters::Verdict,
    direct_option::Optional,
    egress, events, flow, icmp, log,
    maps::Draft,
    parse::Error,
    reject, slow_path,
    start::{self, Started},
    tunnel,
    walk::Walk,
};

/// See [`tunnel::receive`].
#[inline(always)]
pub fn receive(context: *mut __sk_buff) -> bool {
    receive_from_tunnel(context) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn receive_from_tunnel(context: *mut __sk_buff) -> u32 {
    u32::from(tunnel::receive(&TcContext::new(context)))
}

#[inline(always)]
fn tell_dropped<A: Walk>(reason: u32) -> Option<()> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let Draft { key, packet, .. } = unsafe { &*A::draft()? };
    let reason = DropReason::from_index(reason)?;
    log::dropped(key, packet.ifindex, reason);
    events::dropped(key, packet.ifindex, reason);
    Some(())
}

/// The global functions of an address family, for each kind of context.
pub trait Outlined: Walk + Optional {
    /// See [`start::start`].
    fn start_at_xdp(context: *mut xdp_md) -> Started;
    /// See [`start::start`].
    fn start_at_tc(context: *mut __sk_buff) -> Started;
    /// See [`egress::open`].
    fn leave(context: *mut __sk_buff) -> Started;
    /// See [`flow::tend`].
    fn tend_at_xdp(context: *mut xdp_md);
    /// See [`flow::tend`].
    fn tend_at_tc(context: *mut __sk_buff);
    /// See [`icmp::restore`].
    fn restore(context: *mut __sk_buff) -> bool;
    /// See [`reject::reset`].
    fn reset(context: *mut __sk_buff) -> bool;
    /// See [`reject::complain`].
    fn complain(context: *mut __sk_buff) -> bool;
    /// Tells whoever wants to know that the packet in the draft ends here.
    fn tell_dropped(reason: DropReason);
    /// See [`slow_path::read`].
    fn read_slowly(context: *mut __sk_buff) -> Result<(), Error>;
    /// See [`slow_path::rewrite`].
    fn rewrite_slowly(context: *mut __sk_buff) -> Verdict;
}

macro_rules! outlined {
    ($address:ty: $start_xdp:ident, $start_tc:ident, $leave:ident, $tend_xdp:ident, $tend_tc:ident, $restore:ident, $reset:ident, $complain:ident, $tell:ident, $read:ident, $rewrite:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $start_xdp(context: *mut xdp_md) -> u32 {
            start::start::<$address>(context.cast(), false).to_number()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $start_tc(context: *mut __sk_buff) -> u32 {
            start::start::<$address>(context.cast(), true).to_number()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $leave(context: *mut __sk_buff) -> u32 {
            egress::open::<$address>(context).to_number()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $tend_xdp(context: *mut xdp_md) -> u32 {
            u32::from(flow::tend::<$address>(context.cast()).is_some())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $tend_tc(context: *mut __sk_buff) -> u32 {
            u32::from(flow::tend::<$address>(context.cast()).is_some())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $restore(context: *mut __sk_buff) -> u32 {
            u32::from(icmp::restore::<$address>(context).is_some())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reset(context: *mut __sk_buff) -> u32 {
            u32::from(reject::reset::<$address>(context).is_some())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $complain(context: *mut __sk_buff) -> u32 {
            u32::from(reject::complain::<$address>(context).is_some())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $tell(reason: u32) -> u32 {
            u32::from(tell_dropped::<$address>(reason).is_some())
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $read(context: *mut __sk_buff) -> u32 {
            slow_path::read::<$address>(context).map_or_else(Error::to_number, |()| 0)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $rewrite(context: *mut __sk_buff) -> u64 {
            slow_path::rewrite::<$address>(context).to_number()
        }

        impl Outlined for $address {
            #[inline(always)]
            fn start_at_xdp(context: *mut xdp_md) -> Started {
                Started::from_number($start_xdp(context))
            }

            #[inline(always)]
            fn start_at_tc(context: *mut __sk_buff) -> Started {
                Started::from_number($start_tc(context))
            }

            #[inline(always)]
            fn leave(context: *mut __sk_buff) -> Started {
                Started::from_number($leave(context))
            }

            #[inline(always)]
            fn tend_at_xdp(context: *mut xdp_md) {
                $tend_xdp(context);
            }

            #[inline(always)]
            fn tend_at_tc(context: *mut __sk_buff) {
                $tend_tc(context);
            }

            #[inline(always)]
            fn restore(context: *mut __sk_buff) -> bool {
                $restore(context) != 0
            }

            #[inline(always)]
            fn reset(context: *mut __sk_buff) -> bool {
                $reset(context) != 0
            }

            #[inline(always)]
            fn complain(context: *mut __sk_buff) -> bool {
                $complain(context) != 0
            }

            #[inline(always)]
            fn tell_dropped(reason: DropReason) {
                $tell(reason as u32);
            }

            #[inline(always)]
            fn read_slowly(context: *mut __sk_buff) -> Result<(), Error> {
                Error::from_number($read(context))
            }

            #[inline(always)]
            fn rewrite_slowly(context: *mut __sk_buff) -> Verdict {
                Verdict::from_number($rewrite(context))
            }
        }
    };
}
outlined!(Ip4: start_at_xdp_v4, start_at_tc_v4, leave_v4, tend_at_xdp_v4, tend_at_tc_v4, restore_v4, reset_v4, complain_v4, tell_dropped_v4, read_slowly_v4, rewrite_slowly_v4);
outlined!(Ip6: start_at_xdp_v6, start_at_tc_v6, leave_v6, tend_at_xdp_v6, tend_at_tc_v6, restore_v6, reset_v6, complain_v6, tell_dropped_v6, read_slowly_v6, rewrite_slowly_v6);
