//! Drivers and empty programs, one of each for every program type. The kernel lets a program array hold programs of one
//! type alone, so that each driver has its own.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_xdp_adjust_head,
    macros::{cgroup_sock_addr, classifier, map, xdp},
    maps::{Array, ProgramArray},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use weir_dataplane_ebpf::bench::{FRAME_LENGTH, Load};

/// The ethertype of IPv6, as it stands in the frame.
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// Offsets in the frame: the source address's last two bytes, and the source port.
const IPV4_FIELDS: (usize, usize) = (14 + 14, 14 + 20);
const IPV6_FIELDS: (usize, usize) = (14 + 22, 14 + 40);

#[map(name = "load")]
static LOAD: Array<Load> = Array::with_max_entries(1, 0);
#[map(name = "target_xdp")]
static TARGET_XDP: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map(name = "target_tc")]
static TARGET_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Restores the frame and gives it the next flow. Its checksums are left as they are: the programs change sums and
/// verify none.
#[inline(always)]
fn prepare(start: usize, end: usize) {
    let Some(load) = LOAD.get_ptr_mut(0) else { return };
    if start + FRAME_LENGTH > end {
        return;
    }
    // SAFETY: an array's entry stays mapped memory, and a test run is its only user.
    let load = unsafe { &mut *load };
    let flow = load.count.wrapping_mul(load.stride) & load.mask;
    load.count = load.count.wrapping_add(1);
    let mut word = 0;
    while word < FRAME_LENGTH / 8 {
        // SAFETY: below the bound that was compared above, which the verifier follows.
        unsafe { ((start + word * 8) as *mut u64).write(load.frame[word]) };
        word += 1;
    }
    // SAFETY: as above, at constant offsets.
    let ethertype = unsafe { ((start + 12) as *const u16).read() };
    if ethertype == ETHERTYPE_IPV6 {
        vary(start, IPV6_FIELDS, flow);
    } else {
        vary(start, IPV4_FIELDS, flow);
    }
}

/// Sixteen bits of the flow's number are added to the port, the others go into the address.
#[inline(always)]
fn vary(start: usize, (address, port): (usize, usize), flow: u32) {
    // SAFETY: the caller compared the bound; both offsets are constants below it.
    unsafe {
        let address = (start + address) as *mut u16;
        address.write(address.read() ^ (flow >> 16) as u16);
        let port = (start + port) as *mut u16;
        port.write(u16::from_be(port.read()).wrapping_add(flow as u16).to_be());
    }
}

/// A result of `XDP_ABORTED` says that `target_xdp` is empty.
#[xdp]
pub fn drive_xdp(context: XdpContext) -> u32 {
    let length = context.data_end() - context.data();
    if length > FRAME_LENGTH {
        // The last run put the frame into another packet.
        // SAFETY: the context is the kernel's. The packet is read through new pointers afterwards.
        unsafe { bpf_xdp_adjust_head(context.ctx, (length - FRAME_LENGTH) as i32) };
    }
    prepare(context.data(), context.data_end());
    // SAFETY: nothing is left to be dropped behind the call.
    unsafe { TARGET_XDP.tail_call(&context, 0) };
    xdp_action::XDP_ABORTED
}

/// A result of `TC_ACT_SHOT` says that `target_tc` is empty.
#[classifier]
pub fn drive_tc(context: TcContext) -> i32 {
    prepare(context.data(), context.data_end());
    // SAFETY: nothing is left to be dropped behind the call.
    unsafe { TARGET_TC.tail_call(&context, 0) };
    TC_ACT_SHOT
}

/// XDP that does nothing.
#[xdp]
pub fn empty_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The least that sends a frame back: its link addresses change places.
#[xdp]
pub fn swap_xdp(context: XdpContext) -> u32 {
    let start = context.data();
    if start + 12 > context.data_end() {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: below the bound that was just compared.
    unsafe {
        let (destination, source) = (start as *mut [u16; 3], (start + 6) as *mut [u16; 3]);
        let (to, from) = (destination.read(), source.read());
        destination.write(from);
        source.write(to);
    }
    xdp_action::XDP_TX
}

/// Where frames end that were sent.
#[xdp]
pub fn drop_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// TC that does nothing.
#[classifier]
pub fn empty_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// A socket hook that does nothing.
#[cgroup_sock_addr(connect4)]
pub fn empty_socket(_: SockAddrContext) -> i32 {
    1
}
