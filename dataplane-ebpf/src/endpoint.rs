//! Endpoints: the pod links of this node.

use crate::{Mac, layout};

/// Value of `endpoints_v4` and `endpoints_v6`, keyed by the pod's address: how to hand a packet to a pod of this
/// node without the host's stack. Written when the pod's link is made, removed with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The host's end of the pod's veth pair.
    pub ifindex: u32,
    /// The pod's own link address.
    pub pod_mac: Mac,
    /// Link address of the host's end.
    pub host_mac: Mac,
}

layout!(Endpoint = 16);
