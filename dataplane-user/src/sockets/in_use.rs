//! Processes that had a port of the node before a service got it.
//!
//! The guard at `bind` keeps later ones away; these keep their socket and lose their clients, which somebody should hear.

use std::{collections::HashMap, io, net::SocketAddr};

use weir_dataplane_ebpf::Protocol;

use super::diag::{Diag, States};
use crate::plan::model::{NodePort, ServiceKey};

/// A port of the node that a process has as well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error(
    "port {port} of this node belongs to a process as well, bound to {address}, which gets no more clients from outside: end it, or choose another nodePort or hostPort"
)]
pub struct PortInUse {
    /// The port.
    pub port: NodePort,
    /// What the process's socket is bound to.
    pub address: SocketAddr,
}

/// Which of these ports processes in the calling thread's namespace have. Loopback is nobody's node address.
pub fn in_use(ports: &[(ServiceKey, NodePort)]) -> io::Result<Vec<(ServiceKey, PortInUse)>> {
    let mut found = Vec::new();
    if ports.is_empty() {
        return Ok(found);
    }
    let owners: HashMap<NodePort, &ServiceKey> = ports.iter().map(|(key, port)| (*port, key)).collect();
    let diag = Diag::open()?;
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for socket in diag.list(protocol, States::BOUND)? {
            let address = socket.local();
            let port = NodePort { protocol: protocol.0, port: address.port() };
            if let Some(owner) = owners.get(&port).filter(|_| !address.ip().is_loopback()) {
                found.push(((*owner).clone(), PortInUse { port, address }));
            }
        }
    }
    Ok(found)
}
