//! The table as people ask about it: every rule that matches a request, and every rule that there is.
//!
//! No request pays for this. The order of [`RouteTable::matches`] is that of [`RouteTable::lookup`], which a test holds
//! against it for tables of every shape.

use std::sync::Arc;

use super::{HostPattern, HostRules, PathKind, RouteTable};

/// What a rule says about the path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RulePath {
    /// This path alone.
    Exact(String),
    /// This path and all below it. Without a trailing slash, but for `/`.
    Prefix(String),
    /// All paths that match the expression.
    Pattern(String),
    /// Requests that no rule matches.
    Default,
}

impl RulePath {
    /// Kubernetes' words, in small letters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exact(_) => "exact",
            Self::Prefix(_) => "prefix",
            Self::Pattern(_) => "pattern",
            Self::Default => "default",
        }
    }

    /// The path or expression; empty for the default.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Pattern(text) => text,
            Self::Default => "",
        }
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<'t, T> {
    /// Whose requests it is for.
    pub host: HostPattern,
    /// Which of them.
    pub path: RulePath,
    /// Where it sends them.
    pub target: &'t T,
}

impl<T> RouteTable<T> {
    /// All rules that match a request, in the order of their precedence: the first is the one that serves it.
    pub fn matches(&self, host: &str, path: &str) -> Vec<Match<'_, T>> {
        let wildcard =
            || HostPattern::Wildcard(host.split_once('.').map_or("", |(_, parent)| parent).to_owned());
        let hosts: Vec<(HostPattern, &Arc<HostRules<T>>)> = [
            self.0.exact(host).map(|rules| (HostPattern::Exact(host.to_owned()), rules)),
            self.0.wildcard(host).map(|rules| (wildcard(), rules)),
            self.0.any().map(|rules| (HostPattern::Any, rules)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let of = |host: &HostPattern, path, target| Match { host: host.clone(), path, target };
        let matching = hosts.iter().flat_map(|(host, rules)| {
            rules.matches(path).into_iter().map(move |(path, target)| of(host, path, target))
        });
        let defaults = hosts.iter().filter_map(|(host, rules)| {
            rules.default.as_ref().map(|target| of(host, RulePath::Default, target))
        });
        matching.chain(defaults).collect()
    }

    /// The rules of every host, by host; hosts that share theirs come with the same ones.
    pub fn by_host(&self) -> Vec<(HostPattern, &Arc<HostRules<T>>)> {
        let mut hosts: Vec<_> = self.0.iter().collect();
        hosts.sort_by(|(a, _), (b, _)| a.cmp(b));
        hosts
    }
}

impl<T> HostRules<T> {
    fn matches(&self, path: &str) -> Vec<(RulePath, &T)> {
        let paths =
            self.paths.matches(path).into_iter().map(|((path, kind), target)| (read(kind, &path), target));
        let patterns = self.patterns.iter().filter(|(pattern, _)| pattern.matches(path.as_bytes()));
        paths.chain(patterns.map(|(pattern, target)| (pattern_of(pattern), target))).collect()
    }

    /// All rules, by path; patterns in the order in which they are tried.
    pub fn rules(&self) -> Vec<(RulePath, &T)> {
        let paths = self.paths.rules().into_iter().map(|((path, kind), target)| (read(kind, &path), target));
        let mut paths: Vec<_> = paths.collect();
        paths.sort_by(|(a, _), (b, _)| (a.text(), a).cmp(&(b.text(), b)));
        let patterns = self.patterns.iter().map(|(pattern, target)| (pattern_of(pattern), target));
        let default = self.default.iter().map(|target| (RulePath::Default, target));
        paths.into_iter().chain(patterns).chain(default).collect()
    }
}

fn read(kind: PathKind, path: &str) -> RulePath {
    match kind {
        PathKind::Exact => RulePath::Exact(path.to_owned()),
        PathKind::Prefix if path.is_empty() => RulePath::Prefix("/".to_owned()),
        PathKind::Prefix => RulePath::Prefix(path.to_owned()),
    }
}

fn pattern_of(pattern: &super::Pattern) -> RulePath {
    RulePath::Pattern(pattern.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::{Pattern, RuleSet};

    /// Kinds and paths; few to be a list, many to be a trie; patterns and a default now and then.
    fn rules() -> impl Strategy<Value = HostRules<u32>> {
        let rule = (any::<bool>(), "(/[ab]{0,2}){1,4}/?", any::<u32>());
        let pattern = ("(/[ab.]{0,2}){1,3}", any::<u32>());
        let parts = (
            prop::collection::vec(rule, 0..80),
            prop::collection::vec(pattern, 0..3),
            prop::option::of(any::<u32>()),
        );
        parts.prop_map(|(rules, patterns, default)| {
            let mut set = RuleSet::default();
            for (is_exact, path, target) in rules {
                let kind = if is_exact { PathKind::Exact } else { PathKind::Prefix };
                let _ = set.rule(kind, &path.replace("//", "/"), target);
            }
            for (pattern, target) in patterns {
                let _ = set.pattern(Pattern::path(&pattern).unwrap(), target);
            }
            if let Some(default) = default {
                let _ = set.default_target(default);
            }
            set.build()
        })
    }

    proptest! {
        #[test]
        fn the_first_match_is_what_a_request_gets(
            (exact, wildcard, all) in (rules(), rules(), rules()),
            paths in prop::collection::vec("(/[ab]{0,2}){1,5}", 1..10),
        ) {
            let mut table = RouteTable::default();
            for (host, rules) in [("x.com", exact), ("*.com", wildcard), ("", all)] {
                table.set(&HostPattern::parse(host).unwrap(), Some(Arc::new(rules)));
            }
            for path in paths {
                for host in ["x.com", "y.com", "com", ""] {
                    let matches = table.matches(host, &path);
                    let first = matches.first().map(|first| first.target);
                    let found = table.lookup(host, &path);
                    prop_assert_eq!(first.map(std::ptr::from_ref), found.map(std::ptr::from_ref), "{}{}", host, path);
                    for one in &matches {
                        let rules = table.rules(&one.host).unwrap().rules();
                        prop_assert!(rules.iter().any(|(path, target)| *path == one.path && std::ptr::eq(*target, one.target)));
                    }
                }
            }
            for (_, rules) in table.by_host() {
                prop_assert_eq!(rules.rules().len(), rules.targets().count());
            }
        }
    }

    #[test]
    fn rules_say_what_they_are_in_the_order_of_their_precedence() {
        let mut own = RuleSet::default();
        for (kind, path, target) in [
            (PathKind::Prefix, "/", 0),
            (PathKind::Prefix, "/api/", 1),
            (PathKind::Exact, "/api", 2),
            (PathKind::Prefix, "/other", 3),
        ] {
            own.rule(kind, path, target).unwrap();
        }
        own.default_target(4).unwrap();
        let mut all = RuleSet::default();
        all.pattern(Pattern::path("/a.*").unwrap(), 5).unwrap();
        let mut table = RouteTable::default();
        table.set(&HostPattern::parse("x.com").unwrap(), Some(Arc::new(own.build())));
        table.set(&HostPattern::Any, Some(Arc::new(all.build())));
        let say = |one: &Match<'_, i32>| {
            format!("{} {} {} {}", one.host, one.path.kind(), one.path.text(), one.target)
        };
        let said: Vec<String> = table.matches("x.com", "/api").iter().map(say).collect();
        assert_eq!(
            said,
            [
                "x.com exact /api 2",
                "x.com prefix /api 1",
                "x.com prefix / 0",
                "* pattern /a.* 5",
                "x.com default  4"
            ]
        );
        let hosts: Vec<String> = table.by_host().iter().map(|(host, _)| host.to_string()).collect();
        assert_eq!(hosts, ["*", "x.com"]);
        let rules = table.rules(&HostPattern::parse("x.com").unwrap()).unwrap();
        let order: Vec<i32> = rules.rules().into_iter().map(|(_, target)| *target).collect();
        assert_eq!(order, [0, 2, 1, 3, 4]);
    }
}
