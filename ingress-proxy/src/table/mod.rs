//! The route table: which target serves this host and path.
//!
//! It is immutable. A front end (the compiler of Ingress objects today) fills a [`Builder`], the proxy swaps
//! the finished [`RouteTable`] in whole and only ever reads it, so that a request sees one consistent set of
//! rules from start to end. Nothing here knows what an Ingress is: hosts and paths go in, a [`TargetId`] comes
//! out, and what a target means is its owner's affair.
//!
//! **Cost of a lookup.** At most three host hashes (exact, wildcard, any) and, for each, one hash per path
//! segment down to the deepest rule of that host: it grows with neither the number of hosts nor the number of
//! rules. Hashing is the standard library's keyed one, because the people who write rules on a shared cluster
//! are not trusted to leave each other's lookups alone.

mod host;
mod path;
mod trie;

use std::collections::HashMap;

pub use host::{HostError, HostPattern, normalize_host};
pub use path::{PathError, normalize_path};
use trie::PathTrie;

/// The number of a target in the list that was compiled with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u32);

/// How a rule's path is compared with the request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// Byte for byte; a trailing slash matters.
    Exact,
    /// Element by element; a trailing slash on either side does not matter.
    Prefix,
}

/// Immutable host and path rules. Built by [`Builder`].
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: HashMap<Box<str>, HostRules>,
    wildcard: HashMap<Box<str>, HostRules>,
    any: HostRules,
    paths: usize,
}

#[derive(Debug, Default)]
struct HostRules {
    paths: PathTrie,
    default: Option<TargetId>,
}

impl RouteTable {
    /// The target for a request, or `None` when nothing matches.
    ///
    /// `host` and `path` are in the normal forms of [`normalize_host`] and [`normalize_path`]. An exact host is
    /// asked before a wildcard and a wildcard before the rules without a host; the first that has a matching
    /// path wins. Default targets are asked only after every rule, in the same order.
    pub fn lookup(&self, host: &str, path: &str) -> Option<TargetId> {
        let exact = self.exact.get(host);
        if let Some(found) = exact.and_then(|rules| rules.paths.lookup(path)) {
            return Some(found);
        }
        // `*.foo.com` stands for exactly one label, so only the part after the first dot can be a key.
        let wildcard = host.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        let default = |rules: Option<&HostRules>| rules.and_then(|rules| rules.default);
        wildcard
            .and_then(|rules| rules.paths.lookup(path))
            .or_else(|| self.any.paths.lookup(path))
            .or_else(|| default(exact))
            .or_else(|| default(wildcard))
            .or(self.any.default)
    }

    /// Hosts with rules of their own, wildcards included.
    pub fn hosts(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Path rules over all hosts.
    pub fn paths(&self) -> usize {
        self.paths
    }
}

/// Collects rules into a [`RouteTable`].
#[derive(Debug, Default)]
pub struct Builder {
    table: RouteTable,
}

impl Builder {
    /// Adds a rule, unless that host and path are taken: then nothing changes and the holder is returned.
    ///
    /// `path` is in normal form. The caller adds rules in the order of their precedence.
    pub fn rule(
        &mut self,
        host: &HostPattern,
        kind: PathKind,
        path: &str,
        target: TargetId,
    ) -> Result<(), TargetId> {
        self.host(host).paths.insert(kind, path, target)?;
        self.table.paths += 1;
        Ok(())
    }

    /// Sets the target for a host's requests that no rule matches, unless it is taken: then the holder is
    /// returned.
    pub fn default_target(&mut self, host: &HostPattern, target: TargetId) -> Result<(), TargetId> {
        let slot = &mut self.host(host).default;
        if let Some(holder) = *slot {
            return Err(holder);
        }
        *slot = Some(target);
        Ok(())
    }

    /// The finished table.
    pub fn build(self) -> RouteTable {
        self.table
    }

    fn host(&mut self, host: &HostPattern) -> &mut HostRules {
        match host {
            HostPattern::Any => &mut self.table.any,
            HostPattern::Exact(name) => self.table.exact.entry(name.as_str().into()).or_default(),
            HostPattern::Wildcard(parent) => self.table.wildcard.entry(parent.as_str().into()).or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
