//! The smallest changes of the maps, each one write, in the order that keeps every moment whole.

use std::net::{IpAddr, SocketAddr};

use weir_dataplane_ebpf::{Frontend, filter};

use super::model::{FrontendAddress, NodePort};
use crate::cidr::Cidr;

/// One change. The order of the variants is the order in which they are carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give an id its backend. Nothing points to it yet, or it says the same as before but for its flags.
    WriteBackend {
        /// Index into `backends_v4` or `_v6`, by the address's family.
        id: u32,
        /// The backend.
        address: SocketAddr,
        /// It runs on this node.
        local: bool,
        /// The address of the other node that it runs on, if that is known.
        node: Option<IpAddr>,
    },
    /// Fill a region of `maglev` that nothing points to.
    WriteRegion {
        /// First slot.
        offset: u32,
        /// Backend ids.
        slots: Vec<u32>,
    },
    /// Let clients of this range use the load balancer's addresses of a service port.
    WriteSourceRange {
        /// [`Frontend::service`].
        service: u32,
        /// Their addresses.
        range: Cidr,
    },
    /// Keep processes of the node off a port.
    WriteNodePort {
        /// It.
        port: NodePort,
    },
    /// Point clients to a region, in one atomic write.
    WriteFrontend {
        /// The frontend.
        address: FrontendAddress,
        /// Its whole new value.
        value: Frontend,
    },
    /// Refuse packets from inside for ports that the address does not have. Those that it has are served by then.
    WriteClusterIp {
        /// It.
        address: IpAddr,
    },
    /// No service has the address any more.
    RemoveClusterIp {
        /// It.
        address: IpAddr,
    },
    /// Nothing is served there any more.
    RemoveFrontend {
        /// The frontend.
        address: FrontendAddress,
    },
    /// No frontend has this port any more; processes may.
    RemoveNodePort {
        /// It.
        port: NodePort,
    },
    /// No frontend asks for this range any more, or its clients may not use it any more.
    RemoveSourceRange {
        /// [`Frontend::service`].
        service: u32,
        /// Their addresses.
        range: Cidr,
    },
    /// No region in use holds this id any more: sockets and flows that still do must choose again.
    RetireBackend {
        /// Index into the family's map.
        id: u32,
        /// The backend that it was.
        address: SocketAddr,
    },
}

impl Step {
    /// The address and port that packets may come from or go to once the step is carried out, and that the filter must let
    /// through before.
    pub fn serves(&self) -> Option<SocketAddr> {
        match self {
            Self::WriteBackend { address, .. } => Some(*address),
            Self::WriteFrontend { address, .. } => Some(SocketAddr::new(address.address, address.port)),
            Self::WriteClusterIp { address } => Some(any_port(*address)),
            _ => None,
        }
    }

    /// Whether packets of something may come no more once the step is carried out.
    pub fn ends(&self) -> bool {
        matches!(
            self,
            Self::RemoveFrontend { .. } | Self::RemoveClusterIp { .. } | Self::RetireBackend { .. }
        )
    }

    /// Rank of a step's kind. Steps of different services may be carried out together, kind by kind.
    pub fn phase(&self) -> u8 {
        match self {
            Self::WriteBackend { .. } => 0,
            Self::WriteRegion { .. } => 1,
            Self::WriteSourceRange { .. } => 2,
            Self::WriteNodePort { .. } => 3,
            Self::WriteFrontend { .. } => 4,
            Self::WriteClusterIp { .. } => 5,
            Self::RemoveClusterIp { .. } => 6,
            Self::RemoveFrontend { .. } => 7,
            Self::RemoveNodePort { .. } => 8,
            Self::RemoveSourceRange { .. } => 9,
            Self::RetireBackend { .. } => 10,
        }
    }
}

/// What stands in the filter for a cluster IP as such.
pub(crate) fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, filter::ANY_PORT.get())
}
