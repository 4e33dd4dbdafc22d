//! Why another rule wins, in words. The table decides that; this only says what it decides by.

use crate::table::{HostPattern, Match, RulePath};

/// Why `other`, which matches too, comes after the rule that wins.
pub(super) fn why<T>(winner: &Match<'_, T>, other: &Match<'_, T>) -> String {
    match (&winner.path, &other.path) {
        (RulePath::Default, RulePath::Default) => host(winner, other),
        (_, RulePath::Default) => "a default backend is asked after every rule".to_owned(),
        _ if winner.host != other.host => host(winner, other),
        (RulePath::Exact(_), RulePath::Prefix(path)) if *path == *winner.path.text() => {
            "the same path, and exact comes before prefix".to_owned()
        }
        (RulePath::Exact(_) | RulePath::Prefix(_), RulePath::Exact(_) | RulePath::Prefix(_)) => {
            format!("it is shorter than {}", winner.path.text())
        }
        (RulePath::Pattern(_), RulePath::Pattern(_))
            if other.path.text().len() < winner.path.text().len() =>
        {
            "patterns are tried the longest first".to_owned()
        }
        (RulePath::Pattern(_), RulePath::Pattern(_)) => {
            "patterns of one length are tried the last in the alphabet first".to_owned()
        }
        _ => "patterns are tried after paths".to_owned(),
    }
}

fn host<T>(winner: &Match<'_, T>, other: &Match<'_, T>) -> String {
    let name = |host: &HostPattern| match host {
        HostPattern::Exact(_) => "the host itself",
        HostPattern::Wildcard(_) => "a wildcard",
        HostPattern::Any => "rules without a host",
    };
    format!("{} comes before {}", name(&winner.host), name(&other.host))
}
