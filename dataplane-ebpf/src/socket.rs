//! What the socket hooks remember, so that a process sees the service that it asked for.

use crate::{Be16, Protocol, family_layout};

/// Key of `socket_peers_v4` and `socket_peers_v6`: a socket and the backend that it really talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketPeerKey<A> {
    /// The socket's cookie, unique while the machine runs: low word, high word. Two words, since a `u64` would
    /// bring hidden padding into the IPv6 key.
    pub cookie: [u32; 2],
    /// The backend's address.
    pub address: A,
    /// The backend's port.
    pub port: Be16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Zero.
    pub padding: u8,
}

/// Value of `socket_peers_v4` and `socket_peers_v6`: the frontend that the process named.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketPeer<A> {
    /// The frontend's address.
    pub address: A,
    /// The frontend's port.
    pub port: Be16,
    /// Zero.
    pub padding: u16,
    /// [`crate::Frontend::service`].
    pub service: u32,
}

family_layout!(SocketPeerKey = 16, 28; SocketPeer = 12, 24);
