//! Filters: why a node cannot run a pod, in upstream's words.
//!
//! They run in upstream's order, and the first plugin that objects speaks for the node. Each reason knows
//! which changes of the cluster may make it go away, so that a pod that found no place is tried again then and
//! not before.

use std::fmt;

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::affinity;
use crate::node::{Node, UNSCHEDULABLE, Usage};
use crate::pod::Pod;

/// Why a node was ruled out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Cordoned.
    Unschedulable,
    /// `spec.nodeName` names another node.
    NodeName,
    /// A `NoSchedule` or `NoExecute` taint that the pod does not tolerate.
    Taint {
        /// The taint's key.
        key: String,
        /// The taint's value.
        value: String,
    },
    /// `nodeSelector` or required node affinity.
    Affinity,
    /// A host port is in use.
    Ports,
    /// The node runs as many pods as it may.
    TooManyPods,
    /// Not enough of this resource is left.
    Insufficient(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::NodeName => f.write_str("node(s) didn't match the requested node name"),
            Self::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
        }
    }
}

impl Reason {
    /// Whether pods leaving a node may make this reason go away. A change of a node may make any go away.
    pub fn helped_by_pods_leaving(&self) -> bool {
        matches!(self, Self::Ports | Self::TooManyPods | Self::Insufficient(_))
    }
}

/// Everything that speaks against running `pod` on `node`; empty when it fits.
pub(crate) fn objections(node: &Node, usage: &Usage, pod: &Pod) -> Vec<Reason> {
    if node.unschedulable && !tolerates(&pod.tolerations, &unschedulable_taint()) {
        return vec![Reason::Unschedulable];
    }
    if !pod.node.is_empty() && pod.node != node.name {
        return vec![Reason::NodeName];
    }
    let hard = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    if let Some(taint) = node.taints.iter().filter(hard).find(|taint| !tolerates(&pod.tolerations, taint)) {
        let value = taint.value.clone().unwrap_or_default();
        return vec![Reason::Taint { key: taint.key.clone(), value }];
    }
    if !affinity::allows(&pod.node_selector, pod.node_affinity.as_ref(), &node.name, &node.labels) {
        return vec![Reason::Affinity];
    }
    let wanted = &pod.demand.host_ports;
    if wanted.iter().any(|wanted| usage.ports.iter().any(|used| used.conflicts(wanted))) {
        return vec![Reason::Ports];
    }
    fit(node, usage, pod)
}

fn unschedulable_taint() -> Taint {
    let effect = "NoSchedule".to_owned();
    Taint { key: UNSCHEDULABLE.to_owned(), effect, ..Taint::default() }
}

/// All resources that are short, so that the message names each of them.
fn fit(node: &Node, usage: &Usage, pod: &Pod) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if usage.pods + 1 > node.max_pods {
        reasons.push(Reason::TooManyPods);
    }
    let (wanted, has, held) = (&pod.demand.requests, &node.allocatable, &usage.requested);
    let mut check = |name: &str, wanted: i64, has: i64, held: i64| {
        // What is not asked for is not short, even where bound pods already hold more than there is.
        if wanted > 0 && wanted > has.saturating_sub(held) {
            reasons.push(Reason::Insufficient(name.to_owned()));
        }
    };
    check("cpu", wanted.milli_cpu, has.milli_cpu, held.milli_cpu);
    check("memory", wanted.memory, has.memory, held.memory);
    let storage = (wanted.ephemeral_storage, has.ephemeral_storage, held.ephemeral_storage);
    check("ephemeral-storage", storage.0, storage.1, storage.2);
    for (name, amount) in &wanted.other {
        let of = |list: &std::collections::BTreeMap<String, i64>| list.get(name).copied().unwrap_or_default();
        check(name, *amount, of(&has.other), of(&held.other));
    }
    reasons
}

/// Whether any of the tolerations covers the taint.
pub(crate) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let same_value =
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match toleration.operator.as_deref().unwrap_or("Equal") {
                "Exists" => true,
                "Equal" | "" => same_value(),
                _ => false,
            }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pod::HostPort;
    use crate::resources::Resources;

    fn node() -> Node {
        let allocatable = Resources { milli_cpu: 1000, memory: 1000, ..Resources::default() };
        Node { name: "n".into(), allocatable, max_pods: 10, ..Node::default() }
    }

    fn taint(key: &str, effect: &str) -> Taint {
        Taint { key: key.into(), effect: effect.into(), value: Some("v".into()), ..Taint::default() }
    }

    fn against(node: &Node, usage: &Usage, pod: &Pod) -> Vec<String> {
        objections(node, usage, pod).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn taints_speak_until_they_are_tolerated() {
        let node = Node { taints: vec![taint("k", "NoSchedule")], ..node() };
        let mut pod = Pod::default();
        assert_eq!(against(&node, &Usage::default(), &pod), ["node(s) had untolerated taint {k: v}"]);
        let exists = |key: &str| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            ..Toleration::default()
        };
        pod.tolerations = vec![exists("other")];
        assert_eq!(against(&node, &Usage::default(), &pod).len(), 1);
        pod.tolerations = vec![exists("k")];
        assert!(against(&node, &Usage::default(), &pod).is_empty());
        let soft = Node { taints: vec![taint("k", "PreferNoSchedule")], ..node };
        assert!(against(&soft, &Usage::default(), &Pod::default()).is_empty());
    }

    #[test]
    fn a_cordoned_node_is_left_alone_by_all_but_those_who_tolerate_it() {
        let node = Node { unschedulable: true, ..node() };
        assert_eq!(against(&node, &Usage::default(), &Pod::default()), ["node(s) were unschedulable"]);
        let all = Toleration { operator: Some("Exists".into()), ..Toleration::default() };
        let pod = Pod { tolerations: vec![all], ..Pod::default() };
        assert!(against(&node, &Usage::default(), &pod).is_empty());
    }

    #[test]
    fn every_short_resource_is_named() {
        let other = BTreeMap::from([("example.com/gpu".to_owned(), 1)]);
        let requests = Resources { milli_cpu: 600, memory: 600, other, ..Resources::default() };
        let mut pod = Pod::default();
        pod.demand.requests = requests;
        let mut usage = Usage::default();
        usage.requested.milli_cpu = 500;
        assert_eq!(against(&node(), &usage, &pod), ["Insufficient cpu", "Insufficient example.com/gpu"]);
        usage.pods = 10;
        assert_eq!(against(&node(), &usage, &Pod::default()), ["Too many pods"]);
    }

    #[test]
    fn a_host_port_is_free_once_per_address_and_protocol() {
        let port = |ip: &str, protocol: &str| HostPort { ip: ip.into(), protocol: protocol.into(), port: 80 };
        let usage = Usage { ports: vec![port("10.0.0.1", "TCP")], ..Usage::default() };
        let fits = |wanted: HostPort| {
            let mut pod = Pod::default();
            pod.demand.host_ports = vec![wanted];
            against(&node(), &usage, &pod).is_empty()
        };
        assert!(fits(port("10.0.0.2", "TCP")));
        assert!(fits(port("10.0.0.1", "UDP")));
        assert!(!fits(port("10.0.0.1", "TCP")));
        assert!(!fits(port("", "TCP")), "every address includes that one");
    }
}
