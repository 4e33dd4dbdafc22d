//! What is true of a host because any one Ingress says so.

use std::collections::BTreeSet;

use super::{IngressFact, tls_hosts};
use crate::table::HostPattern;

/// Sets of hosts, complete before the first rule is made.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    tls: BTreeSet<HostPattern>,
    patterns: BTreeSet<HostPattern>,
}

impl Hosts {
    /// Takes in an Ingress; `patterns` says whether its paths are patterns.
    pub(super) fn note(&mut self, ingress: &IngressFact, patterns: bool) {
        for tls in ingress.spec.tls.iter().flatten() {
            let hosts = tls_hosts(ingress, tls.hosts.as_deref());
            self.tls.extend(hosts.into_iter().filter_map(|host| HostPattern::parse(host).ok()));
        }
        if patterns {
            self.patterns.extend(rule_hosts(ingress));
        }
    }

    /// Whether some Ingress has TLS for the host, with a secret or with the default certificate.
    pub(super) fn have_tls(&self, host: &HostPattern) -> bool {
        let covered = |name: &str| {
            let parent = name.split_once('.').map(|(_, parent)| HostPattern::Wildcard(parent.to_owned()));
            parent.is_some_and(|parent| self.tls.contains(&parent))
        };
        !self.tls.is_empty()
            && (self.tls.contains(host) || matches!(host, HostPattern::Exact(name) if covered(name)))
    }

    /// Whether all paths of the host are patterns, because those of some Ingress are.
    pub(super) fn have_patterns(&self, host: &HostPattern) -> bool {
        self.patterns.contains(host)
    }
}

/// The hosts of an Ingress's rules, in order; those that cannot be served are left out.
pub(super) fn rule_hosts(ingress: &IngressFact) -> impl Iterator<Item = HostPattern> {
    let rules = ingress.spec.rules.iter().flatten();
    rules.filter_map(|rule| HostPattern::parse(rule.host.as_deref().unwrap_or_default()).ok())
}
