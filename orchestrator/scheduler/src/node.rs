//! What the scheduler keeps of a node, and the accounts of what pods hold there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node as ApiNode, Taint};

use crate::pod::{Demand, HostPort};
use crate::quantity;
use crate::resources::Resources;

/// The taint that stands for a node that does not report ready.
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint that stands for a cordoned node.
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A node as its object says it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`, and `not-ready` while the Ready condition is not true: the node lifecycle
    /// controller adds that taint too, but a moment later.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// `status.allocatable.pods`.
    pub max_pods: i64,
}

impl Node {
    /// Reads a node.
    pub fn of(node: &ApiNode) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
        let mut taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
        if !ready && !taints.iter().any(|taint| taint.key == NOT_READY && taint.effect == "NoSchedule") {
            let effect = "NoSchedule".to_owned();
            taints.push(Taint { key: NOT_READY.to_owned(), effect, ..Taint::default() });
        }
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints,
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            allocatable: allocatable.map(Resources::of).unwrap_or_default(),
            max_pods: allocatable.and_then(|list| list.get("pods")).map(quantity::units).unwrap_or_default(),
        }
    }

    /// Whether a pod that found no place may find one now that the node is as `self` and no longer as `before`.
    pub fn may_help_since(&self, before: Option<&Self>) -> bool {
        before != Some(self)
    }
}

/// What the pods on a node hold, kept up to date pod by pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Requests of all pods.
    pub requested: Resources,
    /// Requests with defaults, for scoring.
    pub score_requested: Resources,
    /// Number of pods.
    pub pods: i64,
    /// Ports in use; the same port may stand here twice when pods were bound by hand.
    pub ports: Vec<HostPort>,
}

impl Usage {
    /// Counts a pod in.
    pub fn add(&mut self, demand: &Demand) {
        self.requested.add(&demand.requests);
        self.score_requested.add(&demand.score_requests);
        self.pods += 1;
        self.ports.extend(demand.host_ports.iter().cloned());
    }

    /// Counts a pod out.
    pub fn remove(&mut self, demand: &Demand) {
        self.requested.subtract(&demand.requests);
        self.score_requested.subtract(&demand.score_requests);
        self.pods -= 1;
        for port in &demand.host_ports {
            if let Some(index) = self.ports.iter().position(|used| used == port) {
                self.ports.swap_remove(index);
            }
        }
    }
}
