//! What the scheduler keeps of a pod.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeAffinity, Pod as ApiPod, PodSpec, Toleration};
use weir_client::ObjectKey;

use crate::resources::{self, Resources};

/// A port that a pod takes from its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The address it binds; `0.0.0.0` is every address.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port number.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be bound on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| matches!(ip, "" | "0.0.0.0");
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// What a pod demands of the node that runs it; shared by all who look at the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Peak requests.
    pub requests: Resources,
    /// Requests with defaults, for scoring.
    pub score_requests: Resources,
    /// Ports on the node.
    pub host_ports: Vec<HostPort>,
}

/// A pod, reduced to what scheduling looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.nodeName`; empty while pending.
    pub node: String,
    /// `spec.priority`: higher goes first.
    pub priority: i32,
    /// Older goes first among equal priorities.
    pub created: Option<Timestamp>,
    /// What it takes from a node.
    pub demand: Demand,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// `spec.affinity.nodeAffinity`.
    pub node_affinity: Option<NodeAffinity>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// A pod with scheduling gates waits until they are gone (KEP-3521).
    pub gated: bool,
    /// Being deleted: not worth binding.
    pub deleting: bool,
}

impl Pod {
    /// Reads a pod. `None` when the scheduler has no business with it: it has ended (and holds nothing), or it is
    /// pending and belongs to another scheduler.
    pub fn of(pod: &ApiPod, scheduler_name: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let node = spec.node_name.clone().unwrap_or_default();
        let mine = spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == scheduler_name;
        if node.is_empty() && !mine {
            return None;
        }
        let demand = Demand {
            requests: resources::requested(spec),
            score_requests: resources::requested_for_score(spec),
            host_ports: host_ports(spec),
        };
        let mut info = Self {
            key: ObjectKey::of(&pod.metadata),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            demand,
            ..Self::default()
        };
        if node.is_empty() {
            info.priority = spec.priority.unwrap_or_default();
            info.created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            info.node_selector = spec.node_selector.clone().unwrap_or_default();
            info.node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
            info.tolerations = spec.tolerations.clone().unwrap_or_default();
            info.gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
            info.deleting = pod.metadata.deletion_timestamp.is_some();
        }
        // Of a pod that has its node only the demand matters: the rest would be kept for nothing.
        info.node = node;
        Some(info)
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let containers = spec.containers.iter();
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    containers
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                ip: port.host_ip.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}
