//! What one host is routed by: collected in a [`RuleSet`], served from [`HostRules`].

use std::collections::BTreeMap;

use super::paths::{Key, Paths};
use super::{PathKind, Pattern};

/// Patterns of one host.
pub const MAX_PATTERNS: usize = 512;

/// Why a rule was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken<T> {
    /// Host and path belong to this target.
    By(T),
    /// The host has as many patterns as it may have.
    Full,
}

/// Rules of one host, to which can be added. The caller adds them in the order of their precedence.
#[derive(Debug, Clone)]
pub struct RuleSet<T> {
    paths: BTreeMap<Key, T>,
    /// The longest first.
    patterns: Vec<(Pattern, T)>,
    default: Option<T>,
}

/// Immutable rules of one host, made by [`RuleSet::build`].
#[derive(Debug)]
pub struct HostRules<T> {
    pub(super) paths: Paths<T>,
    /// The longest first. Asked after `paths`.
    pub(super) patterns: Box<[(Pattern, T)]>,
    pub(super) default: Option<T>,
}

impl<T> Default for RuleSet<T> {
    fn default() -> Self {
        Self { paths: BTreeMap::new(), patterns: Vec::new(), default: None }
    }
}

impl<T: Clone> RuleSet<T> {
    /// Adds a rule, unless the path is taken: then nothing changes and the holder is returned. `path` is in normal form.
    pub fn rule(&mut self, kind: PathKind, path: &str, target: T) -> Result<(), T> {
        use std::collections::btree_map::Entry;
        match self.paths.entry(kind.key(path)) {
            Entry::Occupied(holder) => Err(holder.get().clone()),
            Entry::Vacant(place) => {
                place.insert(target);
                Ok(())
            }
        }
    }

    /// Adds a pattern, unless the host has the same one already. Where patterns are, they are the host's rules: what
    /// [`RuleSet::rule`] adds beside them is asked first.
    pub fn pattern(&mut self, pattern: Pattern, target: T) -> Result<(), Taken<T>> {
        // ingress-nginx's order, which is the one that manifests were written for: the longest first, then the last.
        let new = pattern.as_str();
        let place = |(known, _): &(Pattern, T)| {
            let known = known.as_str();
            new.len().cmp(&known.len()).then_with(|| new.cmp(known))
        };
        match self.patterns.binary_search_by(place) {
            Ok(at) => Err(Taken::By(self.patterns[at].1.clone())),
            Err(_) if self.patterns.len() >= MAX_PATTERNS => Err(Taken::Full),
            Err(at) => {
                self.patterns.insert(at, (pattern, target));
                Ok(())
            }
        }
    }

    /// Sets the target of requests that no rule matches, unless it is taken: then the holder is returned.
    pub fn default_target(&mut self, target: T) -> Result<(), T> {
        if let Some(holder) = &self.default {
            return Err(holder.clone());
        }
        self.default = Some(target);
        Ok(())
    }
}

impl<T> RuleSet<T> {
    /// The slot of a rule that was added: its target can be replaced.
    pub fn rule_mut(&mut self, kind: PathKind, path: &str) -> Option<&mut T> {
        self.paths.get_mut(&kind.key(path))
    }

    /// The slot of a pattern that was added.
    pub fn pattern_mut(&mut self, pattern: &str) -> Option<&mut T> {
        let mut patterns = self.patterns.iter_mut();
        patterns.find(|(known, _)| known.as_str() == pattern).map(|(_, target)| target)
    }

    /// Whether there is neither a rule nor a default.
    pub fn is_empty(&self) -> bool {
        self.paths() == 0 && self.default.is_none()
    }

    /// Path rules, patterns included.
    pub fn paths(&self) -> usize {
        self.paths.len() + self.patterns.len()
    }

    /// The same rules with other targets.
    pub fn map<U>(self, mut other: impl FnMut(T) -> U) -> RuleSet<U> {
        RuleSet {
            paths: self.paths.into_iter().map(|(key, target)| (key, other(target))).collect(),
            patterns: self.patterns.into_iter().map(|(pattern, target)| (pattern, other(target))).collect(),
            default: self.default.map(other),
        }
    }

    /// The finished rules.
    pub fn build(self) -> HostRules<T> {
        let (paths, patterns) = (Paths::new(self.paths.into_iter()), self.patterns.into());
        HostRules { paths, patterns, default: self.default }
    }
}

impl<T> HostRules<T> {
    /// The target of a path in normal form, by the rules alone.
    pub fn lookup(&self, path: &str) -> Option<&T> {
        let found = self.paths.lookup(path);
        if self.patterns.is_empty() || found.is_some() {
            return found;
        }
        let mut patterns = self.patterns.iter();
        patterns.find(|(pattern, _)| pattern.matches(path.as_bytes())).map(|(_, target)| target)
    }

    /// The targets of all rules, in no order; one that several rules have comes as often.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.paths.targets().chain(self.patterns.iter().map(|(_, target)| target)).chain(&self.default)
    }
}
