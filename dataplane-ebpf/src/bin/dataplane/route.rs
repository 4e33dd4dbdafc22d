//! The way out of this node: which interface, and which link addresses, as the kernel's routes and neighbours say.
//!
//! Asked once for each half of a flow and again at its upkeep, and kept in the entry: the packets in between cost no
//! lookup.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as Parameters,
    },
    helpers::bpf_fib_lookup,
};
use weir_dataplane_ebpf::{Flow, Ip4, Ip6, Mac};

use crate::maps::Family;

/// Address families by their numbers in the kernel (`linux/socket.h`).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// What the helper answers.
const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
/// The packet is too long for the way, of which all is said nonetheless.
const TOO_LONG: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;

/// An address family that has routes.
pub trait Routed: Family {
    /// Writes family and addresses into the helper's parameters.
    fn ask(parameters: &mut Parameters, source: Self, destination: Self);
}

impl Routed for Ip4 {
    #[inline(always)]
    fn ask(parameters: &mut Parameters, source: Self, destination: Self) {
        parameters.family = AF_INET;
        parameters.__bindgen_anon_3.ipv4_src = source.0.bits();
        parameters.__bindgen_anon_4.ipv4_dst = destination.0.bits();
    }
}

impl Routed for Ip6 {
    #[inline(always)]
    fn ask(parameters: &mut Parameters, source: Self, destination: Self) {
        parameters.family = AF_INET6;
        parameters.__bindgen_anon_3.ipv6_src = source.0.map(|word| word.bits());
        parameters.__bindgen_anon_4.ipv6_dst = destination.0.map(|word| word.bits());
    }
}

/// Sets the flow's next hop, as for a packet that came in by `ingress` and is to be forwarded. An answer leaves where its
/// question came from or as its neighbour says, never by a third way, and what leaves the cluster where its source address
/// is: their interfaces stay.
///
/// `false`: there is no such route, or the neighbour's link address is not known yet. The flow then has no next hop, but
/// the route's interface if there is one, and a program that can make the stack ask for the neighbour must send the packet.
#[inline(always)]
pub fn find_next_hop<A: Routed>(context: *mut c_void, flow: &mut Flow<A>, ingress: u32) -> bool {
    // SAFETY: plain numbers and unions of them, for which zero is a value.
    let mut parameters: Parameters = unsafe { core::mem::zeroed() };
    A::ask(&mut parameters, flow.source, flow.destination);
    parameters.ifindex = ingress;
    // SAFETY: the context is the running program's, and the parameters are a live value of the size that is given.
    let found = unsafe { bpf_fib_lookup(context, &raw mut parameters, size_of::<Parameters>() as i32, 0) };
    let stays = flow.flags & (Flow::<A>::FLAG_REPLY | Flow::<A>::FLAG_EGRESS) != 0;
    let has_next_hop = found == SUCCESS || found == TOO_LONG;
    if (has_next_hop || found == NO_NEIGHBOUR) && !stays {
        flow.ifindex = parameters.ifindex;
    }
    if !has_next_hop || flow.ifindex != parameters.ifindex {
        flow.flags &= !Flow::<A>::FLAG_NEXT_HOP;
        return false;
    }
    // SAFETY: the kernel has answered, so that the union holds its answer.
    flow.mtu = unsafe { parameters.__bindgen_anon_1.mtu_result };
    flow.destination_mac = Mac(parameters.dmac);
    flow.source_mac = Mac(parameters.smac);
    flow.flags |= Flow::<A>::FLAG_NEXT_HOP;
    true
}
