//! What the controllers keep of a pod: one cache serves them all, so it holds the union of what they look at and
//! nothing else. That is a tenth of the object.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use weir_client::ObjectKey;

/// The annotation by which a pod asks to be removed earlier or later than its siblings.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `status.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Not all containers have been started.
    #[default]
    Pending,
    /// The node does not say.
    Unknown,
    /// On a node, with containers that run or will again.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
}

/// A container port that a Service may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPort {
    /// `name`.
    pub name: String,
    /// `protocol`.
    pub protocol: String,
    /// `containerPort`.
    pub port: i32,
}

/// A pod, reduced to what controllers look at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodView {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.ownerReferences`.
    pub owners: Vec<OwnerReference>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Has a deletion timestamp.
    pub deleting: bool,
    /// Value of the deletion cost annotation, 0 without.
    pub deletion_cost: i32,
    /// `spec.nodeName`, empty while pending.
    pub node: String,
    /// `spec.hostname`.
    pub hostname: Option<String>,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Ports that have a name.
    pub ports: Vec<NamedPort>,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.podIPs`.
    pub ips: Vec<String>,
    /// The Ready condition is true.
    pub ready: bool,
    /// Since when the Ready condition is as it is.
    pub ready_since: Option<Timestamp>,
    /// Restarts of the container that restarted most.
    pub restarts: i32,
}

impl PodView {
    /// Reads a pod.
    pub(crate) fn of(pod: Pod) -> Self {
        let key = ObjectKey::of(&pod.metadata);
        let ObjectMeta { uid, labels, owner_references, creation_timestamp, deletion_timestamp, .. } =
            pod.metadata;
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let deletion_cost = annotations.get(DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0);
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        // Sidecars have ports that Services may name too.
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports =
            spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        let ports = ports.filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: port.container_port,
            })
        });
        let restarts = status.container_statuses.iter().flatten().map(|status| status.restart_count).max();
        let mut ips: Vec<_> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip.clone());
        }
        Self {
            key,
            uid: uid.unwrap_or_default(),
            labels: labels.unwrap_or_default(),
            owners: owner_references.unwrap_or_default(),
            created: creation_timestamp.map(|time| time.0),
            deleting: deletion_timestamp.is_some(),
            deletion_cost,
            ports: ports.collect(),
            node: spec.node_name.unwrap_or_default(),
            hostname: spec.hostname,
            subdomain: spec.subdomain,
            tolerations: spec.tolerations.unwrap_or_default(),
            phase: phase(status.phase.as_deref()),
            ips,
            ready: ready.is_some_and(is_true),
            ready_since: ready.and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0),
            restarts: restarts.unwrap_or_default(),
        }
    }

    /// Neither ended nor about to.
    pub(crate) fn is_active(&self) -> bool {
        !self.deleting && !self.has_ended()
    }

    /// All containers have ended for good.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Ready for at least `min_ready_seconds`.
    pub(crate) fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        if !self.ready {
            return false;
        }
        let long_enough =
            |since: Timestamp| now.duration_since(since).as_secs() >= i64::from(min_ready_seconds);
        min_ready_seconds == 0 || self.ready_since.is_some_and(long_enough)
    }
}

fn is_true(condition: &PodCondition) -> bool {
    condition.status == "True"
}

fn phase(text: Option<&str>) -> Phase {
    match text {
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        _ => Phase::Pending,
    }
}
