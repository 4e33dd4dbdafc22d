//! Path rules of one host, as a trie over path elements.
//!
//! Elements and not bytes, because a Prefix rule ends only where an element ends (`/aaa/bb` does not match
//! `/aaa/bbb`). An exact path that ends in a slash has an empty last element, which keeps `/foo` and `/foo/`
//! apart for Exact while Prefix, which drops that slash, sees them as one.

use std::collections::HashMap;

use super::{PathKind, TargetId};

/// Nodes are kept in one vector and point at each other by index; the root is node 0.
#[derive(Debug, Clone)]
pub(super) struct PathTrie {
    nodes: Vec<Node>,
}

#[derive(Debug, Default, Clone)]
struct Node {
    children: HashMap<Box<str>, u32>,
    exact: Option<TargetId>,
    prefix: Option<TargetId>,
}

impl Node {
    fn slot(&mut self, kind: PathKind) -> &mut Option<TargetId> {
        match kind {
            PathKind::Exact => &mut self.exact,
            PathKind::Prefix => &mut self.prefix,
        }
    }
}

impl PathKind {
    /// The part of a rule's path that its place in the trie is found by.
    fn key(self, path: &str) -> &str {
        match self {
            Self::Exact => path,
            Self::Prefix => path.trim_end_matches('/'),
        }
    }
}

impl Default for PathTrie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl PathTrie {
    /// Adds a rule, or returns the target that holds the same path already.
    pub(super) fn insert(&mut self, kind: PathKind, path: &str, target: TargetId) -> Result<(), TargetId> {
        let mut at = 0;
        for element in elements(kind.key(path)) {
            at = self.child(at, element);
        }
        let slot = self.nodes[at as usize].slot(kind);
        if let Some(holder) = *slot {
            return Err(holder);
        }
        *slot = Some(target);
        Ok(())
    }

    /// The target of a rule that was inserted.
    pub(super) fn slot(&mut self, kind: PathKind, path: &str) -> Option<&mut TargetId> {
        let mut at = 0;
        for element in elements(kind.key(path)) {
            at = *self.nodes[at as usize].children.get(element)?;
        }
        self.nodes[at as usize].slot(kind).as_mut()
    }

    /// The longest matching rule; Exact before Prefix where both end at the same element.
    pub(super) fn lookup(&self, path: &str) -> Option<TargetId> {
        let mut node = &self.nodes[0];
        let mut longest = node.prefix;
        for element in elements(path) {
            match node.children.get(element) {
                Some(&next) => node = &self.nodes[next as usize],
                None => return longest,
            }
            longest = node.prefix.or(longest);
        }
        node.exact.or(longest)
    }

    fn child(&mut self, parent: u32, element: &str) -> u32 {
        if let Some(&found) = self.nodes[parent as usize].children.get(element) {
            return found;
        }
        let id = u32::try_from(self.nodes.len()).expect("fewer than 2^32 path elements in one host");
        self.nodes.push(Node::default());
        self.nodes[parent as usize].children.insert(element.into(), id);
        id
    }
}

/// `/a/b` → `a`, `b`; `/a/` → `a`, ``; `/` → ``; the empty path (a stripped Prefix `/`) → nothing.
fn elements(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').into_iter().flat_map(|rest| rest.split('/'))
}
