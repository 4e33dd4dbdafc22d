//! Rules and backends of one Ingress, as one host has them.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressBackend, ServiceBackendPort};

use super::host::{HostCompilation, Member};
use super::{BackendKey, ObjectKey, PortFact, Protocol, Reason, TargetSpec};
use crate::policy::{Policy, Rewrite};
use crate::table::{MAX_PATTERNS, PathKind, Pattern, Taken, normalize_path};

impl<'a> HostCompilation<'a> {
    pub(super) fn add_rules(&mut self, member: Member<'a>) {
        for path in self.paths(member) {
            self.path(member, path);
        }
        if let Some(backend) = &member.ingress.spec.default_backend {
            let policy = self.policy(member, None, "");
            let target = self.target(member, backend, policy);
            if let Err(holder) = self.rules.default_target(Arc::clone(&target)) {
                self.conflict(member, "the default backend", &holder, &target);
            }
        }
    }

    fn path(&mut self, member: Member<'a>, path: &HTTPIngressPath) {
        let written = written(path);
        if member.own.notes.patterns {
            match Pattern::path(written) {
                Ok(pattern) => self.pattern(member, pattern, path),
                Err(error) => {
                    let text = format!("path {written:?} is to be a pattern, but cannot be served: {error}");
                    self.problem(member, Reason::InvalidPath, text);
                }
            }
            return;
        }
        let normal = match normalize_path(written) {
            Ok(normal) => normal,
            Err(error) => {
                let text = format!("path {written:?} cannot be served: {error}");
                self.problem(member, Reason::InvalidPath, text);
                return;
            }
        };
        if self.has_patterns {
            // Another Ingress made it one; what is no pattern means itself.
            let pattern = Pattern::path(&normal).or_else(|_| Pattern::path(&regex::escape(&normal)));
            if let Ok(pattern) = pattern {
                self.pattern(member, pattern, path);
            }
            return;
        }
        // Exact and Prefix of one path are two rules.
        let rule = format!("{} {normal}", path.path_type);
        let policy = self.policy(member, None, &rule);
        let target = self.target(member, &path.backend, policy);
        if let Err(holder) = self.rules.rule(kind(path), &normal, Arc::clone(&target)) {
            self.conflict(member, &format!("path {written:?}"), &holder, &target);
        }
    }

    fn pattern(&mut self, member: Member<'a>, pattern: Pattern, path: &HTTPIngressPath) {
        let written = written(path);
        let rewrite = member.own.notes.rewrite.clone();
        let rewrite = rewrite.map(|target| Rewrite { pattern: pattern.clone(), target });
        if let Some(rewrite) = rewrite.as_ref().filter(|rewrite| rewrite.target.groups() > pattern.groups()) {
            let text = format!(
                "rewrite-target names group ${}, but path {written:?} has {} of them: what is not there stays empty",
                rewrite.target.groups(),
                pattern.groups()
            );
            self.problem(member, Reason::BadAnnotation, text);
        }
        let policy = self.policy(member, rewrite, written);
        let target = self.target(member, &path.backend, policy);
        match self.rules.pattern(pattern, Arc::clone(&target)) {
            Ok(()) => {}
            Err(Taken::By(holder)) => {
                self.conflict(member, &format!("path {written:?}"), &holder, &target);
            }
            Err(Taken::Full) => {
                let text = format!(
                    "path {written:?} of {} is not in use: the host has {MAX_PATTERNS} patterns already",
                    self.described()
                );
                self.problem(member, Reason::InvalidPath, text);
            }
        }
    }

    /// The target of the host's rule for this path, if some rule has exactly this path.
    pub(super) fn slot(&mut self, path: &HTTPIngressPath) -> Option<&mut Arc<TargetSpec>> {
        let written = written(path);
        let normal = normalize_path(written);
        if !self.has_patterns {
            return self.rules.rule_mut(kind(path), &normal.ok()?);
        }
        let text = normal.as_deref().unwrap_or(written);
        let text = if self.rules.pattern_mut(written).is_some() { written } else { text };
        self.rules.pattern_mut(text)
    }

    /// Two rules for the same requests: only worth an Event when they would go to different places.
    fn conflict(&mut self, member: Member<'_>, what: &str, holder: &TargetSpec, mine: &TargetSpec) {
        if holder.backend == mine.backend && holder.policy == mine.policy && holder.backend.is_ok() {
            return;
        }
        let text = format!(
            "{what} of {} is already served by Ingress {}, which is older: this rule is not in use",
            self.described(),
            holder.owner
        );
        self.problem(member, Reason::Conflict, text);
    }

    /// The target for a backend.
    pub(super) fn target(
        &mut self,
        member: Member<'a>,
        backend: &IngressBackend,
        policy: Option<Arc<Policy>>,
    ) -> Arc<TargetSpec> {
        let (service, backend) = match self.backend(member, backend) {
            Ok((key, port)) => {
                let notes = &member.own.notes;
                // What `backend-protocol` says was judged with the annotations.
                if notes.protocol.is_none()
                    && port.protocol.is_some_and(Protocol::is_http2)
                    && member.own.settings.upstream.proxy_protocol.is_some()
                {
                    let (service, port) = (&key.service, port.describe());
                    let text = format!(
                        "annotation proxy-protocol is not spoken with endpoints of HTTP/2, and port {port} of Service \
                         {service} has them by its appProtocol: it has no effect there"
                    );
                    self.problem(member, Reason::UnservedAnnotation, text);
                }
                let (protocol, tls, health) = (notes.protocol, notes.tls.clone(), notes.health.clone());
                (key.service.name.clone(), Ok(BackendKey { protocol, tls, health, ..key }))
            }
            Err((service, reason, text)) => {
                self.problem(member, reason, text.clone());
                (service, Err(text))
            }
        };
        let fallback = self.fallback(member);
        let owner = member.ingress.key.clone();
        self.known_or_new(TargetSpec { owner, service, backend, policy, canary: None, fallback })
    }

    /// The target of annotation `default-backend`: the Service's first port.
    fn fallback(&mut self, member: Member<'a>) -> Option<Arc<TargetSpec>> {
        let service = member.own.default_service()?;
        let port = &self.snapshot.services.get(&service)?.ports.first()?.name;
        Some(self.known_or_new(TargetSpec {
            owner: member.ingress.key.clone(),
            service: service.name.clone(),
            backend: Ok(BackendKey::new(service, port)),
            policy: None,
            canary: None,
            fallback: None,
        }))
    }

    fn backend(
        &self,
        member: Member<'_>,
        backend: &IngressBackend,
    ) -> Result<(BackendKey, &'a PortFact), (String, Reason, String)> {
        let Some(service) = &backend.service else {
            let text = "a backend is no Service: resource backends are not served".to_owned();
            return Err((String::new(), Reason::BadBackend, text));
        };
        let key = ObjectKey::new(&member.ingress.key.namespace, &service.name);
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
            return Ok((BackendKey::new(key, &port.name), port));
        }
        let wanted = match wanted {
            Some(ServiceBackendPort { name: Some(name), .. }) if !name.is_empty() => {
                format!("named {name:?}")
            }
            Some(ServiceBackendPort { number: Some(number), .. }) => number.to_string(),
            _ => "without name or number".to_owned(),
        };
        let has: Vec<_> = fact.ports.iter().map(PortFact::describe).collect();
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
