//! Path rules of one host, in as few pieces of memory as they take.
//!
//! Most hosts have a few paths: these are a list, the longest first, and the first that matches is the one. Hosts with
//! more than [`FEW`] have a trie over path elements, all of whose edges are in one hash table. Elements and not bytes,
//! because a Prefix rule ends only where an element ends (`/aaa/bb` does not match `/aaa/bbb`). An exact path that ends in
//! a slash has an empty last element, which keeps `/foo` and `/foo/` apart for Exact while Prefix, which drops that slash,
//! sees them as one.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};

use super::PathKind;

/// Rules that are gone through one after the other: at two nanoseconds each, these are faster than the hashes of elements.
const FEW: usize = 32;

/// A rule's path, as it is compared: a Prefix has no trailing slash, and `/` is empty as one.
pub(super) type Key = (Box<str>, PathKind);

impl PathKind {
    /// What a rule of this kind and path is compared by.
    pub(super) fn key(self, path: &str) -> Key {
        match self {
            Self::Exact => (path.into(), self),
            Self::Prefix => (path.trim_end_matches('/').into(), self),
        }
    }
}

/// Immutable; built from all rules at once.
#[derive(Debug)]
pub(super) enum Paths<T> {
    Few(List<T>),
    Many(Trie<T>),
}

impl<T> Paths<T> {
    pub(super) fn new(rules: impl ExactSizeIterator<Item = (Key, T)>) -> Self {
        if rules.len() <= FEW { Self::Few(List::new(rules)) } else { Self::Many(Trie::new(rules)) }
    }

    /// The longest matching rule; Exact before Prefix where both end at the same element.
    pub(super) fn lookup(&self, path: &str) -> Option<&T> {
        match self {
            Self::Few(list) => list.lookup(path.as_bytes()),
            Self::Many(trie) => trie.lookup(path),
        }
    }

    pub(super) fn targets(&self) -> Box<dyn Iterator<Item = &T> + '_> {
        match self {
            Self::Few(list) => Box::new(list.rules.iter().map(|rule| &rule.target)),
            Self::Many(trie) => Box::new(trie.targets()),
        }
    }
}

/// What is asked seldom, and by people: see [`super::Match`].
impl<T> Paths<T> {
    /// All rules that match, in the order of their precedence: the first is [`Paths::lookup`]'s.
    pub(super) fn matches(&self, path: &str) -> Vec<(Key, &T)> {
        match self {
            Self::Few(list) => list.matches(path),
            Self::Many(trie) => trie.matches(path),
        }
    }

    /// All rules, in no order.
    pub(super) fn rules(&self) -> Vec<(Key, &T)> {
        match self {
            Self::Few(list) => {
                list.iter().map(|(path, rule)| ((path.into(), rule.kind), &rule.target)).collect()
            }
            Self::Many(trie) => trie.rules(),
        }
    }
}

/// Rules in the order in which they are tried.
#[derive(Debug)]
pub(super) struct List<T> {
    /// The paths, one behind the other.
    text: Box<[u8]>,
    rules: Box<[Rule<T>]>,
}

#[derive(Debug)]
struct Rule<T> {
    /// Where its path ends, and the next one's starts.
    end: u32,
    kind: PathKind,
    target: T,
}

impl<T> Rule<T> {
    /// Whether it matches a path that starts with its own and goes on so.
    fn takes(&self, rest: &[u8]) -> bool {
        match self.kind {
            PathKind::Exact => rest.is_empty(),
            PathKind::Prefix => rest.first().is_none_or(|next| *next == b'/'),
        }
    }
}

impl<T> List<T> {
    fn new(rules: impl Iterator<Item = (Key, T)>) -> Self {
        let mut sorted: Vec<(Key, T)> = rules.collect();
        // An exact path that matches is the whole request, and no matching prefix is longer.
        sorted.sort_by(|((a, a_kind), _), ((b, b_kind), _)| b.len().cmp(&a.len()).then(a_kind.cmp(b_kind)));
        let mut text = Vec::new();
        let rules = sorted.into_iter().map(|((path, kind), target)| {
            text.extend_from_slice(path.as_bytes());
            Rule { end: position(text.len()), kind, target }
        });
        let rules = rules.collect();
        Self { text: text.into(), rules }
    }

    fn lookup(&self, path: &[u8]) -> Option<&T> {
        let mut start = 0;
        for rule in &self.rules {
            let end = rule.end as usize;
            let rest = path.strip_prefix(&self.text[start..end]);
            start = end;
            if rest.is_some_and(|rest| rule.takes(rest)) {
                return Some(&rule.target);
            }
        }
        None
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &Rule<T>)> {
        let starts = std::iter::once(0).chain(self.rules.iter().map(|rule| rule.end as usize));
        starts.zip(&self.rules).map(|(start, rule)| {
            let path = &self.text[start..rule.end as usize];
            (std::str::from_utf8(path).expect("it was made of texts"), rule)
        })
    }

    fn matches(&self, path: &str) -> Vec<(Key, &T)> {
        let takes = |(own, rule): &(&str, &Rule<T>)| {
            path.strip_prefix(own).is_some_and(|rest| rule.takes(rest.as_bytes()))
        };
        let matching = self.iter().filter(takes);
        matching.map(|(own, rule)| ((own.into(), rule.kind), &rule.target)).collect()
    }
}

/// Nodes are numbers, the root is 0; what is known of a node is with the edge that leads to it.
#[derive(Debug)]
pub(super) struct Trie<T> {
    hasher: DefaultHashBuilder,
    /// The elements, one behind the other.
    text: Box<str>,
    edges: HashTable<Edge<T>>,
    /// Prefix `/`.
    root: Option<T>,
}

#[derive(Debug)]
struct Edge<T> {
    from: u32,
    to: u32,
    /// Where its element is in the text.
    start: u32,
    end: u32,
    exact: Option<T>,
    prefix: Option<T>,
}

impl<T> Edge<T> {
    fn element<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..self.end as usize]
    }
}

impl<T> Trie<T> {
    fn new(rules: impl Iterator<Item = (Key, T)>) -> Self {
        let hasher = DefaultHashBuilder::default();
        let (mut text, mut edges, mut root) = (String::new(), HashTable::<Edge<T>>::new(), None);
        for ((path, kind), target) in rules {
            let mut at = None;
            for element in elements(&path) {
                let from = at.map_or(0, |edge: &mut Edge<T>| edge.to);
                let next = position(edges.len() + 1);
                let known = |edge: &Edge<T>| edge.from == from && edge.element(&text) == element;
                let rehash = |edge: &Edge<T>| hasher.hash_one((edge.from, edge.element(&text)));
                at = Some(match edges.entry(hasher.hash_one((from, element)), known, rehash) {
                    Entry::Occupied(edge) => edge.into_mut(),
                    Entry::Vacant(place) => {
                        let start = position(text.len());
                        text.push_str(element);
                        let end = position(text.len());
                        let edge = Edge { from, to: next, start, end, exact: None, prefix: None };
                        place.insert(edge).into_mut()
                    }
                });
            }
            let slot = match (at, kind) {
                (None, _) => &mut root,
                (Some(edge), PathKind::Exact) => &mut edge.exact,
                (Some(edge), PathKind::Prefix) => &mut edge.prefix,
            };
            *slot = Some(target);
        }
        edges.shrink_to_fit(|edge| hasher.hash_one((edge.from, edge.element(&text))));
        Self { hasher, text: text.into(), edges, root }
    }

    fn lookup(&self, path: &str) -> Option<&T> {
        let (mut node, mut exact, mut longest) = (0, None, self.root.as_ref());
        for element in elements(path) {
            let hash = self.hasher.hash_one((node, element));
            let known = |edge: &Edge<T>| edge.from == node && edge.element(&self.text) == element;
            let Some(edge) = self.edges.find(hash, known) else { return longest };
            (node, exact, longest) = (edge.to, edge.exact.as_ref(), edge.prefix.as_ref().or(longest));
        }
        exact.or(longest)
    }

    fn matches(&self, path: &str) -> Vec<(Key, &T)> {
        let prefix = |end: usize| (Box::from(&path[..end]), PathKind::Prefix);
        let (mut node, mut end, mut exact) = (0, 0, None);
        let mut prefixes: Vec<(Key, &T)> = self.root.iter().map(|target| (prefix(0), target)).collect();
        for element in elements(path) {
            exact = None;
            let hash = self.hasher.hash_one((node, element));
            let known = |edge: &Edge<T>| edge.from == node && edge.element(&self.text) == element;
            let Some(edge) = self.edges.find(hash, known) else { break };
            (node, end, exact) = (edge.to, end + 1 + element.len(), edge.exact.as_ref());
            prefixes.extend(edge.prefix.iter().map(|target| (prefix(end), target)));
        }
        let exact = exact.map(|target| ((path.into(), PathKind::Exact), target));
        exact.into_iter().chain(prefixes.into_iter().rev()).collect()
    }

    fn rules(&self) -> Vec<(Key, &T)> {
        let mut children = HashMap::<u32, Vec<&Edge<T>>>::new();
        for edge in &self.edges {
            children.entry(edge.from).or_default().push(edge);
        }
        let mut rules: Vec<(Key, &T)> =
            self.root.iter().map(|target| (("".into(), PathKind::Prefix), target)).collect();
        let mut open = vec![(0, String::new())];
        while let Some((node, path)) = open.pop() {
            for edge in children.remove(&node).unwrap_or_default() {
                let path = format!("{path}/{}", edge.element(&self.text));
                let own = [(&edge.exact, PathKind::Exact), (&edge.prefix, PathKind::Prefix)];
                rules.extend(
                    own.into_iter()
                        .filter_map(|(target, kind)| Some(((path.as_str().into(), kind), target.as_ref()?))),
                );
                open.push((edge.to, path));
            }
        }
        rules
    }

    fn targets(&self) -> impl Iterator<Item = &T> {
        self.edges.iter().flat_map(|edge| edge.exact.iter().chain(&edge.prefix)).chain(&self.root)
    }
}

fn position(at: usize) -> u32 {
    u32::try_from(at).expect("the paths of one host are fewer than 4 GiB")
}

/// `/a/b` → `a`, `b`; `/a/` → `a`, ``; `/` → ``; the empty path (Prefix `/`) → nothing.
fn elements(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').into_iter().flat_map(|rest| rest.split('/'))
}
