//! Which endpoints a service port's rules choose from (`CategorizeEndpoints` in `pkg/proxy/topology.go`, without zones).

use super::{Endpoint, ServicePort};

/// The choices of one service port.
#[derive(Debug, Default)]
pub(super) struct Choices {
    /// Under policy Cluster.
    pub(super) cluster: Vec<Endpoint>,
    /// Under policy Local.
    pub(super) local: Vec<Endpoint>,
    /// Either: each gets rules of its own.
    pub(super) all: Vec<Endpoint>,
    /// Whether anything serves anywhere.
    pub(super) any: bool,
}

/// Ready ones, or else those that still serve while they terminate (KEP-1669).
fn usable(endpoints: &[Endpoint], local_only: bool) -> Vec<Endpoint> {
    let candidates = || endpoints.iter().filter(move |endpoint| endpoint.local || !local_only).copied();
    let ready: Vec<Endpoint> = candidates().filter(|endpoint| endpoint.ready).collect();
    if ready.is_empty() {
        return candidates().filter(|endpoint| endpoint.serving && endpoint.terminating).collect();
    }
    ready
}

impl Choices {
    pub(super) fn of(service: &ServicePort) -> Self {
        let external = service.is_externally_accessible();
        // Also under an external policy Local: pods and the node itself are exempt from it.
        let uses_cluster = !service.internal_local || external;
        let uses_local = service.internal_local || service.external_local && external;
        let anywhere = usable(&service.endpoints, false);
        let any = !anywhere.is_empty();
        let cluster = if uses_cluster { anywhere } else { Vec::new() };
        let local = if uses_local { usable(&service.endpoints, true) } else { Vec::new() };
        let mut all = cluster.clone();
        all.extend(local.iter().filter(|endpoint| !cluster.contains(endpoint)));
        Self { cluster, local, all, any }
    }

    /// Whether clients inside find an endpoint.
    pub(super) fn has_internal(&self, service: &ServicePort) -> bool {
        self.any && !(service.internal_local && self.local.is_empty())
    }

    /// Whether clients outside find an endpoint.
    pub(super) fn has_external(&self, service: &ServicePort) -> bool {
        self.any && !(service.external_local && self.local.is_empty())
    }
}
