//! Policies of targets, and the rules that exist because of one: canaries, aliases, `www`, the app root.

use std::sync::Arc;

use super::annotations::PasswordSource;
use super::hosts::rule_hosts;
use super::rules::describe;
use super::{Claimed, Compilation, IngressFact, Reason, SecretFact, TargetSpec};
use crate::policy::{BasicAuth, Canary, Policy, Redirects, Rewrite, Settings, Users};
use crate::table::{HostPattern, PathKind, TargetId};

/// Users without a usable hash that are named; more are only counted.
const MAX_NAMED: usize = 5;

impl Compilation<'_> {
    /// The policy for a rule of this host; `None` if there is nothing to do.
    pub(super) fn policy(
        &self,
        claimed: &Claimed<'_>,
        host: &HostPattern,
        rewrite: Option<Rewrite>,
    ) -> Option<Arc<Policy>> {
        let host_has_tls = self.hosts.have_tls(host);
        if rewrite.is_none() {
            if !host_has_tls && claimed.idle_without_tls {
                return None;
            }
            if host_has_tls && Arc::ptr_eq(&claimed.settings, &self.plain.settings) {
                return Some(Arc::clone(&self.plain.with_tls));
            }
        }
        let settings = Arc::clone(&claimed.settings);
        Some(Arc::new(Policy { settings, host_has_tls, rewrite, canary: None }))
    }

    /// Users and passwords, or why the paths must stay closed without them.
    pub(super) fn users(
        &mut self,
        ingress: &IngressFact,
        source: &PasswordSource,
    ) -> Result<BasicAuth, String> {
        let key = &source.secret;
        self.out.secrets.insert(key.clone());
        let fault = match self.snapshot.secrets.get(key) {
            None => return Err(format!("Secret {key} with passwords was not read yet")),
            Some(SecretFact::Missing) => "does not exist".to_owned(),
            Some(SecretFact::Broken(why)) => format!("is not usable: {why}"),
            Some(SecretFact::Usable(_)) => "holds a certificate and not passwords".to_owned(),
            Some(SecretFact::Opaque(data)) => {
                let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
                let read = if source.is_map {
                    Some(Users::collect(data.iter().map(|(user, hash)| (user.as_str(), text(hash)))))
                } else {
                    data.get("auth").map(|file| Users::from_file(text(file)))
                };
                match read {
                    None => "has no key \"auth\" with lines of user:hash".to_owned(),
                    Some((users, unusable)) => {
                        for (user, error) in unusable.iter().take(MAX_NAMED) {
                            let text = format!("user {user:?} of Secret {key} cannot log in: {error}");
                            self.problem(ingress, Reason::BadSecret, text);
                        }
                        if !users.is_empty() {
                            let (challenge, users) = (source.challenge.clone(), Arc::new(users));
                            return Ok(BasicAuth { challenge, users });
                        }
                        "has no user with a hash that is served".to_owned()
                    }
                }
            }
        };
        let why = format!("Secret {key} with passwords {fault}");
        let text = format!("{why}: the paths of this Ingress answer 503 until it is mended");
        self.problem(ingress, Reason::BadSecret, text);
        Err(why)
    }

    /// Gives the rules that the canary's rules name a share of requests to send there.
    pub(super) fn canary(&mut self, claimed: &Claimed<'_>, canary: &Canary) {
        let ingress = claimed.ingress;
        if ingress.spec.default_backend.is_some() {
            let text = "a canary's defaultBackend is not served: write it as a rule".to_owned();
            self.problem(ingress, Reason::Conflict, text);
        }
        let first_fork = self.out.targets.len();
        for rule in ingress.spec.rules.iter().flatten() {
            let Some(host) = self.rule_host(ingress, rule) else { continue };
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let written = path.path.as_deref().unwrap_or("/");
                let slot = self.slot(&host, path).copied();
                let Some(main) = slot
                    .filter(|id| self.out.targets[id.0 as usize].owner.namespace == ingress.key.namespace)
                else {
                    let text = format!(
                        "path {written:?} of {} is no canary: no other Ingress of this namespace has the same \
                         host, path and pathType",
                        describe(&host)
                    );
                    self.problem(ingress, Reason::Conflict, text);
                    continue;
                };
                if self.out.targets[main.0 as usize].canary.is_some() {
                    let text = format!("path {written:?} of {} has an older canary", describe(&host));
                    self.problem(ingress, Reason::Conflict, text);
                    continue;
                }
                let other = self.target(claimed, &path.backend, None);
                // Everything else is the main version's, error pages too.
                let fallback = self.out.targets[main.0 as usize].fallback;
                let spec = TargetSpec { fallback, ..self.out.targets[other.0 as usize].clone() };
                let other = self.known_or_new(spec);
                let fork = self.fork(main, canary, other, first_fork);
                *self.slot(&host, path).expect("it was there") = fork;
            }
        }
    }

    /// The main version's target, with a canary. The same number for the same pair.
    fn fork(&mut self, main: TargetId, canary: &Canary, other: TargetId, first_fork: usize) -> TargetId {
        let mut spec = self.out.targets[main.0 as usize].clone();
        let policy = spec.policy.as_deref().cloned().unwrap_or_default();
        spec.policy = Some(Arc::new(Policy { canary: Some(canary.clone()), ..policy }));
        spec.canary = Some(other);
        let known = self.out.targets[first_fork..].iter().position(|known| *known == spec);
        match known {
            Some(at) => id(first_fork + at),
            None => self.push(spec),
        }
    }

    /// Hosts that are not in the Ingress's rules, and the app root.
    pub(super) fn more_hosts(&mut self, claimed: &Claimed<'_>) {
        let ingress = claimed.ingress;
        if claimed.settings.redirects.app_root.is_some() {
            for host in rule_hosts(ingress) {
                let policy = self.policy(claimed, &host, None);
                let target = self.only_redirects(ingress, policy);
                // Who has exactly `/` answers there; if that is this Ingress, its own policy redirects.
                let _ = self.builder.rule(&host, PathKind::Exact, "/", target);
            }
        }
        if let Some(host) = rule_hosts(ingress).find(|host| *host != HostPattern::Any) {
            for alias in &claimed.notes.aliases {
                if self.builder.has(alias) {
                    let text = format!("alias {} is not in use: an Ingress has that host", describe(alias));
                    self.problem(ingress, Reason::Conflict, text);
                } else {
                    self.builder.alias(alias, &host);
                }
            }
        }
        if claimed.notes.www {
            self.www(claimed);
        }
    }

    /// From `www.` to without, or the other way, for each host.
    fn www(&mut self, claimed: &Claimed<'_>) {
        for host in rule_hosts(claimed.ingress) {
            let HostPattern::Exact(name) = host else { continue };
            let other = name.strip_prefix("www.").map_or_else(|| format!("www.{name}"), str::to_owned);
            let from = HostPattern::Exact(other);
            // ingress-nginx leaves it out too: who has the host answers there.
            if self.builder.has(&from) {
                continue;
            }
            let redirects = Redirects { to_host: Some(name.into()), ..Redirects::default() };
            let settings = Settings { redirects, ..Settings::default() };
            let policy = Policy { settings: Arc::new(settings), ..Policy::default() };
            let target = self.only_redirects(claimed.ingress, Some(Arc::new(policy)));
            let _ = self.builder.rule(&from, PathKind::Prefix, "/", target);
        }
    }

    fn only_redirects(&mut self, ingress: &IngressFact, policy: Option<Arc<Policy>>) -> TargetId {
        self.push(TargetSpec {
            owner: ingress.key.clone(),
            service: String::new(),
            backend: Err("only redirects are served here".to_owned()),
            policy,
            canary: None,
            fallback: None,
        })
    }

    pub(super) fn push(&mut self, spec: TargetSpec) -> TargetId {
        self.out.targets.push(spec);
        id(self.out.targets.len() - 1)
    }
}

pub(super) fn id(index: usize) -> TargetId {
    TargetId(u32::try_from(index).expect("fewer than 2^32 backends"))
}
