//! The compiler's memory: what it made of each Ingress and of each host, so that a change costs what it concerns.
//!
//! An Ingress is read again if it, a Service or a Secret that it names, or whose it is, changed. Ingresses meet at hosts
//! and nowhere else, so the hosts of what was read again are compiled again, from all Ingresses that have rules there. Two
//! things reach from one host to another: a wildcard with TLS covers hosts, and an alias has the rules of another host;
//! what they reach is compiled again too.
//!
//! **Cost.** Grows with what is read again and with the rules of its hosts, not with the cluster. The exceptions, which
//! are rare: an IngressClass has every Ingress asked whose it is, and the first and the last Ingress with TLS for a
//! wildcard have every host asked whether it is covered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::class::{self, Claim};
use super::hosts::{Host, suits};
use super::own::{Age, Own, Plain};
use super::{Changes, ObjectKey, Snapshot, Totals, Update};
use crate::table::HostPattern;

/// Compiles changes. What it holds depends on the last snapshot alone, not on the way there.
#[derive(Debug, PartialEq)]
pub struct Compiler {
    /// The class that the old annotation may name without an IngressClass.
    class_name: String,
    pub(super) plain: Plain,
    /// Ours, and those whose class does not exist.
    pub(super) ingresses: BTreeMap<Arc<ObjectKey>, Own>,
    pub(super) hosts: BTreeMap<HostPattern, Host>,
    /// How many Ingresses have TLS for the host.
    pub(super) tls: BTreeMap<HostPattern, usize>,
    /// Secrets with usable pairs for the host, by the age of the Ingress that says so. The oldest has it; that another
    /// names it too is common and harmless.
    certificates: BTreeMap<HostPattern, Vec<(Age, ObjectKey)>>,
    /// Services and the Ingresses that name them.
    services: BTreeSet<(ObjectKey, Arc<ObjectKey>)>,
    /// Secrets and the Ingresses that name them.
    secrets: BTreeSet<(ObjectKey, Arc<ObjectKey>)>,
    pub(super) totals: Totals,
}

/// What has to be looked at again, and how it was before.
#[derive(Default)]
pub(super) struct Stale {
    pub(super) hosts: BTreeSet<HostPattern>,
    pub(super) tls: BTreeMap<HostPattern, bool>,
    certificates: BTreeMap<HostPattern, Option<ObjectKey>>,
    secrets: BTreeMap<ObjectKey, bool>,
}

impl Compiler {
    /// Knows nothing yet.
    pub fn new(class_name: &str) -> Self {
        Self {
            class_name: class_name.to_owned(),
            plain: Plain::default(),
            ingresses: BTreeMap::new(),
            hosts: BTreeMap::new(),
            tls: BTreeMap::new(),
            certificates: BTreeMap::new(),
            services: BTreeSet::new(),
            secrets: BTreeSet::new(),
            totals: Totals::default(),
        }
    }

    /// Takes in what changed since the last call. The result is what compiling the snapshot from nothing would give.
    pub fn update(&mut self, snapshot: &Snapshot, changes: &Changes) -> Update {
        let (mut update, mut stale) = (Update::default(), Stale::default());
        for key in self.concerned(snapshot, changes) {
            let old = self.ingresses.remove(&key);
            if let Some(old) = old {
                self.unlink(&old, &mut stale);
                update.mended.extend(old.problems);
            }
            let ingress = snapshot.ingresses.get(&key);
            let new = ingress.and_then(|ingress| Own::read(snapshot, ingress, &self.class_name, &self.plain));
            update.ingresses.insert(key, new.as_ref().is_some_and(|own| own.ours));
            if let Some(new) = new {
                self.link(&new, &mut stale);
                update.problems.extend_from_slice(&new.problems);
                self.ingresses.insert(Arc::clone(&new.age.1), new);
            }
        }
        self.note_covered(&mut stale);
        self.compile_hosts(snapshot, stale.hosts, &mut update);
        for (host, before) in stale.certificates {
            let now = self.certificate(&host);
            if before != now {
                update.certificates.insert(host, (before, now));
            }
        }
        for (secret, before) in stale.secrets {
            let now = is_named(&self.secrets, &secret);
            if before != now {
                update.secrets.insert(secret, now);
            }
        }
        self.totals.certificates = self.certificates.len();
        update.totals = self.totals;
        update
    }

    /// The Ingresses that must be read again.
    fn concerned(&self, snapshot: &Snapshot, changes: &Changes) -> BTreeSet<ObjectKey> {
        let mut concerned = changes.ingresses.clone();
        for (index, named) in [(&self.services, &changes.services), (&self.secrets, &changes.secrets)] {
            for key in named {
                concerned.extend(naming(index, key).map(|ingress| ObjectKey::clone(ingress)));
            }
        }
        if changes.classes {
            let moved = snapshot.ingresses.values().filter(|ingress| {
                let before = self.ingresses.get(&ingress.key).map(|own| own.ours);
                let now = match class::claim(snapshot, ingress, &self.class_name) {
                    Claim::Ours => Some(true),
                    Claim::UnknownClass(_) => Some(false),
                    Claim::Theirs => None,
                };
                before != now
            });
            concerned.extend(moved.map(|ingress| ingress.key.clone()));
        }
        concerned
    }

    fn link(&mut self, own: &Own, stale: &mut Stale) {
        stale.note(self, own);
        for (host, _) in &own.hosts {
            let members = &mut self.hosts.entry(host.clone()).or_default().members;
            let at = members.partition_point(|age| *age < own.age);
            members.insert(at, own.age.clone());
        }
        for (host, suit) in suits(own) {
            let suitors = &mut self.hosts.entry(host).or_default().suitors;
            // Those of one Ingress stay in their order.
            let at = suitors.partition_point(|(age, _)| *age <= own.age);
            suitors.insert(at, (own.age.clone(), suit));
        }
        for host in &own.tls {
            *self.tls.entry(host.clone()).or_default() += 1;
        }
        for (host, secret) in &own.certificates {
            let secrets = self.certificates.entry(host.clone()).or_default();
            let at = secrets.partition_point(|(age, _)| *age < own.age);
            secrets.insert(at, (own.age.clone(), secret.clone()));
        }
        let named = |key: &ObjectKey| (key.clone(), Arc::clone(&own.age.1));
        self.services.extend(own.services.iter().map(named));
        self.secrets.extend(own.secrets.iter().map(named));
    }

    /// Takes back what [`Self::link`] did. Hosts that nobody wants any more go when they are compiled.
    fn unlink(&mut self, own: &Own, stale: &mut Stale) {
        stale.note(self, own);
        for (host, _) in &own.hosts {
            if let Some(host) = self.hosts.get_mut(host)
                && let Ok(at) = host.members.binary_search(&own.age)
            {
                host.members.remove(at);
            }
        }
        for (host, _) in suits(own) {
            if let Some(host) = self.hosts.get_mut(&host) {
                host.suitors.retain(|(age, _)| *age != own.age);
            }
        }
        for host in &own.tls {
            let left = self.tls.get_mut(host).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                self.tls.remove(host);
            }
        }
        for (host, _) in &own.certificates {
            let left = self.certificates.get_mut(host).map_or(0, |secrets| {
                secrets.retain(|(age, _)| *age != own.age);
                secrets.len()
            });
            if left == 0 {
                self.certificates.remove(host);
            }
        }
        for (index, keys) in [(&mut self.services, &own.services), (&mut self.secrets, &own.secrets)] {
            for key in keys {
                index.remove(&(key.clone(), Arc::clone(&own.age.1)));
            }
        }
    }

    /// The hosts of an Ingress with TLS, and their secrets, as far as there is a usable pair in them.
    pub(crate) fn certificates_of(&self, ingress: &ObjectKey) -> &[(HostPattern, ObjectKey)] {
        self.ingresses.get(ingress).map_or(&[], |own| &own.certificates)
    }

    /// The Ingresses that name a secret.
    pub(crate) fn naming_secret(&self, secret: &ObjectKey) -> Vec<ObjectKey> {
        naming(&self.secrets, secret).map(|ingress| ObjectKey::clone(ingress)).collect()
    }

    /// All that it knows.
    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.ingresses.keys().map(|ingress| ObjectKey::clone(ingress)).collect()
    }

    fn certificate(&self, host: &HostPattern) -> Option<ObjectKey> {
        self.certificates.get(host)?.first().map(|(_, secret)| secret.clone())
    }
}

impl Stale {
    /// What reading this Ingress again may change.
    fn note(&mut self, compiler: &Compiler, own: &Own) {
        self.hosts.extend(own.hosts.iter().map(|(host, _)| host.clone()));
        self.hosts.extend(suits(own).into_iter().map(|(host, _)| host));
        for host in &own.tls {
            self.tls.entry(host.clone()).or_insert_with(|| compiler.tls.contains_key(host));
        }
        for (host, _) in &own.certificates {
            self.certificates.entry(host.clone()).or_insert_with(|| compiler.certificate(host));
        }
        for secret in &own.secrets {
            let before = || is_named(&compiler.secrets, secret);
            self.secrets.entry(secret.clone()).or_insert_with(before);
        }
    }
}

/// The Ingresses that name an object.
fn naming<'a>(
    index: &'a BTreeSet<(ObjectKey, Arc<ObjectKey>)>,
    key: &ObjectKey,
) -> impl Iterator<Item = &'a Arc<ObjectKey>> {
    let first = (key.clone(), Arc::new(ObjectKey::new("", "")));
    let key = key.clone();
    index.range(first..).take_while(move |(named, _)| *named == key).map(|(_, ingress)| ingress)
}

fn is_named(index: &BTreeSet<(ObjectKey, Arc<ObjectKey>)>, key: &ObjectKey) -> bool {
    naming(index, key).next().is_some()
}
