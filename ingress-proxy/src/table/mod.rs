//! The route table: which target serves this host and path.
//!
//! A table that is served is never changed: the next one is a copy with other rules for some hosts, which shares with the
//! last one all that stayed the same, and is swapped in whole, so that a request sees one consistent set of rules from
//! start to end. Nothing here knows what an Ingress is: hosts and paths go in, a target comes out, and what a target means
//! is its owner's affair.
//!
//! **Cost of a lookup.** One hash of the host and one probe; a second one if there are wildcards and the host's own rules
//! did not match. A host with few paths goes through them, the longest first; one with many has one hash per path element
//! down to its deepest rule. It grows with neither the number of hosts nor the number of rules, allocates nothing, and
//! touches four places in memory: shard, host, its paths, the target. Hosts whose paths are patterns are the exception:
//! there the patterns are tried one after the other, at most [`MAX_PATTERNS`] of them; other hosts pay one branch for that.
//!
//! **Cost of a change.** One host's rules are built anew, and the references to the others are copied: see [`HostMap`].

mod host;
mod map;
mod matching;
mod path;
mod paths;
mod pattern;
mod rules;

use std::sync::Arc;

pub use host::{HostError, HostPattern, normalize_host};
pub use map::HostMap;
pub use matching::{Match, RulePath};
pub use path::{PathError, normalize_path};
pub use pattern::{Captures, Pattern, PatternError};
pub use rules::{HostRules, MAX_PATTERNS, RuleSet, Taken};

/// How a rule's path is compared with the request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// Byte for byte; a trailing slash matters.
    Exact,
    /// Element by element; a trailing slash on either side does not matter.
    Prefix,
}

/// Host and path rules. A copy is cheap, and is not changed by what is set in the original.
#[derive(Debug)]
pub struct RouteTable<T>(HostMap<Arc<HostRules<T>>>);

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self(HostMap::default())
    }
}

impl<T> Clone for RouteTable<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> RouteTable<T> {
    /// The target for a request, or `None` when nothing matches.
    ///
    /// `host` and `path` are in the normal forms of [`normalize_host`] and [`normalize_path`]. An exact host is
    /// asked before a wildcard and a wildcard before the rules without a host; the first that has a matching
    /// path wins. Default targets are asked only after every rule, in the same order.
    pub fn lookup(&self, host: &str, path: &str) -> Option<&T> {
        let exact = self.0.exact(host);
        if let Some(found) = exact.and_then(|rules| rules.lookup(path)) {
            return Some(found);
        }
        let (wildcard, any) = (self.0.wildcard(host), self.0.any());
        let after = || [wildcard, any].into_iter().flatten();
        after()
            .find_map(|rules| rules.lookup(path))
            .or_else(|| exact.into_iter().chain(after()).find_map(|rules| rules.default.as_ref()))
    }

    /// The rules of a host.
    pub fn rules(&self, host: &HostPattern) -> Option<&Arc<HostRules<T>>> {
        self.0.get(host)
    }

    /// The rules that a host has: its own, or else those of the wildcard that covers it, or else those of every host.
    pub fn covering(&self, host: &str) -> Option<&Arc<HostRules<T>>> {
        self.all_covering(host).next()
    }

    /// All rules that a request for a host can come to, in the order in which they are asked.
    pub fn all_covering(&self, host: &str) -> impl Iterator<Item = &Arc<HostRules<T>>> {
        [self.0.exact(host), self.0.wildcard(host), self.0.any()].into_iter().flatten()
    }

    /// Gives a host these rules, or none.
    pub fn set(&mut self, host: &HostPattern, rules: Option<Arc<HostRules<T>>>) {
        self.0.set(host, rules);
    }

    /// Hosts with rules of their own, wildcards included.
    pub fn hosts(&self) -> usize {
        self.0.len()
    }

    /// The targets of all rules, in no order; one that several rules have comes as often.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.0.values().flat_map(|rules| rules.targets())
    }
}

#[cfg(test)]
mod tests;
