//! From Ingress objects to a route table: one pure function.
//!
//! [`compile`] reads a [`Snapshot`] of facts and returns everything the proxy serves with, and the list of
//! what is wrong. It does no I/O and keeps no state, so that every rule is tested on values; the watching side
//! calls it after each change and swaps the result in whole. One bad object costs only itself: the others
//! compile as if it were not there, and a request to a broken backend gets 503 with the reason instead of
//! falling through to someone else's rule.

mod annotations;
mod class;
mod endpoints;
mod facts;
mod hosts;
mod policies;
mod problem;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use endpoints::{Endpoints, endpoints};
pub use facts::{
    ClassFact, EndpointFact, IngressFact, ObjectKey, PortFact, SecretFact, ServiceFact, SliceFact, Snapshot,
};
pub use problem::{Problem, Reason};

use crate::policy::{Policy, Settings};
use crate::table::{Builder, HostPattern, RouteTable, TargetId};
use annotations::Annotations;
use hosts::Hosts;

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
    /// HTTP/2 in cleartext is spoken there because the Ingress says so.
    pub h2c: bool,
}

/// What a [`TargetId`] stands for.
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
    /// Where the policy's canary sends requests; an earlier target of the list.
    pub(crate) canary: Option<TargetId>,
    /// Who answers when there are no endpoints, and with error pages; an earlier target of the list.
    pub(crate) fallback: Option<TargetId>,
}

/// Everything the proxy serves with.
#[derive(Debug, Default)]
pub struct Compiled {
    /// Host and path rules.
    pub table: RouteTable,
    /// What the table's target numbers mean.
    pub targets: Vec<TargetSpec>,
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
    let mut compilation = Compilation {
        snapshot,
        builder: Builder::default(),
        hosts: Hosts::default(),
        plain: Plain::default(),
        out: Compiled::default(),
    };
    let mut claimed: Vec<&IngressFact> = Vec::new();
    for ingress in snapshot.ingresses.values() {
        match class::claim(snapshot, ingress, class_name) {
            class::Claim::Ours => claimed.push(ingress),
            class::Claim::Theirs => {}
            class::Claim::UnknownClass(name) => {
                let text = format!("IngressClass {name:?} does not exist: create it, or name one that does");
                compilation.problem(ingress, Reason::UnknownClass, text);
            }
        }
    }
    // A host and path that two Ingresses claim belongs to the older one; creation has one-second steps, the
    // name decides within one.
    claimed.sort_by_key(|ingress| (ingress.created, &ingress.key));
    let claimed: Vec<Claimed<'_>> = claimed.into_iter().map(|ingress| compilation.claim(ingress)).collect();
    for claimed in &claimed {
        compilation.certificates(claimed.ingress);
        if claimed.notes.canary.is_none() {
            compilation.rules(claimed);
        }
    }
    // What builds on the rules of others comes after all of them.
    for claimed in &claimed {
        match &claimed.notes.canary {
            Some(canary) => compilation.canary(claimed, canary),
            None => compilation.more_hosts(claimed),
        }
    }
    let Compilation { builder, mut out, .. } = compilation;
    out.table = builder.build();
    out
}

struct Compilation<'a> {
    snapshot: &'a Snapshot,
    builder: Builder,
    hosts: Hosts,
    /// What Ingresses without annotations have in common, so that many of them take neither time nor memory.
    plain: Plain,
    out: Compiled,
}

struct Plain {
    notes: Arc<Annotations>,
    settings: Arc<Settings>,
    with_tls: Arc<Policy>,
}

impl Default for Plain {
    fn default() -> Self {
        let notes = Annotations::read(&ObjectKey::new("", ""), &BTreeMap::new());
        let settings = Arc::new(notes.settings.clone());
        let with_tls = Policy { settings: Arc::clone(&settings), host_has_tls: true, ..Policy::default() };
        Self { notes: Arc::new(notes), settings, with_tls: Arc::new(with_tls) }
    }
}

/// An Ingress of ours, and what its annotations say.
struct Claimed<'a> {
    ingress: &'a IngressFact,
    notes: Arc<Annotations>,
    settings: Arc<Settings>,
    idle_without_tls: bool,
}

impl<'a> Compilation<'a> {
    /// Reads the annotations, and notes what they mean for the hosts.
    fn claim(&mut self, ingress: &'a IngressFact) -> Claimed<'a> {
        self.out.claimed.insert(ingress.key.clone());
        if ingress.annotations.is_empty() {
            self.hosts.note(ingress, false);
            let (notes, settings) = (Arc::clone(&self.plain.notes), Arc::clone(&self.plain.settings));
            return Claimed { ingress, notes, settings, idle_without_tls: true };
        }
        let mut notes = Annotations::read(&ingress.key, &ingress.annotations);
        for (reason, text) in std::mem::take(&mut notes.problems) {
            self.problem(ingress, reason, text);
        }
        let mut settings = std::mem::take(&mut notes.settings);
        if let Some(source) = notes.passwords.as_ref().filter(|_| notes.canary.is_none()) {
            match self.users(ingress, source) {
                Ok(auth) => settings.auth = Some(auth),
                Err(why) => settings.closed = settings.closed.or(Some(why.into())),
            }
        }
        self.hosts.note(ingress, notes.patterns && notes.canary.is_none());
        let idle_without_tls = settings.are_idle_without_tls();
        let plain = &self.plain.settings;
        let settings = if settings == **plain { Arc::clone(plain) } else { Arc::new(settings) };
        Claimed { ingress, notes: Arc::new(notes), settings, idle_without_tls }
    }

    fn problem(&mut self, ingress: &IngressFact, reason: Reason, text: String) {
        self.out.problems.push(Problem {
            ingress: ingress.key.clone(),
            uid: ingress.uid.clone(),
            reason,
            text,
        });
    }

    fn certificates(&mut self, ingress: &IngressFact) {
        for tls in ingress.spec.tls.iter().flatten() {
            let Some(name) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else {
                continue; // no secret: these hosts are served with the default certificate
            };
            let key = ObjectKey::new(&ingress.key.namespace, name);
            self.out.secrets.insert(key.clone());
            match self.snapshot.secrets.get(&key) {
                None => continue, // not read yet
                Some(SecretFact::Usable(_)) => {}
                Some(SecretFact::Missing) => {
                    let text = format!(
                        "Secret {:?} for TLS does not exist in namespace {:?}: its hosts are served with the \
                         default certificate until it does",
                        key.name, key.namespace
                    );
                    self.problem(ingress, Reason::BadSecret, text);
                    continue;
                }
                Some(fact @ (SecretFact::Broken(_) | SecretFact::Opaque(_))) => {
                    let why = match fact {
                        SecretFact::Broken(why) => why.as_str(),
                        _ => "it has no \"tls.crt\"",
                    };
                    let text = format!(
                        "Secret {:?} for TLS is not usable: {why}. Its hosts are served with the default \
                         certificate until it is made anew: kubectl create secret tls {} --cert=FILE --key=FILE",
                        key.name, key.name
                    );
                    self.problem(ingress, Reason::BadSecret, text);
                    continue;
                }
            }
            for host in tls_hosts(ingress, tls.hosts.as_deref()) {
                match HostPattern::parse(host) {
                    // The oldest Ingress keeps a host; that another names it too is common and harmless.
                    Ok(pattern) => {
                        self.out.certificates.entry(pattern).or_insert_with(|| key.clone());
                    }
                    Err(error) => {
                        let text = format!("spec.tls host {host:?} cannot be served: {error}");
                        self.problem(ingress, Reason::InvalidHost, text);
                    }
                }
            }
        }
    }
}

/// The hosts that a certificate is for: those listed or, where the list is empty, those of the rules.
fn tls_hosts<'a>(ingress: &'a IngressFact, listed: Option<&'a [String]>) -> Vec<&'a str> {
    match listed {
        Some(hosts) if !hosts.is_empty() => hosts.iter().map(String::as_str).collect(),
        _ => ingress
            .spec
            .rules
            .iter()
            .flatten()
            .filter_map(|rule| rule.host.as_deref())
            .filter(|host| !host.is_empty())
            .collect(),
    }
}

#[cfg(test)]
mod tests;
