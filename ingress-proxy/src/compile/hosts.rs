//! The hosts of the compiler's memory: which of them have to be compiled again, and what they are routed by.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::compiler::{Compiler, Stale};
use super::host::{HostCompilation, Member, describe};
use super::own::{Age, Own};
use super::policies::to_host;
use super::{HostUpdate, Problem, Reason, Snapshot, TargetSpec, Update};
use crate::table::{HostPattern, PathKind, RuleSet};

/// A host that some Ingress has rules for, or wants for an alias or a redirect.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Host {
    /// Ingresses with rules, the oldest first.
    pub(super) members: Vec<Age>,
    /// Who wants the host if there are no rules for it, the oldest first.
    pub(super) suitors: Vec<(Age, Suit)>,
    /// Whether there are rules.
    is_ruled: bool,
    /// How many rules there are, those of the suitor that was heard included.
    paths: usize,
    /// What is wrong with the rules.
    problems: Vec<Problem>,
    /// What is wrong with the suits.
    refusals: Vec<Problem>,
}

/// What a host is wanted for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Suit {
    /// To have the rules of this other host.
    Alias(HostPattern),
    /// To redirect to this name.
    Redirect(String),
}

impl Compiler {
    /// Adds the hosts that have TLS now and had none, or the other way.
    pub(super) fn note_covered(&self, stale: &mut Stale) {
        for (pattern, before) in &stale.tls {
            if *before == self.tls.contains_key(pattern) {
                continue;
            }
            if let HostPattern::Wildcard(parent) = pattern {
                let covered = self.hosts.keys().filter(|host| covering(host).is_some_and(|p| p == parent));
                stale.hosts.extend(covered.cloned());
            }
            stale.hosts.insert(pattern.clone());
        }
    }

    /// Whether some Ingress has TLS for the host, with a secret or with the default certificate.
    fn has_tls(&self, host: &HostPattern) -> bool {
        let covered = || {
            let parent = covering(host)?.to_owned();
            self.tls.get(&HostPattern::Wildcard(parent))
        };
        !self.tls.is_empty() && (self.tls.contains_key(host) || covered().is_some())
    }

    pub(super) fn compile_hosts(
        &mut self,
        snapshot: &Snapshot,
        hosts: BTreeSet<HostPattern>,
        update: &mut Update,
    ) {
        let mut reached = hosts.clone();
        for host in hosts {
            let Some(known) = self.hosts.get(&host) else { continue };
            reached.extend(self.aliases(&host, known));
            let (rules, problems) = self.rules(snapshot, &host, known);
            update.problems.extend_from_slice(&problems);
            let known = self.hosts.get_mut(&host).expect("it was there");
            update.mended.append(&mut known.problems);
            known.problems = problems;
            known.is_ruled = !rules.is_empty();
            self.totals.paths += rules.paths();
            self.totals.paths -= std::mem::replace(&mut known.paths, rules.paths());
            update.hosts.insert(host, HostUpdate::Rules(rules));
        }
        // Only now is it known of all hosts whether there are rules for them.
        for host in reached {
            let known = self.hosts.get(&host);
            let (heard, refusals) =
                known.map_or_else(Default::default, |known| self.hear(known, &host, snapshot));
            update.problems.extend_from_slice(&refusals);
            if let Some(known) = self.hosts.get_mut(&host) {
                update.mended.append(&mut known.refusals);
                known.refusals = refusals;
                if known.is_ruled {
                    continue;
                }
                let paths = if let Some(HostUpdate::Rules(rules)) = &heard { rules.paths() } else { 0 };
                self.totals.paths += paths;
                self.totals.paths -= std::mem::replace(&mut known.paths, paths);
                if known.members.is_empty() && known.suitors.is_empty() {
                    self.hosts.remove(&host);
                }
            }
            update.hosts.insert(host, heard.unwrap_or(HostUpdate::Gone));
        }
    }

    /// The rules of all Ingresses that have some for the host.
    fn rules(
        &self,
        snapshot: &Snapshot,
        host: &HostPattern,
        known: &Host,
    ) -> (RuleSet<Arc<TargetSpec>>, Vec<Problem>) {
        let member = |age: &Age| {
            let (own, ingress) = (self.ingresses.get(&*age.1)?, snapshot.ingresses.get(&*age.1)?);
            Some(Member { own, ingress })
        };
        let members: Vec<Member<'_>> = known.members.iter().filter_map(member).collect();
        let has_patterns = members.iter().any(|member| member.own.has_patterns());
        let mut compilation =
            HostCompilation::new(snapshot, &self.plain, host, self.has_tls(host), has_patterns);
        compilation.members(&members);
        (compilation.rules, compilation.problems)
    }

    /// The hosts that want to have the rules of this one.
    fn aliases(&self, host: &HostPattern, known: &Host) -> Vec<HostPattern> {
        let owns = known.members.iter().filter_map(|age| self.ingresses.get(&*age.1));
        let owns = owns.filter(|own| own.aliased.as_ref() == Some(host));
        owns.flat_map(|own| own.notes.aliases.iter().cloned()).collect()
    }

    /// What the host is routed by if there are no rules for it, and who wants it in vain.
    fn hear(
        &self,
        known: &Host,
        host: &HostPattern,
        snapshot: &Snapshot,
    ) -> (Option<HostUpdate>, Vec<Problem>) {
        let (mut heard, mut refusals) = (None, Vec::new());
        for (age, suit) in &known.suitors {
            let is_free = !known.is_ruled && heard.is_none() && *host != HostPattern::Any;
            match suit {
                Suit::Alias(of) if is_free => {
                    let is_ruled = self.hosts.get(of).is_some_and(|of| of.is_ruled);
                    heard = is_ruled.then(|| HostUpdate::SameAs(of.clone()));
                }
                Suit::Alias(_) => {
                    let text = format!("alias {} is not in use: an Ingress has that host", describe(host));
                    let ingress = snapshot.ingresses.get(&*age.1);
                    let host = Some(host.clone());
                    refusals
                        .extend(ingress.map(|i| Problem { host, ..Problem::new(i, Reason::Conflict, text) }));
                }
                Suit::Redirect(name) if is_free => {
                    let mut rules = RuleSet::default();
                    let _ = rules.rule(PathKind::Prefix, "/", Arc::new(to_host(&age.1, name)));
                    heard = Some(HostUpdate::Rules(rules));
                }
                // ingress-nginx leaves it out too: who has the host answers there.
                Suit::Redirect(_) => {}
            }
        }
        (heard, refusals)
    }
}

/// The hosts that an Ingress wants beside those of its rules: aliases, and with or without `www.`.
pub(super) fn suits(own: &Own) -> Vec<(HostPattern, Suit)> {
    if own.is_canary() {
        return Vec::new();
    }
    let aliased = own.aliased.iter();
    let aliases =
        aliased.flat_map(|of| own.notes.aliases.iter().map(|alias| (alias.clone(), Suit::Alias(of.clone()))));
    let www = own.hosts.iter().filter(|_| own.notes.www).filter_map(|(host, _)| {
        let HostPattern::Exact(name) = host else { return None };
        let other = name.strip_prefix("www.").map_or_else(|| format!("www.{name}"), str::to_owned);
        Some((HostPattern::Exact(other), Suit::Redirect(name.clone())))
    });
    aliases.chain(www).collect()
}

/// The parent of the wildcard that covers a host.
fn covering(host: &HostPattern) -> Option<&str> {
    let HostPattern::Exact(name) = host else { return None };
    name.split_once('.').map(|(_, parent)| parent)
}
