//! From Ingress objects to what is served, without I/O.
//!
//! A [`Compiler`] is told what changed in a [`Snapshot`] of facts, and tells what that changes: rules of hosts,
//! certificates, secrets to watch, and what is wrong. What it tells depends on the snapshot alone: [`compile`], the pure
//! function from a snapshot to everything that is served, is a compiler that is told everything at once, and every rule is
//! tested on values by it. One bad object costs only itself: the others compile as if it were not there, and a request to
//! a broken backend gets 503 with the reason instead of falling through to someone else's rule.

mod address;
mod annotations;
mod class;
mod compiler;
mod endpoints;
mod facts;
mod health;
mod host;
mod hosts;
mod own;
mod policies;
mod problem;
mod protocol;
mod rules;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use address::Address;
pub use compiler::Compiler;
pub use endpoints::{Endpoints, endpoints};
pub use facts::{
    ClassFact, EndpointFact, IngressFact, ObjectKey, PortFact, SecretFact, ServiceFact, SliceFact, Snapshot,
};
pub use health::{CheckKind, HealthCheck};
pub use problem::{Problem, Reason};
pub(crate) use protocol::AUTHORITIES;
pub use protocol::{Credentials, EndpointTls, Protocol};
pub use update::{Changes, HostUpdate, Totals, Update};

use crate::policy::Policy;
use crate::table::{HostPattern, RouteTable};

/// The value of `IngressClass.spec.controller` that this proxy answers to.
pub const CONTROLLER: &str = "weir.dev/ingress";

/// A Service port: what a target's endpoints are found by. The port is known by name, because `EndpointSlices`
/// carry the name and the number may differ per pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The Service.
    pub service: ObjectKey,
    /// The name of the Service's port; empty for a Service's only, unnamed port.
    pub port: String,
    /// What is spoken there because the Ingress says so; else `appProtocol` does.
    pub protocol: Option<Protocol>,
    /// How TLS is spoken, if it is.
    pub tls: EndpointTls,
    /// How its endpoints are checked, if they are.
    pub health: Option<Arc<HealthCheck>>,
}

impl BackendKey {
    /// A Service port of which nothing else is said.
    pub fn new(service: ObjectKey, port: &str) -> Self {
        Self { service, port: port.to_owned(), protocol: None, tls: EndpointTls::default(), health: None }
    }
}

/// Where a rule sends its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    /// The Ingress whose rule this is.
    pub owner: ObjectKey,
    /// The Service's name as written, for metrics and logs.
    pub service: String,
    /// Where requests go, or why they cannot go anywhere.
    pub backend: Result<BackendKey, String>,
    /// What becomes of requests before and after.
    pub(crate) policy: Option<Arc<Policy>>,
    /// Where the policy's canary sends requests.
    pub(crate) canary: Option<Arc<TargetSpec>>,
    /// Who answers when there are no endpoints, and with error pages.
    pub(crate) fallback: Option<Arc<TargetSpec>>,
}

/// Everything the proxy serves with.
#[derive(Debug, Default)]
pub struct Compiled {
    /// Host and path rules.
    pub table: RouteTable<Arc<TargetSpec>>,
    /// Which secret's certificate answers for a host. Only secrets that hold a usable pair are named.
    pub certificates: BTreeMap<HostPattern, ObjectKey>,
    /// Secrets that must be watched.
    pub secrets: BTreeSet<ObjectKey>,
    /// Ingresses that this proxy serves: their status is ours to write.
    pub claimed: BTreeSet<ObjectKey>,
    /// What is wrong, and with which object.
    pub problems: Vec<Problem>,
}

/// Compiles the snapshot. `class_name` is the class that the old annotation may name without an IngressClass.
pub fn compile(snapshot: &Snapshot, class_name: &str) -> Compiled {
    let mut compiled = Compiled::default();
    compiled.apply(Compiler::new(class_name).update(snapshot, &Changes::all(snapshot)));
    compiled
}

impl Compiled {
    /// Takes in what is different.
    pub(crate) fn apply(&mut self, update: Update) {
        let mut aliases = Vec::new();
        for (host, update) in update.hosts {
            match update {
                HostUpdate::Rules(rules) => self.table.set(&host, Some(Arc::new(rules.build()))),
                HostUpdate::SameAs(other) => aliases.push((host, other)),
                HostUpdate::Gone => self.table.set(&host, None),
            }
        }
        for (alias, host) in aliases {
            let rules = self.table.rules(&host).cloned();
            self.table.set(&alias, rules);
        }
        for (host, (_, secret)) in update.certificates {
            match secret {
                Some(secret) => self.certificates.insert(host, secret),
                None => self.certificates.remove(&host),
            };
        }
        for (set, changes) in [(&mut self.secrets, update.secrets), (&mut self.claimed, update.ingresses)] {
            for (key, is_in) in changes {
                if is_in {
                    set.insert(key)
                } else {
                    set.remove(&key)
                };
            }
        }
        for mended in update.mended {
            if let Some(at) = self.problems.iter().position(|problem| *problem == mended) {
                self.problems.remove(at);
            }
        }
        self.problems.extend(update.problems);
        self.problems.sort_by(|a, b| a.ingress.cmp(&b.ingress));
    }
}

#[cfg(test)]
mod tests;
