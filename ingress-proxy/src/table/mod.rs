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
//! are not trusted to leave each other's lookups alone. Hosts whose paths are patterns are the exception: there the
//! patterns are tried one after the other, at most [`MAX_PATTERNS`] of them; other hosts pay one branch for that.

mod host;
mod path;
mod pattern;
mod trie;

use std::collections::HashMap;

pub use host::{HostError, HostPattern, normalize_host};
pub use path::{PathError, normalize_path};
pub use pattern::{Captures, Pattern, PatternError};
use trie::PathTrie;

/// Patterns of one host.
pub const MAX_PATTERNS: usize = 512;

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

#[derive(Debug, Default, Clone)]
struct HostRules {
    paths: PathTrie,
    /// The longest first. Asked after `paths`.
    patterns: Vec<(Pattern, TargetId)>,
    default: Option<TargetId>,
}

impl HostRules {
    fn lookup(&self, path: &str) -> Option<TargetId> {
        let found = self.paths.lookup(path);
        if self.patterns.is_empty() || found.is_some() {
            return found;
        }
        let mut patterns = self.patterns.iter();
        patterns.find(|(pattern, _)| pattern.matches(path.as_bytes())).map(|(_, target)| *target)
    }
}

/// Why a rule was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Host and path belong to this target.
    By(TargetId),
    /// The host has as many patterns as it may have.
    Full,
}

impl RouteTable {
    /// The target for a request, or `None` when nothing matches.
    ///
    /// `host` and `path` are in the normal forms of [`normalize_host`] and [`normalize_path`]. An exact host is
    /// asked before a wildcard and a wildcard before the rules without a host; the first that has a matching
    /// path wins. Default targets are asked only after every rule, in the same order.
    pub fn lookup(&self, host: &str, path: &str) -> Option<TargetId> {
        let exact = self.exact.get(host);
        if let Some(found) = exact.and_then(|rules| rules.lookup(path)) {
            return Some(found);
        }
        // `*.foo.com` stands for exactly one label, so only the part after the first dot can be a key.
        let wildcard = host.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        let default = |rules: Option<&HostRules>| rules.and_then(|rules| rules.default);
        wildcard
            .and_then(|rules| rules.lookup(path))
            .or_else(|| self.any.lookup(path))
            .or_else(|| default(exact))
            .or_else(|| default(wildcard))
            .or(self.any.default)
    }

    /// Hosts with rules of their own, wildcards included.
    pub fn hosts(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Path rules over all hosts, patterns included, aliases not.
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

    /// Adds a pattern, unless the host has the same one already. Where patterns are, they are the host's rules: what
    /// [`Builder::rule`] adds beside them is asked first.
    pub fn pattern(&mut self, host: &HostPattern, pattern: Pattern, target: TargetId) -> Result<(), Taken> {
        let patterns = &mut self.host(host).patterns;
        // ingress-nginx's order, which is the one that manifests were written for: the longest first, then the last.
        let new = pattern.as_str();
        let place = |(known, _): &(Pattern, TargetId)| {
            let known = known.as_str();
            new.len().cmp(&known.len()).then_with(|| new.cmp(known))
        };
        match patterns.binary_search_by(place) {
            Ok(at) => Err(Taken::By(patterns[at].1)),
            Err(_) if patterns.len() >= MAX_PATTERNS => Err(Taken::Full),
            Err(at) => {
                patterns.insert(at, (pattern, target));
                self.table.paths += 1;
                Ok(())
            }
        }
    }

    /// The slot of a rule that was added: its target can be replaced.
    pub fn rule_mut(&mut self, host: &HostPattern, kind: PathKind, path: &str) -> Option<&mut TargetId> {
        self.known(host)?.paths.slot(kind, path)
    }

    /// The slot of a pattern that was added.
    pub fn pattern_mut(&mut self, host: &HostPattern, pattern: &str) -> Option<&mut TargetId> {
        let mut patterns = self.known(host)?.patterns.iter_mut();
        patterns.find(|(known, _)| known.as_str() == pattern).map(|(_, target)| target)
    }

    /// Whether the host has rules or a default of its own.
    pub fn has(&self, host: &HostPattern) -> bool {
        match host {
            HostPattern::Any => true,
            HostPattern::Exact(name) => self.table.exact.contains_key(name.as_str()),
            HostPattern::Wildcard(parent) => self.table.wildcard.contains_key(parent.as_str()),
        }
    }

    /// Gives `alias` the rules that `host` has now. The caller made sure that `alias` has none.
    pub fn alias(&mut self, alias: &HostPattern, host: &HostPattern) {
        if let Some(rules) = self.known(host).cloned() {
            *self.host(alias) = rules;
        }
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

    fn known(&mut self, host: &HostPattern) -> Option<&mut HostRules> {
        match host {
            HostPattern::Any => Some(&mut self.table.any),
            HostPattern::Exact(name) => self.table.exact.get_mut(name.as_str()),
            HostPattern::Wildcard(parent) => self.table.wildcard.get_mut(parent.as_str()),
        }
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
