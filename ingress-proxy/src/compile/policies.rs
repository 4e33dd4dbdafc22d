//! Policies of targets, and the rules that exist because of one: canaries, the app root, `www`.

use std::sync::Arc;

use super::host::{HostCompilation, Member};
use super::{ObjectKey, Reason, TargetSpec};
use crate::policy::{Canary, Policy, Redirects, Rewrite, Settings};
use crate::table::PathKind;

impl<'a> HostCompilation<'a> {
    /// The policy for the rule of this host with this path; `None` if there is nothing to do.
    pub(super) fn policy(
        &self,
        member: Member<'_>,
        rewrite: Option<Rewrite>,
        path: &str,
    ) -> Option<Arc<Policy>> {
        let (own, host_has_tls) = (member.own, self.has_tls);
        let (clients, passthrough) = (self.clients.clone(), self.passthrough);
        if rewrite.is_none() && clients.is_none() && !passthrough {
            if !host_has_tls && own.idle_without_tls {
                return None;
            }
            if host_has_tls && Arc::ptr_eq(&own.settings, &self.plain.settings) {
                return Some(Arc::clone(&self.plain.with_tls));
            }
        }
        let settings = Arc::clone(&own.settings);
        let remembers = settings.external.as_ref().is_some_and(|external| external.caching.is_some());
        let scope =
            remembers.then(|| format!("{} {} {path}", member.ingress.key, self.described()).into_boxed_str());
        Some(Arc::new(Policy { settings, host_has_tls, clients, passthrough, rewrite, canary: None, scope }))
    }

    /// Gives the rules that the canary's rules name a share of requests to send there.
    pub(super) fn canary(&mut self, member: Member<'a>, canary: &Canary) {
        for path in self.paths(member) {
            let written = path.path.as_deref().unwrap_or("/");
            let main = self.slot(path).map(|main| Arc::clone(main));
            let Some(main) = main.filter(|main| main.owner.namespace == member.ingress.key.namespace) else {
                let text = format!(
                    "path {written:?} of {} is no canary: no other Ingress of this namespace has the same host, path \
                     and pathType",
                    self.described()
                );
                self.problem(member, Reason::Conflict, text);
                continue;
            };
            if main.canary.is_some() {
                let text = format!("path {written:?} of {} has an older canary", self.described());
                self.problem(member, Reason::Conflict, text);
                continue;
            }
            let other = self.target(member, &path.backend, None);
            // Everything else is the main version's, error pages too.
            let fallback = main.fallback.clone();
            let other = self.known_or_new(TargetSpec { fallback, ..TargetSpec::clone(&other) });
            let policy = main.policy.as_deref().cloned().unwrap_or_default();
            let policy = Some(Arc::new(Policy { canary: Some(canary.clone()), ..policy }));
            let fork = TargetSpec { policy, canary: Some(other), ..TargetSpec::clone(&main) };
            let fork = self.known_or_new(fork);
            *self.slot(path).expect("it was there") = fork;
        }
    }

    /// Who has exactly `/` answers there; if that is this Ingress, its own policy redirects.
    pub(super) fn app_root(&mut self, member: Member<'a>) {
        if member.own.settings.redirects.app_root.is_some() {
            let target = only_redirects(&member.ingress.key, self.policy(member, None, "/"));
            let _ = self.rules.rule(PathKind::Exact, "/", Arc::new(target));
        }
    }
}

/// What sends everything to another host, for `from-to-www-redirect`.
pub(super) fn to_host(owner: &ObjectKey, name: &str) -> TargetSpec {
    let redirects = Redirects { to_host: Some(name.into()), ..Redirects::default() };
    let settings = Arc::new(Settings { redirects, ..Settings::default() });
    only_redirects(owner, Some(Arc::new(Policy { settings, ..Policy::default() })))
}

fn only_redirects(owner: &ObjectKey, policy: Option<Arc<Policy>>) -> TargetSpec {
    TargetSpec {
        owner: owner.clone(),
        service: String::new(),
        backend: Err("only redirects are served here".to_owned()),
        policy,
        canary: None,
        fallback: None,
    }
}
