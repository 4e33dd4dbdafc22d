//! Backends: the endpoints that serve.

use crate::{Be16, family_layout};

/// Value of `backends_v4` and `backends_v6`, arrays indexed by a backend id that the agent gives out.
///
/// Id 0 is never given out: it is what an unwritten slot of `maglev` holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backend<A> {
    /// The pod's (or host-network process's) address.
    pub address: A,
    /// Address of the node that runs it; the zero address when it is this node.
    pub node: A,
    /// The pod's port.
    pub port: Be16,
    /// [`Backend::FLAG_ACTIVE`] and its siblings.
    pub flags: u16,
}

impl<A> Backend<A> {
    /// The id is in use. Sockets and flows that hold an id without this flag must choose again.
    pub const FLAG_ACTIVE: u16 = 1 << 0;
    /// The backend runs on this node.
    pub const FLAG_LOCAL: u16 = 1 << 1;
}

family_layout!(Backend = 12, 36);
