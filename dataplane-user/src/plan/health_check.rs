//! What a load balancer hears when it asks whether this node should get a service's traffic (`healthCheckNodePort`). Pure.

use std::{collections::BTreeSet, net::IpAddr};

use super::model::{Service, Slice};

/// A service's health check on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port on the node's addresses.
    pub port: u16,
    /// Ready endpoints of this node.
    pub local_endpoints: usize,
}

/// The health check that a service wants, if it wants one.
///
/// Endpoints that are only terminating do not count, although they may still serve: the load balancer is to send new
/// connections elsewhere while they do (KEP-1669). Pods count, not addresses: as many as the family that has more of
/// them.
pub fn health_check<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice>) -> Option<HealthCheck> {
    let port = service.health_check_port?;
    let mut ready = BTreeSet::<IpAddr>::new();
    for endpoint in slices.flat_map(|slice| &slice.endpoints) {
        if endpoint.local && (endpoint.ready || service.publish_not_ready) {
            ready.insert(endpoint.address);
        }
    }
    let ipv4 = ready.iter().filter(|address| address.is_ipv4()).count();
    Some(HealthCheck { port, local_endpoints: ipv4.max(ready.len() - ipv4) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::Endpoint;

    fn count(service: &Service, endpoints: &[(&str, &str)]) -> Option<usize> {
        let endpoints: Vec<_> =
            endpoints.iter().map(|(address, state)| Endpoint::of(address.parse().unwrap(), state)).collect();
        // The same endpoints for another of the service's ports.
        let slices = [0, 1].map(|_| Slice { endpoints: endpoints.clone(), ..Slice::default() });
        health_check(service, slices.iter()).map(|check| check.local_endpoints)
    }

    #[test]
    fn local_ready_endpoints_count_and_each_once() {
        let service = Service { health_check_port: Some(32_000), ..Service::default() };
        let rows: &[(&[(&str, &str)], usize)] = &[
            (&[], 0),
            (&[("10.0.0.1", "rsl"), ("10.0.0.2", "rsl"), ("10.0.0.3", "rs")], 2),
            (&[("10.0.0.1", "stl"), ("10.0.0.2", "rs")], 0),
            (&[("10.0.0.1", "l")], 0),
            (&[("10.0.0.1", "rsl"), ("fd00::1", "rsl"), ("fd00::2", "rsl")], 2),
        ];
        for (endpoints, expected) in rows {
            assert_eq!(count(&service, endpoints), Some(*expected), "{endpoints:?}");
        }
        let all = Service { publish_not_ready: true, ..service };
        assert_eq!(count(&all, &[("10.0.0.1", "l")]), Some(1));
        assert_eq!(count(&Service::default(), &[("10.0.0.1", "rsl")]), None);
    }
}
