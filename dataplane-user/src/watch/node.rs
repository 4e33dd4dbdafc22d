//! What the agent must know of its own Node.

use k8s_openapi::api::core::v1::Node;

use crate::cidr::Cidr;

/// The Node's label that says where it is.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What the agent must know of its own Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Ranges that pods of this node get their addresses from.
    pub pod_cidrs: Vec<Cidr>,
    /// The zone that it is in, if it is in one.
    pub zone: Option<Box<str>>,
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let several = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let single = spec.and_then(|spec| spec.pod_cidr.clone());
        let mut pod_cidrs = Vec::new();
        for text in several.into_iter().chain(single) {
            match text.parse::<Cidr>() {
                Ok(range) if !pod_cidrs.contains(&range) => pod_cidrs.push(range),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the Node's podCIDR is not a range"),
            }
        }
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
        // An empty value is what a label without one has.
        Self { pod_cidrs, zone: zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_label_says_the_zone() {
        let zone = |labels: serde_json::Value| {
            let node: Node = serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap();
            NodeFacts::from(&node).zone
        };
        assert_eq!(zone(json!({"topology.kubernetes.io/zone": "z1"})).as_deref(), Some("z1"));
        assert_eq!(zone(json!({"topology.kubernetes.io/zone": ""})), None);
        assert_eq!(zone(json!({})), None);
    }
}
