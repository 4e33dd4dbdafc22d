//! The way out of this node: which interface, and which link addresses, as the kernel's routes and neighbours say.
//!
//! Asked for an answer's half and at the upkeep of both, and kept in the entry: the packets in between cost no lookup. New
//! flows to one backend share what the first was told, for as long as an entry would keep it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as Parameters,
    },
    helpers::bpf_fib_lookup,
};
use weir_dataplane_ebpf::{Flow, Ip4, Ip6, Mac, hash, maps::NEXT_HOPS};

use crate::{flow::UPKEEP_JIFFIES, kernel::now_jiffies, maps::Family};

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

/// What routes and neighbours said of one destination.
#[repr(C)]
pub struct NextHop<A> {
    destination: A,
    /// Where the packet that asked had come in.
    ingress: u32,
    found_jiffies: u32,
    ifindex: u32,
    destination_mac: Mac,
    source_mac: Mac,
    mtu: u16,
}

/// As [`find_next_hop`], for a new flow's own direction, whose source will be this node: what another flow was told is
/// taken while it is not older than an entry's may be. A lookup of this CPU's array, where a question is some 150 ns.
#[inline(always)]
pub fn know_next_hop<A: Routed>(context: *mut c_void, flow: &mut Flow<A>, ingress: u32) -> bool {
    let place = hash::address(&flow.destination) % NEXT_HOPS;
    let Some(known) = A::next_hops().get_ptr_mut(place) else { return find_next_hop(context, flow, ingress) };
    // SAFETY: this CPU's own, and packet programs do not interrupt each other.
    let known = unsafe { &mut *known };
    let now = now_jiffies();
    if known.destination == flow.destination
        && known.ingress == ingress
        && now.wrapping_sub(known.found_jiffies) < UPKEEP_JIFFIES
    {
        (flow.ifindex, flow.mtu) = (known.ifindex, known.mtu);
        (flow.destination_mac, flow.source_mac) = (known.destination_mac, known.source_mac);
        flow.flags |= Flow::<A>::FLAG_NEXT_HOP;
        return true;
    }
    if !find_next_hop(context, flow, ingress) {
        return false;
    }
    *known = NextHop {
        destination: flow.destination,
        ingress,
        found_jiffies: now,
        ifindex: flow.ifindex,
        destination_mac: flow.destination_mac,
        source_mac: flow.source_mac,
        mtu: flow.mtu,
    };
    true
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
