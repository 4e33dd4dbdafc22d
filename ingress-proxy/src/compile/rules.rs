//! Rules and backends of one Ingress, put into the table.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressBackend, IngressRule, ServiceBackendPort};

use super::annotations::Protocol;
use super::policies::id;
use super::{BackendKey, Claimed, Compilation, IngressFact, ObjectKey, Reason, TargetSpec};
use crate::policy::{Policy, Rewrite};
use crate::table::{HostPattern, MAX_PATTERNS, PathKind, Pattern, Taken, TargetId, normalize_path};

impl Compilation<'_> {
    pub(super) fn rules(&mut self, claimed: &Claimed<'_>) {
        let ingress = claimed.ingress;
        let mut hosts = BTreeSet::new();
        for rule in ingress.spec.rules.iter().flatten() {
            let Some(host) = self.rule_host(ingress, rule) else { continue };
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                self.path(claimed, &host, path);
            }
            hosts.insert(host);
        }
        if let Some(backend) = &ingress.spec.default_backend {
            if hosts.is_empty() {
                hosts.insert(HostPattern::Any);
            }
            for host in hosts {
                let policy = self.policy(claimed, &host, None);
                let target = self.target(claimed, backend, policy);
                if let Err(holder) = self.builder.default_target(&host, target) {
                    self.conflict(ingress, &host, "the default backend", holder, target);
                }
            }
        }
    }

    /// The rule's host; notes it if it cannot be served.
    pub(super) fn rule_host(&mut self, ingress: &IngressFact, rule: &IngressRule) -> Option<HostPattern> {
        let field = rule.host.as_deref().unwrap_or_default();
        let host = HostPattern::parse(field);
        if let Err(error) = &host {
            let text = format!("spec.rules host {field:?} cannot be served: {error}");
            self.problem(ingress, Reason::InvalidHost, text);
        }
        host.ok()
    }

    fn path(&mut self, claimed: &Claimed<'_>, host: &HostPattern, path: &HTTPIngressPath) {
        let ingress = claimed.ingress;
        let written = written(path);
        if claimed.notes.patterns {
            match Pattern::path(written) {
                Ok(pattern) => self.pattern(claimed, host, pattern, path),
                Err(error) => {
                    let text = format!("path {written:?} is to be a pattern, but cannot be served: {error}");
                    self.problem(ingress, Reason::InvalidPath, text);
                }
            }
            return;
        }
        let normal = match normalize_path(written) {
            Ok(normal) => normal,
            Err(error) => {
                let text = format!("path {written:?} cannot be served: {error}");
                self.problem(ingress, Reason::InvalidPath, text);
                return;
            }
        };
        if self.hosts.have_patterns(host) {
            // Another Ingress made it one; what is no pattern means itself.
            let pattern = Pattern::path(&normal).or_else(|_| Pattern::path(&regex::escape(&normal)));
            if let Ok(pattern) = pattern {
                self.pattern(claimed, host, pattern, path);
            }
            return;
        }
        let policy = self.policy(claimed, host, None);
        let target = self.target(claimed, &path.backend, policy);
        if let Err(holder) = self.builder.rule(host, kind(path), &normal, target) {
            self.conflict(ingress, host, &format!("path {written:?}"), holder, target);
        }
    }

    fn pattern(
        &mut self,
        claimed: &Claimed<'_>,
        host: &HostPattern,
        pattern: Pattern,
        path: &HTTPIngressPath,
    ) {
        let (ingress, written) = (claimed.ingress, written(path));
        let rewrite =
            claimed.notes.rewrite.clone().map(|target| Rewrite { pattern: pattern.clone(), target });
        if let Some(rewrite) = rewrite.as_ref().filter(|rewrite| rewrite.target.groups() > pattern.groups()) {
            let text = format!(
                "rewrite-target names group ${}, but path {written:?} has {} of them: what is not there stays empty",
                rewrite.target.groups(),
                pattern.groups()
            );
            self.problem(ingress, Reason::BadAnnotation, text);
        }
        let policy = self.policy(claimed, host, rewrite);
        let target = self.target(claimed, &path.backend, policy);
        match self.builder.pattern(host, pattern, target) {
            Ok(()) => {}
            Err(Taken::By(holder)) => {
                self.conflict(ingress, host, &format!("path {written:?}"), holder, target);
            }
            Err(Taken::Full) => {
                let text = format!(
                    "path {written:?} of {} is not in use: the host has {MAX_PATTERNS} patterns already",
                    describe(host)
                );
                self.problem(ingress, Reason::InvalidPath, text);
            }
        }
    }

    /// The target's place in the table for this host and path, if some rule has exactly these.
    pub(super) fn slot(&mut self, host: &HostPattern, path: &HTTPIngressPath) -> Option<&mut TargetId> {
        let written = written(path);
        let normal = normalize_path(written);
        if !self.hosts.have_patterns(host) {
            return self.builder.rule_mut(host, kind(path), &normal.ok()?);
        }
        let text = normal.as_deref().unwrap_or(written);
        let text = if self.builder.pattern_mut(host, written).is_some() { written } else { text };
        self.builder.pattern_mut(host, text)
    }

    /// Two rules for the same requests: only worth an Event when they would go to different places.
    fn conflict(
        &mut self,
        ingress: &IngressFact,
        host: &HostPattern,
        what: &str,
        holder: TargetId,
        mine: TargetId,
    ) {
        let (holder, mine) = (&self.out.targets[holder.0 as usize], &self.out.targets[mine.0 as usize]);
        if holder.backend == mine.backend && holder.policy == mine.policy && holder.backend.is_ok() {
            return;
        }
        let text = format!(
            "{what} of {} is already served by Ingress {}, which is older: this rule is not in use",
            describe(host),
            holder.owner
        );
        self.problem(ingress, Reason::Conflict, text);
    }

    /// The target for a backend, the same number for the same backend and policy of the same Ingress.
    pub(super) fn target(
        &mut self,
        claimed: &Claimed<'_>,
        backend: &IngressBackend,
        policy: Option<Arc<Policy>>,
    ) -> TargetId {
        let ingress = claimed.ingress;
        let (service, backend) = match self.backend(ingress, backend) {
            Ok(key) => {
                let h2c = claimed.notes.protocol == Protocol::Grpc;
                (key.service.name.clone(), Ok(BackendKey { h2c, ..key }))
            }
            Err((service, reason, text)) => {
                self.problem(ingress, reason, text.clone());
                (service, Err(text))
            }
        };
        let default_backend =
            claimed.notes.default_backend.as_deref().filter(|_| claimed.notes.canary.is_none());
        let fallback = default_backend.and_then(|name| self.fallback(ingress, name));
        let owner = ingress.key.clone();
        self.known_or_new(TargetSpec { owner, service, backend, policy, canary: None, fallback })
    }

    /// The target of annotation `default-backend`: the Service's first port.
    fn fallback(&mut self, ingress: &IngressFact, name: &str) -> Option<TargetId> {
        let key = ObjectKey::new(&ingress.key.namespace, name);
        let port = self.snapshot.services.get(&key).and_then(|service| service.ports.first());
        let Some(port) = port else {
            let text = format!("annotation default-backend: Service {key} does not exist, or has no port");
            if !self.out.problems.iter().any(|known| known.text == text && known.ingress == ingress.key) {
                self.problem(ingress, Reason::BadService, text);
            }
            return None;
        };
        let backend = BackendKey { service: key, port: port.name.clone(), h2c: false };
        Some(self.known_or_new(TargetSpec {
            owner: ingress.key.clone(),
            service: name.to_owned(),
            backend: Ok(backend),
            policy: None,
            canary: None,
            fallback: None,
        }))
    }

    pub(super) fn known_or_new(&mut self, spec: TargetSpec) -> TargetId {
        // An Ingress's targets are the newest in the list, so the search ends at the first stranger.
        let own = self.out.targets.iter().enumerate().rev().take_while(|(_, t)| t.owner == spec.owner);
        let known = own.into_iter().find(|(_, target)| **target == spec).map(|(index, _)| id(index));
        known.unwrap_or_else(|| self.push(spec))
    }

    fn backend(
        &self,
        ingress: &IngressFact,
        backend: &IngressBackend,
    ) -> Result<BackendKey, (String, Reason, String)> {
        let Some(service) = &backend.service else {
            let text = "a backend is no Service: resource backends are not served".to_owned();
            return Err((String::new(), Reason::BadBackend, text));
        };
        let key = ObjectKey::new(&ingress.key.namespace, &service.name);
        let fail = |reason, text| Err((service.name.clone(), reason, text));
        let Some(fact) = self.snapshot.services.get(&key) else {
            return fail(
                Reason::BadService,
                format!("Service {key} does not exist: create it, or name one that does"),
            );
        };
        if fact.external_name {
            let text = format!("Service {key} is of type ExternalName, which has no endpoints to send to");
            return fail(Reason::BadService, text);
        }
        let wanted = service.port.as_ref();
        let found = fact.ports.iter().find(|port| match wanted {
            Some(ServiceBackendPort { name: Some(name), .. }) if !name.is_empty() => port.name == *name,
            Some(ServiceBackendPort { number: Some(number), .. }) => i32::from(port.number) == *number,
            _ => fact.ports.len() == 1,
        });
        if let Some(port) = found {
            return Ok(BackendKey { service: key, port: port.name.clone(), h2c: false });
        }
        let wanted = match wanted {
            Some(ServiceBackendPort { name: Some(name), .. }) if !name.is_empty() => {
                format!("named {name:?}")
            }
            Some(ServiceBackendPort { number: Some(number), .. }) => number.to_string(),
            _ => "without name or number".to_owned(),
        };
        let has: Vec<_> = fact.ports.iter().map(super::PortFact::describe).collect();
        fail(Reason::BadPort, format!("Service {key} has no port {wanted}: it has {}", has.join(", ")))
    }
}

fn written(path: &HTTPIngressPath) -> &str {
    path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/")
}

/// `ImplementationSpecific`, and whatever a later API adds, acts as Prefix.
fn kind(path: &HTTPIngressPath) -> PathKind {
    if path.path_type == "Exact" { PathKind::Exact } else { PathKind::Prefix }
}

/// The host in a message.
pub(super) fn describe(host: &HostPattern) -> String {
    match host {
        HostPattern::Any => "any host".to_owned(),
        HostPattern::Exact(name) => format!("host {name:?}"),
        HostPattern::Wildcard(parent) => format!("host \"*.{parent}\""),
    }
}
