//! The pod ranges of all nodes: what pods reach with their own addresses, whichever ranges a cluster's allocator uses.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::NodeFacts;
use crate::cidr::Cidr;

/// By node.
#[derive(Debug, Default)]
pub(super) struct PodRanges(BTreeMap<Box<str>, Vec<Cidr>>);

impl PodRanges {
    /// Takes over what a Node says, or that it is gone. True when that is news.
    pub(super) fn put(&mut self, node: &Node, present: bool) -> bool {
        let name = node.name_any().into_boxed_str();
        let found = if present { NodeFacts::from(node).pod_cidrs } else { Vec::new() };
        if found.is_empty() {
            return self.0.remove(&name).is_some();
        }
        self.0.insert(name, found.clone()) != Some(found)
    }

    /// Forgets all nodes but these. True when that is news.
    pub(super) fn forget_others(&mut self, seen: &BTreeSet<Box<str>>) -> bool {
        let before = self.0.len();
        self.0.retain(|name, _| seen.contains(name));
        self.0.len() != before
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = Cidr> {
        self.0.values().flatten().copied()
    }
}
