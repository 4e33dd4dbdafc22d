//! The rules of one host, made of those of all Ingresses that have some for it.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::HTTPIngressPath;

use super::own::{Own, Plain};
use super::{IngressFact, Problem, Reason, Snapshot, TargetSpec};
use crate::policy::ClientCertificates;
use crate::table::{HostPattern, RuleSet};

/// An Ingress with rules for the host.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) own: &'a Own,
    pub(super) ingress: &'a IngressFact,
}

/// One host being compiled.
pub(super) struct HostCompilation<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) plain: &'a Plain,
    pub(super) host: &'a HostPattern,
    /// Some Ingress has TLS for the host.
    pub(super) has_tls: bool,
    /// All paths of the host are patterns, because those of some Ingress are.
    pub(super) has_patterns: bool,
    /// What the host asks of its clients, for all of its rules.
    pub(super) clients: Option<Arc<ClientCertificates>>,
    /// Connections of TLS for the host go to its endpoints as they are.
    pub(super) passthrough: bool,
    pub(super) rules: RuleSet<Arc<TargetSpec>>,
    pub(super) problems: Vec<Problem>,
    /// Those of the Ingress at hand.
    targets: Vec<Arc<TargetSpec>>,
}

impl<'a> HostCompilation<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        plain: &'a Plain,
        host: &'a HostPattern,
        has_tls: bool,
        has_patterns: bool,
    ) -> Self {
        let (rules, problems, targets) = (RuleSet::default(), Vec::new(), Vec::new());
        let (clients, passthrough) = (None, false);
        Self { snapshot, plain, host, has_tls, has_patterns, clients, passthrough, rules, problems, targets }
    }

    /// Takes in all Ingresses; they come by age, for a host and path that two of them have belongs to the older one.
    pub(super) fn members(&mut self, members: &[Member<'a>]) {
        self.of_connections(members);
        for member in members.iter().filter(|member| !member.own.is_canary()) {
            self.targets.clear();
            self.add_rules(*member);
        }
        // What builds on the rules of others comes after all of them.
        for member in members {
            self.targets.clear();
            match &member.own.notes.canary {
                Some(canary) => self.canary(*member, canary),
                None => self.app_root(*member),
            }
        }
    }

    /// What is decided when a connection is opened, before any path is known, holds for all rules of the host: else a rule
    /// of one Ingress would open what another's closes. The oldest Ingress that says something is heard.
    fn of_connections(&mut self, members: &[Member<'a>]) {
        for member in members.iter().filter(|member| !member.own.is_canary()) {
            let notes = &member.own.notes;
            self.passthrough |= notes.passthrough;
            match (&self.clients, &notes.clients) {
                (None, Some(clients)) => self.clients = Some(Arc::clone(clients)),
                (Some(first), Some(clients)) if first != clients => {
                    let text = format!(
                        "annotations auth-tls-* are not in use for {}: an older Ingress asks its clients for other \
                         certificates",
                        self.described()
                    );
                    self.problem(*member, Reason::Conflict, text);
                }
                _ => {}
            }
        }
    }

    /// The paths that the Ingress has for the host.
    pub(super) fn paths(&self, member: Member<'a>) -> impl Iterator<Item = &'a HTTPIngressPath> + use<'a> {
        let at = member.own.hosts.binary_search_by(|(host, _)| host.cmp(self.host));
        let numbers = at.map_or(&[][..], |at| member.own.hosts[at].1.as_slice());
        let rules = member.ingress.spec.rules.as_deref().unwrap_or_default();
        let rules = numbers.iter().filter_map(|number| rules.get(*number as usize)?.http.as_ref());
        rules.flat_map(|http| &http.paths)
    }

    pub(super) fn problem(&mut self, member: Member<'_>, reason: Reason, text: String) {
        let host = Some(self.host.clone());
        self.problems.push(Problem { host, ..Problem::new(member.ingress, reason, text) });
    }

    /// The same target for the same backend and policy of the same Ingress.
    pub(super) fn known_or_new(&mut self, spec: TargetSpec) -> Arc<TargetSpec> {
        if let Some(known) = self.targets.iter().find(|target| ***target == spec) {
            return Arc::clone(known);
        }
        let new = Arc::new(spec);
        self.targets.push(Arc::clone(&new));
        new
    }

    /// The host in a message.
    pub(super) fn described(&self) -> String {
        describe(self.host)
    }
}

/// The host in a message.
pub(super) fn describe(host: &HostPattern) -> String {
    match host {
        HostPattern::Any => "any host".to_owned(),
        HostPattern::Exact(name) => format!("host {name:?}"),
        HostPattern::Wildcard(parent) => format!("host \"*.{parent}\""),
    }
}
