//! The guard of node ports: a process of the node that binds one is told that it is in use.
//!
//! Without it the bind would succeed and the process never hear anything: packets for the port go to the service before
//! any socket is asked. A port on loopback is no node port, and pods have ports of their own.

use aya_ebpf::{helpers::bpf_set_retval, macros::cgroup_sock_addr, programs::SockAddrContext};
use weir_dataplane_ebpf::{Ip4, Ip6, node_port_index};

use crate::{
    kernel::{has_set_retval, node_namespace},
    maps::NODE_PORTS_MAP,
    socket::{ALLOW, Call, DENY, Mapped, V4, V6, View, is_on},
};

/// EADDRINUSE, what a port of another process answers.
const ADDRESS_IN_USE: i32 = -98;

/// An address that may be the host's own.
trait Loopback {
    /// Whether only processes of the host reach it.
    fn is_loopback(&self) -> bool;
}

impl Loopback for Ip4 {
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0.get() >> 24 == 127
    }
}

impl Loopback for Ip6 {
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.0;
        (a.bits() | b.bits() | c.bits()) == 0 && d.get() == 1
    }
}

/// What a bind comes to.
#[inline(always)]
fn guard<V: View>(call: &Call) -> i32
where
    V::Address: Loopback,
{
    let Some(index) = node_port_index(call.protocol(), call.port()) else { return ALLOW };
    // Port 0 asks for any: the kernel's choice is never a node port while its range is apart from theirs.
    if !is_on() || NODE_PORTS_MAP.get(index).is_none_or(|taken| *taken == 0) {
        return ALLOW;
    }
    if V::address(call).is_loopback() || call.namespace() != node_namespace() {
        return ALLOW;
    }
    if has_set_retval() {
        // SAFETY: the helper takes a plain number.
        unsafe { bpf_set_retval(ADDRESS_IN_USE) };
    }
    DENY
}

/// `bind` on an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub fn bind4(context: SockAddrContext) -> i32 {
    guard::<V4>(&Call::new(&context))
}

/// `bind` on an IPv6 socket.
#[cgroup_sock_addr(bind6)]
pub fn bind6(context: SockAddrContext) -> i32 {
    let call = Call::new(&context);
    if call.is_mapped() { guard::<Mapped>(&call) } else { guard::<V6>(&call) }
}
