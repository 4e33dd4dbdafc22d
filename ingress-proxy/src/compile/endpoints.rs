//! The addresses behind a Service port, out of its `EndpointSlices`, and what is spoken there.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{BackendKey, Credentials, Protocol, Snapshot};

/// Where a backend's requests may go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Endpoints {
    /// In address order, without duplicates.
    pub addresses: Vec<SocketAddr>,
    /// What is spoken there: as annotation `backend-protocol` says, or else `appProtocol`.
    pub protocol: Protocol,
    /// What TLS is spoken with, if it is.
    pub credentials: Credentials,
}

/// Ready endpoints; where there is none, those that terminate but still serve (KEP-1669): a rollout that takes
/// the last ready pod away must not turn into errors.
pub fn endpoints(snapshot: &Snapshot, backend: &BackendKey) -> Endpoints {
    let service_says = snapshot
        .services
        .get(&backend.service)
        .and_then(|service| service.ports.iter().find(|port| port.name == backend.port))
        .and_then(|port| port.protocol);
    let mut ready = BTreeSet::new();
    let mut draining = BTreeSet::new();
    let mut said = backend.protocol.or(service_says);
    for slice in snapshot.slices.get(&backend.service).into_iter().flat_map(|slices| slices.values()) {
        for port in slice.ports.iter().filter(|port| port.name == backend.port) {
            said = said.or(port.protocol);
            for endpoint in &slice.endpoints {
                let addresses = endpoint.addresses.iter().map(|ip| SocketAddr::new(*ip, port.number));
                if endpoint.ready {
                    ready.extend(addresses);
                } else if endpoint.draining {
                    draining.extend(addresses);
                }
            }
        }
    }
    let chosen = if ready.is_empty() { draining } else { ready };
    let protocol = said.unwrap_or_default();
    let credentials = if protocol.is_tls() {
        Credentials::of(snapshot, backend.tls.secret.as_ref())
    } else {
        Credentials::default()
    };
    Endpoints { addresses: chosen.into_iter().collect(), protocol, credentials }
}
