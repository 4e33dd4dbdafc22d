//! The cluster as scheduling sees it: nodes, and what the pods on them hold.
//!
//! The snapshot *is* the cache. It changes with each event at the cost of that one node or pod (O(log n)), and a
//! decision reads it in place, so that nothing is ever copied or rebuilt. That works because one task owns it:
//! events and decisions take turns.
//!
//! A pod that has been decided on is *assumed*: counted as if it were bound, so that the next decision sees it,
//! until the API server confirms it or the bind fails and it is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weir_client::ObjectKey;

use crate::node::{Node, Usage};
use crate::pod::{Demand, Pod};

/// A node with its accounts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeEntry {
    /// `None` while only pods of that node are known: their usage must not get lost when the node appears.
    pub node: Option<Arc<Node>>,
    /// What its pods hold.
    pub usage: Usage,
}

#[derive(Clone, Debug)]
struct Placed {
    uid: String,
    node: String,
    demand: Demand,
    assumed: bool,
}

/// Nodes and placed pods.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    entries: BTreeMap<String, NodeEntry>,
    pods: HashMap<ObjectKey, Placed>,
}

impl Snapshot {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&Node, &Usage)> {
        self.entries.values().filter_map(|entry| Some((entry.node.as_deref()?, &entry.usage)))
    }

    /// Takes a node's new state; returns the one before.
    pub fn set_node(&mut self, node: Node) -> Option<Arc<Node>> {
        self.entries.entry(node.name.clone()).or_default().node.replace(Arc::new(node))
    }

    /// Forgets a node. Pods still bound to it stay in the books, in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.node = None;
        }
        self.drop_if_empty(name);
    }

    /// Takes a pod that has a node: confirms an assumed one, or moves a known one. Whether that may have made room
    /// somewhere.
    pub fn set_pod(&mut self, pod: &Pod) -> bool {
        self.place(&pod.key, &pod.uid, &pod.node, &pod.demand, false)
    }

    /// Counts a pod on the node that was chosen for it, before the API server knows.
    pub fn assume(&mut self, pod: &Pod, node: &str) {
        self.place(&pod.key, &pod.uid, node, &pod.demand, true);
    }

    /// Takes back what [`Snapshot::assume`] did, unless the API server has confirmed it meanwhile.
    pub fn forget(&mut self, key: &ObjectKey, uid: &str) {
        if self.pods.get(key).is_some_and(|placed| placed.assumed && placed.uid == uid) {
            self.remove_pod(key);
        }
    }

    /// Whether the pod is counted somewhere.
    pub fn is_placed(&self, key: &ObjectKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|placed| placed.uid == uid)
    }

    /// Counts a pod out; whether it was counted.
    pub fn remove_pod(&mut self, key: &ObjectKey) -> bool {
        let Some(placed) = self.pods.remove(key) else { return false };
        if let Some(entry) = self.entries.get_mut(&placed.node) {
            entry.usage.remove(&placed.demand);
        }
        self.drop_if_empty(&placed.node);
        true
    }

    fn place(&mut self, key: &ObjectKey, uid: &str, node: &str, demand: &Demand, assumed: bool) -> bool {
        if let Some(placed) = self.pods.get_mut(key)
            && placed.uid == uid
            && placed.node == node
            && placed.demand == *demand
        {
            placed.assumed &= assumed;
            return false;
        }
        let made_room = self.remove_pod(key);
        self.entries.entry(node.to_owned()).or_default().usage.add(demand);
        let placed = Placed { uid: uid.to_owned(), node: node.to_owned(), demand: demand.clone(), assumed };
        self.pods.insert(key.clone(), placed);
        made_room
    }

    fn drop_if_empty(&mut self, name: &str) {
        if self.entries.get(name).is_some_and(|entry| entry.node.is_none() && entry.usage.pods == 0) {
            self.entries.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Resources;

    fn pod(name: &str, node: &str, milli_cpu: i64) -> Pod {
        let requests = Resources { milli_cpu, ..Resources::default() };
        Pod {
            key: ObjectKey::new("ns", name),
            uid: format!("{name}-uid"),
            node: node.into(),
            demand: Demand { requests, ..Demand::default() },
            ..Pod::default()
        }
    }

    fn milli_cpu(snapshot: &Snapshot, node: &str) -> i64 {
        snapshot.entries.get(node).map_or(0, |entry| entry.usage.requested.milli_cpu)
    }

    #[test]
    fn an_assumed_pod_counts_until_it_is_forgotten() {
        let mut snapshot = Snapshot::default();
        let pending = pod("a", "", 100);
        snapshot.assume(&pending, "n");
        assert_eq!(milli_cpu(&snapshot, "n"), 100);
        snapshot.forget(&pending.key, &pending.uid);
        assert_eq!(milli_cpu(&snapshot, "n"), 0);
    }

    #[test]
    fn a_confirmed_pod_is_not_forgotten_and_not_counted_twice() {
        let mut snapshot = Snapshot::default();
        snapshot.assume(&pod("a", "", 100), "n");
        snapshot.set_pod(&pod("a", "n", 100));
        snapshot.forget(&ObjectKey::new("ns", "a"), "a-uid");
        assert_eq!(milli_cpu(&snapshot, "n"), 100);
        snapshot.set_pod(&pod("a", "n", 40));
        assert_eq!(milli_cpu(&snapshot, "n"), 40, "resized in place");
        assert!(snapshot.remove_pod(&ObjectKey::new("ns", "a")));
        assert_eq!(milli_cpu(&snapshot, "n"), 0);
    }

    #[test]
    fn usage_outlives_a_node_that_comes_back() {
        let mut snapshot = Snapshot::default();
        snapshot.set_pod(&pod("early", "n", 30));
        assert_eq!(snapshot.nodes().count(), 0, "a node that was never seen is no candidate");
        snapshot.set_node(Node { name: "n".into(), ..Node::default() });
        snapshot.remove_node("n");
        snapshot.set_node(Node { name: "n".into(), ..Node::default() });
        assert_eq!(snapshot.nodes().next().map(|(_, usage)| usage.requested.milli_cpu), Some(30));
        snapshot.remove_node("n");
        snapshot.remove_pod(&ObjectKey::new("ns", "early"));
        assert!(snapshot.entries.is_empty(), "nothing is kept for ever");
    }
}
