//! Rules and backends of one Ingress, put into the table.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressBackend, ServiceBackendPort};

use super::{BackendKey, Compilation, IngressFact, ObjectKey, Reason, TargetSpec};
use crate::table::{HostPattern, PathKind, TargetId, normalize_path};

impl Compilation<'_> {
    pub(super) fn rules(&mut self, ingress: &IngressFact) {
        let mut hosts = BTreeSet::new();
        for rule in ingress.spec.rules.iter().flatten() {
            let field = rule.host.as_deref().unwrap_or_default();
            let host = match HostPattern::parse(field) {
                Ok(host) => host,
                Err(error) => {
                    let text = format!("spec.rules host {field:?} cannot be served: {error}");
                    self.problem(ingress, Reason::InvalidHost, text);
                    continue;
                }
            };
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                self.path(ingress, &host, path);
            }
            hosts.insert(host);
        }
        if let Some(backend) = &ingress.spec.default_backend {
            if hosts.is_empty() {
                hosts.insert(HostPattern::Any);
            }
            let target = self.target(ingress, backend);
            for host in hosts {
                if let Err(holder) = self.builder.default_target(&host, target) {
                    self.conflict(ingress, &host, "the default backend", holder, target);
                }
            }
        }
    }

    fn path(&mut self, ingress: &IngressFact, host: &HostPattern, path: &HTTPIngressPath) {
        let written = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        // ImplementationSpecific, and whatever a later API adds, acts as Prefix.
        let kind = if path.path_type == "Exact" { PathKind::Exact } else { PathKind::Prefix };
        let normal = match normalize_path(written) {
            Ok(normal) => normal,
            Err(error) => {
                let text = format!("path {written:?} cannot be served: {error}");
                self.problem(ingress, Reason::InvalidPath, text);
                return;
            }
        };
        let target = self.target(ingress, &path.backend);
        if let Err(holder) = self.builder.rule(host, kind, &normal, target) {
            self.conflict(ingress, host, &format!("path {written:?}"), holder, target);
        }
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
        if holder.backend == mine.backend && holder.backend.is_ok() {
            return;
        }
        let host = match host {
            HostPattern::Any => "any host".to_owned(),
            HostPattern::Exact(name) => format!("host {name:?}"),
            HostPattern::Wildcard(parent) => format!("host \"*.{parent}\""),
        };
        let text = format!(
            "{what} of {host} is already served by Ingress {}, which is older: this rule is not in use",
            holder.owner
        );
        self.problem(ingress, Reason::Conflict, text);
    }

    /// The target for a backend, the same number for the same backend of the same Ingress.
    fn target(&mut self, ingress: &IngressFact, backend: &IngressBackend) -> TargetId {
        let (service, backend) = match self.backend(ingress, backend) {
            Ok(key) => (key.service.name.clone(), Ok(key)),
            Err((service, reason, text)) => {
                self.problem(ingress, reason, text.clone());
                (service, Err(text))
            }
        };
        let spec = TargetSpec { owner: ingress.key.clone(), service, backend };
        // An Ingress's targets are the newest in the list, so the search ends at the first stranger.
        let own = self.out.targets.iter().enumerate().rev().take_while(|(_, t)| t.owner == spec.owner);
        let known = own.into_iter().find(|(_, target)| **target == spec).map(|(id, _)| id);
        let id = known.unwrap_or_else(|| {
            self.out.targets.push(spec);
            self.out.targets.len() - 1
        });
        TargetId(u32::try_from(id).expect("fewer than 2^32 backends"))
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
            return Ok(BackendKey { service: key, port: port.name.clone() });
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
