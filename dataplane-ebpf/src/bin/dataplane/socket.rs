//! Socket hooks: a process of this node, or of one of its pods, asks for a service and its socket talks to the backend.
//! The packets carry the backend's address from the first one on, so that none of them costs anything.
//!
//! `connect` and `sendmsg` choose and remember what was asked for; `recvmsg` and `getpeername` tell it back. An IPv4
//! address in an IPv6 socket (`::ffff:a.b.c.d`) is an IPv4 service: it is looked up, and remembered, as such.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use weir_dataplane_ebpf::{
    AffinityKey, Backend, Be16, Be32, DropReason, Frontend, FrontendKey, Ip4, Ip6, Namespace, NodeConfig,
    Protocol, Scope, SocketPeer, SocketPeerKey, hash,
};

use crate::{
    affinity,
    counters::count_drop,
    events,
    kernel::{has_set_retval, node_namespace},
    log::{self, Loggable},
    maglev,
    maps::{Family, NODE_CONFIG},
};

/// The call goes on.
pub const ALLOW: i32 = 1;
/// The call fails, with EPERM unless [`bpf_set_retval`] says otherwise.
pub const DENY: i32 = 0;
/// ECONNREFUSED, what a closed port answers.
const CONNECTION_REFUSED: i32 = -111;

/// The address in a socket call, as a family sees it. The kernel admits only whole words, each on its own.
pub struct Call {
    context: *mut bpf_sock_addr,
}

/// Where in a socket call an address of this family stands.
pub trait View {
    /// The family whose services it asks for.
    type Address: Loggable;
    /// Reads it.
    fn address(call: &Call) -> Self::Address;
    /// Replaces it.
    fn set_address(call: &Call, address: Self::Address);
}

/// An IPv4 socket.
pub struct V4;
/// An IPv6 socket.
pub struct V6;
/// An IPv6 socket with an IPv4 address in it.
pub struct Mapped;

impl Call {
    pub const fn new(context: &SockAddrContext) -> Self {
        Self { context: context.sock_addr }
    }

    #[inline(always)]
    fn ip6_word(&self, index: usize) -> Be32 {
        // SAFETY: the context is the kernel's and `index` is below four.
        Be32::from_bits(unsafe { (&raw const (*self.context).user_ip6[index]).read_volatile() })
    }

    #[inline(always)]
    fn set_ip6_word(&self, index: usize, word: Be32) {
        // SAFETY: as in `ip6_word`; these hooks may write the address.
        unsafe { (&raw mut (*self.context).user_ip6[index]).write_volatile(word.bits()) }
    }

    #[inline(always)]
    pub fn port(&self) -> Be16 {
        // SAFETY: the context is the kernel's.
        Be16::from_bits(unsafe { (&raw const (*self.context).user_port).read_volatile() } as u16)
    }

    #[inline(always)]
    fn set_port(&self, port: Be16) {
        // SAFETY: the context is the kernel's; these hooks may write the port.
        unsafe { (&raw mut (*self.context).user_port).write_volatile(u32::from(port.bits())) }
    }

    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        // SAFETY: the context is the kernel's.
        Protocol(unsafe { (&raw const (*self.context).protocol).read_volatile() } as u8)
    }

    /// Whether the IPv6 address is an IPv4 one in disguise (RFC 4291, 2.5.5.2).
    #[inline(always)]
    pub fn is_mapped(&self) -> bool {
        self.ip6_word(0).bits() == 0 && self.ip6_word(1).bits() == 0 && self.ip6_word(2) == Be32::new(0xffff)
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context of this program type.
        unsafe { bpf_get_socket_cookie(self.context.cast()) }
    }

    /// The network namespace of the socket, by its cookie.
    #[inline(always)]
    pub fn namespace(&self) -> u64 {
        // SAFETY: the helper takes the context of this program type.
        unsafe { bpf_get_netns_cookie(self.context.cast()) }
    }

    #[inline(always)]
    fn peer_key<V: View>(&self) -> SocketPeerKey<V::Address> {
        let cookie = self.cookie();
        SocketPeerKey {
            cookie: [cookie as u32, (cookie >> 32) as u32],
            address: V::address(self),
            port: self.port(),
            protocol: self.protocol(),
            padding: 0,
        }
    }
}

impl View for V4 {
    type Address = Ip4;

    #[inline(always)]
    fn address(call: &Call) -> Ip4 {
        // SAFETY: the context is the kernel's.
        Ip4(Be32::from_bits(unsafe { (&raw const (*call.context).user_ip4).read_volatile() }))
    }

    #[inline(always)]
    fn set_address(call: &Call, address: Ip4) {
        // SAFETY: the context is the kernel's; these hooks may write the address.
        unsafe { (&raw mut (*call.context).user_ip4).write_volatile(address.0.bits()) }
    }
}

impl View for V6 {
    type Address = Ip6;

    #[inline(always)]
    fn address(call: &Call) -> Ip6 {
        Ip6([call.ip6_word(0), call.ip6_word(1), call.ip6_word(2), call.ip6_word(3)])
    }

    #[inline(always)]
    fn set_address(call: &Call, address: Ip6) {
        call.set_ip6_word(0, address.0[0]);
        call.set_ip6_word(1, address.0[1]);
        call.set_ip6_word(2, address.0[2]);
        call.set_ip6_word(3, address.0[3]);
    }
}

impl View for Mapped {
    type Address = Ip4;

    #[inline(always)]
    fn address(call: &Call) -> Ip4 {
        Ip4(call.ip6_word(3))
    }

    #[inline(always)]
    fn set_address(call: &Call, address: Ip4) {
        call.set_ip6_word(3, address.0);
    }
}

/// Whether the node wants socket calls translated.
#[inline(always)]
pub fn is_on() -> bool {
    NODE_CONFIG.get(0).is_some_and(|config| config.flags & NodeConfig::FLAG_SOCKET_LB != 0)
}

/// Whether the packets decide about this call, and not the hook: a pod's carry the address that source ranges are about,
/// while its socket has none yet.
#[inline(always)]
fn is_for_packets(call: &Call, frontend: &Frontend) -> bool {
    frontend.flags & Frontend::FLAG_SOURCE_RANGES != 0 && call.namespace() != node_namespace()
}

/// The backend for the call: a new connection takes any, datagrams of one socket stay together, and under session affinity
/// so does everything from one network namespace.
#[inline(always)]
fn choose<A: Family>(call: &Call, frontend: &Frontend) -> Result<&'static Backend<A>, DropReason> {
    let of_ranges = Frontend::FLAG_SOURCE_RANGES | Frontend::FLAG_NODE_IN_RANGE;
    if frontend.flags & of_ranges == Frontend::FLAG_SOURCE_RANGES {
        return Err(DropReason::SourceRange);
    }
    if frontend.affinity_timeout_s != 0 {
        let namespace = call.namespace();
        let key = AffinityKey { client: Namespace::new(namespace), service: frontend.service };
        let slot = hash::slot(frontend, hash::number(namespace, frontend.service));
        let (id, backend) = affinity::choose(A::socket_affinity(), &key, frontend, slot)?;
        affinity::record(A::socket_affinity(), &key, id);
        return Ok(backend);
    }
    let number = if call.protocol() == Protocol::TCP {
        // SAFETY: the helper takes no argument.
        unsafe { bpf_get_prandom_u32() }
    } else {
        hash::number(call.cookie(), frontend.service)
    };
    maglev::backend(frontend, hash::slot(frontend, number)).map(|(_, backend)| backend)
}

/// `connect` and `sendmsg`: a service's address becomes a backend's. A subprogram, because its result must be a constant
/// to the verifier, and would not be after a caller had kept it on the stack.
#[inline(never)]
fn ask<V: View>(context: *mut bpf_sock_addr) -> i32 {
    let call = &Call { context };
    let key = FrontendKey {
        address: V::address(call),
        port: call.port(),
        protocol: call.protocol(),
        scope: Scope::INTERNAL,
    };
    // SAFETY: the agent replaces a frontend whole, and the old value stays readable for this program's run.
    let Some(frontend) = (unsafe { V::Address::frontends().get(key) }) else { return ALLOW };
    if !is_on() || is_for_packets(call, frontend) {
        return ALLOW;
    }
    match choose::<V::Address>(call, frontend) {
        Ok(backend) => {
            V::set_address(call, backend.address);
            call.set_port(backend.port);
            let peer =
                SocketPeer { address: key.address, port: key.port, padding: 0, service: frontend.service };
            // Without room the process sees the backend as its peer; the connection is none the worse.
            let _ = V::Address::socket_peers().insert(call.peer_key::<V>(), peer, u64::from(BPF_ANY));
            ALLOW
        }
        Err(reason) => {
            count_drop(reason);
            log::refused(&key, reason);
            events::refused(&key, reason);
            // A client that may not ask gets EPERM, as from a firewall of its own.
            if reason != DropReason::SourceRange && has_set_retval() {
                // SAFETY: the helper takes a plain number.
                unsafe { bpf_set_retval(CONNECTION_REFUSED) };
            }
            DENY
        }
    }
}

/// `recvmsg` and `getpeername`: a backend's address becomes the one that the process asked for. These may not refuse.
#[inline(always)]
fn tell<V: View>(call: &Call) -> i32 {
    // SAFETY: an entry that is being replaced holds one service address or the other.
    if let Some(peer) = unsafe { V::Address::socket_peers().get(call.peer_key::<V>()) } {
        V::set_address(call, peer.address);
        call.set_port(peer.port);
    }
    ALLOW
}

#[inline(always)]
fn ask_v6(call: &Call) -> i32 {
    if call.is_mapped() { ask::<Mapped>(call.context) } else { ask::<V6>(call.context) }
}

#[inline(always)]
fn tell_v6(call: &Call) -> i32 {
    if call.is_mapped() { tell::<Mapped>(call) } else { tell::<V6>(call) }
}

/// `connect` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    ask::<V4>(context.sock_addr)
}

/// `sendto` and `sendmsg` on an unconnected IPv4 UDP socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    ask::<V4>(context.sock_addr)
}

/// `recvfrom` and `recvmsg` on an IPv4 UDP socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    tell::<V4>(&Call::new(&context))
}

/// `getpeername` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    tell::<V4>(&Call::new(&context))
}

/// `connect` on an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    ask_v6(&Call::new(&context))
}

/// `sendto` and `sendmsg` on an unconnected IPv6 UDP socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    ask_v6(&Call::new(&context))
}

/// `recvfrom` and `recvmsg` on an IPv6 UDP socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    tell_v6(&Call::new(&context))
}

/// `getpeername` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    tell_v6(&Call::new(&context))
}
