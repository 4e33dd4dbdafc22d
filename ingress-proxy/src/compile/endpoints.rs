//! The addresses behind a Service port, out of its `EndpointSlices`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{BackendKey, Snapshot};

/// Where a backend's requests may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// In address order, without duplicates.
    pub addresses: Vec<SocketAddr>,
    /// They speak HTTP/2 in cleartext (`appProtocol: kubernetes.io/h2c`, or annotation `backend-protocol: GRPC`).
    pub h2c: bool,
}

/// Ready endpoints; where there is none, those that terminate but still serve (KEP-1669): a rollout that takes
/// the last ready pod away must not turn into errors.
pub fn endpoints(snapshot: &Snapshot, backend: &BackendKey) -> Endpoints {
    let service_h2c = snapshot
        .services
        .get(&backend.service)
        .and_then(|service| service.ports.iter().find(|port| port.name == backend.port))
        .is_some_and(|port| port.h2c);
    let mut ready = BTreeSet::new();
    let mut draining = BTreeSet::new();
    let mut h2c = service_h2c || backend.h2c;
    for slice in snapshot.slices.get(&backend.service).into_iter().flat_map(|slices| slices.values()) {
        for port in slice.ports.iter().filter(|port| port.name == backend.port) {
            h2c |= port.h2c;
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
    Endpoints { addresses: chosen.into_iter().collect(), h2c }
}
