//! The dataplane's programs: one object, so that they share their maps.
//!
//! | program | attached to | sees | does |
//! |---|---|---|---|
//! | `xdp_uplink` | XDP, uplink | every frame from outside | NodePorts and other external frontends; what is for other nodes, or comes back from them, leaves from here |
//! | `tc_uplink` | tcx ingress, uplink | what XDP passed | the same, and what XDP leaves to it; hands packets to local pods; fragments and options; translates ICMP errors; rejects |
//! | `tc_pod` | tcx ingress, host end of a pod link | every packet from a pod | service addresses, answers of local backends, pod to pod; masquerades what leaves the cluster; fragments and options; translates ICMP errors; rejects |
//! | `tc_egress` | tcx egress, uplink and host end of a pod link | what the node's own processes send | answers of backends in the node's own network, and ICMP errors of the node about them |
//! | `connect4/6`, `sendmsg4/6`, `recvmsg4/6`, `getpeername4/6` | cgroup root | socket calls | the choice once per connection, nothing per packet |
//! | `bind4/6` | cgroup root | socket calls | keeps processes of the node off ports that are services' |
//!
//! An entry point reads the headers, asks [`service`] for a verdict, and carries it out. A packet goes through
//! [`parse`] → [`filter`] (can it be a service's at all?) → [`flow`] (a known connection: one lookup) or [`start`] (a new one: frontend, Maglev, backend, two
//! entries) → [`rewrite`], [`direct_option`] or [`tunnel`] → the way out. A pod's packet that is no service's and leaves the
//! cluster takes the same way through [`egress`] in place of [`start`]. An ICMP error about a packet that was rewritten goes the way of its flow
//! through [`icmp`], and a packet for a service without endpoints, or for a port that a cluster IP does not have, becomes the
//! answer that [`reject`] makes of it.
//! Fragments and packets with options take [`slow_path`] in place of [`parse`] and [`rewrite`]. Whoever listens hears of
//! what begins and ends through [`events`]. IPv4 and IPv6 share all of it through [`maps::Family`].

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", allow(clippy::inline_always, reason = "a call is a BPF subprogram"))]

#[cfg(target_arch = "bpf")]
mod affinity;
#[cfg(target_arch = "bpf")]
mod bind;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod direct_option;
#[cfg(target_arch = "bpf")]
mod echo;
#[cfg(target_arch = "bpf")]
mod egress;
#[cfg(target_arch = "bpf")]
mod events;
#[cfg(target_arch = "bpf")]
mod filter;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod log;
#[cfg(target_arch = "bpf")]
mod maglev;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod opening;
#[cfg(target_arch = "bpf")]
mod outline;
#[cfg(target_arch = "bpf")]
mod parse;
#[cfg(target_arch = "bpf")]
mod reject;
#[cfg(target_arch = "bpf")]
mod rewrite;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod service;
#[cfg(target_arch = "bpf")]
mod slow_path;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod source_range;
#[cfg(target_arch = "bpf")]
mod start;
#[cfg(target_arch = "bpf")]
mod tc;
#[cfg(target_arch = "bpf")]
mod tunnel;
#[cfg(target_arch = "bpf")]
mod walk;
#[cfg(target_arch = "bpf")]
mod xdp;

/// Some helpers that the programs call are the kernel's only for programs under a licence that the GPL accepts.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing here panics: every access is bounded where it stands, and the verifier would refuse the program otherwise.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The programs exist for the BPF target only; this keeps the package part of an ordinary workspace build.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
