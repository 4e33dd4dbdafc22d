//! What programs say about single packets and socket calls, for the agent's own log (aya-log).
//!
//! The level is a constant to the verifier, like everything in [`crate::kernel`]: in a program that is loaded without
//! the log these calls are dead code and cost nothing. With it, each line costs a reservation in a ring buffer; when
//! nobody empties that, lines are lost and packets are not.

use core::net::{Ipv4Addr, Ipv6Addr};

use aya_log_ebpf::{
    info,
    macro_support::{Level, level_enabled},
};
use weir_dataplane_ebpf::{DropReason, FlowKey, FrontendKey, Ip4, Ip6};

use crate::maps::Family;

/// An address family whose tuples can be written into the log. The lines are subprograms, which keeps their buffers off
/// the stacks of the programs.
pub trait Loggable: Family {
    /// A packet ended here.
    fn log_dropped(key: &FlowKey<Self>, ifindex: u32, reason: DropReason);
    /// A socket call failed here.
    fn log_refused(key: &FrontendKey<Self>, reason: DropReason);
}

/// Says that a packet ended here.
#[inline(always)]
pub fn dropped<A: Loggable>(key: &FlowKey<A>, ifindex: u32, reason: DropReason) {
    if level_enabled(Level::Info) {
        A::log_dropped(key, ifindex, reason);
    }
}

/// Says that a socket call for this service failed here.
#[inline(always)]
pub fn refused<A: Loggable>(key: &FrontendKey<A>, reason: DropReason) {
    if level_enabled(Level::Info) {
        A::log_refused(key, reason);
    }
}

macro_rules! loggable {
    ($($family:ty: $address:ty),+) => {
        $(impl Loggable for $family {
            #[inline(never)]
            fn log_dropped(key: &FlowKey<Self>, ifindex: u32, reason: DropReason) {
                info!(
                    (),
                    "dropped: {}, protocol {}, {}:{} to {}:{}, interface {}",
                    reason.name(),
                    key.protocol.0,
                    <$address>::from(key.source),
                    key.source_port.get(),
                    <$address>::from(key.destination),
                    key.destination_port.get(),
                    ifindex
                );
            }

            #[inline(never)]
            fn log_refused(key: &FrontendKey<Self>, reason: DropReason) {
                info!(
                    (),
                    "refused: {}, protocol {}, to {}:{}",
                    reason.name(),
                    key.protocol.0,
                    <$address>::from(key.address),
                    key.port.get()
                );
            }
        })+
    };
}
loggable!(Ip4: Ipv4Addr, Ip6: Ipv6Addr);
