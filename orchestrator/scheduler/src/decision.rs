//! The decision: a pure function of the snapshot and the pod.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::filter::{self, Reason};
use crate::pod::Pod;
use crate::score;
use crate::snapshot::Snapshot;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// On this node.
    Bind {
        /// The node's name.
        node: String,
    },
    /// Nowhere for now.
    Unschedulable(Failure),
}

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Number of nodes looked at.
    pub nodes: usize,
    /// How many nodes each reason ruled out.
    pub reasons: BTreeMap<Reason, usize>,
}

impl Failure {
    /// The message that `kubectl describe pod` shows, in upstream's words:
    /// `0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut reasons: Vec<_> =
            self.reasons.iter().map(|(reason, nodes)| format!("{nodes} {reason}")).collect();
        reasons.sort();
        format!("0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }

    /// Whether pods leaving nodes may change the decision.
    pub fn helped_by_pods_leaving(&self) -> bool {
        self.reasons.keys().any(Reason::helped_by_pods_leaving)
    }
}

/// Chooses a node for the pod. Costs O(nodes).
///
/// The highest score wins; among equals the node with the fewest pods, and among those the first by name.
pub fn schedule(snapshot: &Snapshot, pod: &Pod) -> Decision {
    let mut failure = Failure::default();
    let mut candidates = Vec::new();
    for (node, usage) in snapshot.nodes() {
        failure.nodes += 1;
        let objections = filter::objections(node, usage, pod);
        if objections.is_empty() {
            candidates.push((node, usage));
        }
        for reason in objections {
            *failure.reasons.entry(reason).or_default() += 1;
        }
    }
    let scored = score::score(&candidates, pod);
    let best = scored.iter().min_by_key(|one| (Reverse(one.score), one.pods, &one.node.name));
    match best {
        Some(best) => Decision::Bind { node: best.node.name.clone() },
        None => Decision::Unschedulable(failure),
    }
}

#[cfg(test)]
mod tests {
    use weir_client::ObjectKey;

    use super::*;
    use crate::node::Node;
    use crate::resources::Resources;

    fn cluster(nodes: &[(&str, i64)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, milli_cpu) in nodes {
            let allocatable = Resources { milli_cpu: *milli_cpu, memory: 1 << 30, ..Resources::default() };
            let name = (*name).to_owned();
            snapshot.set_node(Node { name, allocatable, max_pods: 110, ..Node::default() });
        }
        snapshot
    }

    fn pod(name: &str, milli_cpu: i64) -> Pod {
        let requests = Resources { milli_cpu, ..Resources::default() };
        let mut pod = Pod { key: ObjectKey::new("ns", name), uid: name.into(), ..Pod::default() };
        pod.demand.score_requests = requests.clone();
        pod.demand.requests = requests;
        pod
    }

    fn node_of(decision: Decision) -> String {
        match decision {
            Decision::Bind { node } => node,
            Decision::Unschedulable(failure) => panic!("no place: {}", failure.message()),
        }
    }

    #[test]
    fn pods_spread_over_equal_nodes() {
        let mut snapshot = cluster(&[("a", 1000), ("b", 1000), ("c", 1000)]);
        let mut chosen = Vec::new();
        for number in 0..6 {
            let pod = pod(&number.to_string(), 100);
            let node = node_of(schedule(&snapshot, &pod));
            snapshot.assume(&pod, &node);
            chosen.push(node);
        }
        assert_eq!(chosen, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn pods_that_ask_for_nothing_spread_by_their_number() {
        let mut snapshot = cluster(&[("a", 1000), ("b", 1000)]);
        for number in 0..4 {
            let pod = pod(&number.to_string(), 0);
            let node = node_of(schedule(&snapshot, &pod));
            snapshot.assume(&pod, &node);
        }
        assert!(snapshot.nodes().all(|(_, usage)| usage.pods == 2));
    }

    #[test]
    fn the_message_counts_nodes_by_reason_in_upstreams_words() {
        let mut snapshot = cluster(&[("a", 100), ("b", 100), ("c", 100)]);
        let cordoned = Node { name: "c".into(), unschedulable: true, ..Node::default() };
        snapshot.set_node(cordoned);
        let Decision::Unschedulable(failure) = schedule(&snapshot, &pod("p", 500)) else {
            panic!("nothing fits");
        };
        assert_eq!(
            failure.message(),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
        assert!(failure.helped_by_pods_leaving());
    }

    #[test]
    fn an_empty_cluster_says_so() {
        let Decision::Unschedulable(failure) = schedule(&Snapshot::default(), &pod("p", 1)) else {
            panic!("there are no nodes");
        };
        assert_eq!(failure.message(), "no nodes available to schedule pods");
        assert!(!failure.helped_by_pods_leaving());
    }
}
