//! What is known of one Ingress without a look at any other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::annotations::{Annotations, PasswordSource};
use super::class::{self, Claim};
use super::{AUTHORITIES, Credentials, IngressFact, ObjectKey, Problem, Reason, SecretFact, Snapshot};
use crate::policy::{BasicAuth, Policy, Settings, Users};
use crate::table::HostPattern;
use crate::upstream::read_authorities;

/// Users without a usable hash that are named; more are only counted.
const MAX_NAMED: usize = 5;

/// By age, which decides conflicts: creation has one-second steps, the name decides within one.
pub(super) type Age = (i64, Arc<ObjectKey>);

/// What Ingresses without annotations have in common, so that many of them take neither time nor memory.
#[derive(Debug, PartialEq)]
pub(super) struct Plain {
    notes: Arc<Annotations>,
    pub(super) settings: Arc<Settings>,
    pub(super) with_tls: Arc<Policy>,
}

impl Default for Plain {
    fn default() -> Self {
        let notes = Annotations::read(&ObjectKey::new("", ""), &BTreeMap::new());
        let settings = Arc::new(notes.settings.clone());
        let with_tls = Policy { settings: Arc::clone(&settings), host_has_tls: true, ..Policy::default() };
        Self { notes: Arc::new(notes), settings, with_tls: Arc::new(with_tls) }
    }
}

/// An Ingress of ours, or one whose class does not exist.
#[derive(Debug, PartialEq)]
pub(super) struct Own {
    pub(super) age: Age,
    /// If not, there is nothing but the problem that says so.
    pub(super) ours: bool,
    pub(super) notes: Arc<Annotations>,
    pub(super) settings: Arc<Settings>,
    pub(super) idle_without_tls: bool,
    /// The hosts of the rules, sorted, and which of the rules are theirs. Hosts that cannot be served are left out.
    pub(super) hosts: Vec<(HostPattern, Vec<u32>)>,
    /// The host whose rules the aliases have.
    pub(super) aliased: Option<HostPattern>,
    /// Hosts with TLS, with a secret or with the default certificate.
    pub(super) tls: Vec<HostPattern>,
    /// Secrets with usable pairs, by host.
    pub(super) certificates: Vec<(HostPattern, ObjectKey)>,
    /// Services that are named.
    pub(super) services: Vec<ObjectKey>,
    /// Secrets that are named.
    pub(super) secrets: Vec<ObjectKey>,
    pub(super) problems: Vec<Problem>,
}

impl Own {
    /// `None` if it is another controller's.
    pub(super) fn read(
        snapshot: &Snapshot,
        ingress: &IngressFact,
        class_name: &str,
        plain: &Plain,
    ) -> Option<Self> {
        let mut own = Self {
            age: (ingress.created, Arc::new(ingress.key.clone())),
            ours: true,
            notes: Arc::clone(&plain.notes),
            settings: Arc::clone(&plain.settings),
            idle_without_tls: true,
            hosts: Vec::new(),
            aliased: None,
            tls: Vec::new(),
            certificates: Vec::new(),
            services: Vec::new(),
            secrets: Vec::new(),
            problems: Vec::new(),
        };
        match class::claim(snapshot, ingress, class_name) {
            Claim::Theirs => return None,
            Claim::UnknownClass(name) => {
                own.ours = false;
                let text = format!("IngressClass {name:?} does not exist: create it, or name one that does");
                own.problem(ingress, Reason::UnknownClass, text);
            }
            Claim::Ours => {
                if !ingress.annotations.is_empty() {
                    own.annotations(snapshot, ingress, plain);
                }
                own.rules(ingress);
                own.certificates(snapshot, ingress);
                own.services(snapshot, ingress);
            }
        }
        Some(own)
    }

    /// Whether it is the other version of one.
    pub(super) fn is_canary(&self) -> bool {
        self.notes.canary.is_some()
    }

    /// Whether its paths, and with them all paths of its hosts, are patterns.
    pub(super) fn has_patterns(&self) -> bool {
        self.notes.patterns && !self.is_canary()
    }

    fn problem(&mut self, ingress: &IngressFact, reason: Reason, text: String) {
        self.problems.push(Problem::new(ingress, reason, text));
    }

    fn annotations(&mut self, snapshot: &Snapshot, ingress: &IngressFact, plain: &Plain) {
        let mut notes = Annotations::read(&ingress.key, &ingress.annotations);
        for (reason, text) in std::mem::take(&mut notes.problems) {
            self.problem(ingress, reason, text);
        }
        let mut settings = std::mem::take(&mut notes.settings);
        if settings.external.as_ref().is_some_and(|external| external.url.is_at_own_host())
            && notes.canary.is_none()
            && serves_any_host(ingress)
        {
            // A client would name a host of its own, which lets it in.
            let why = "annotation auth-url names the server by $host, but a rule is for every host";
            settings.closed.get_or_insert_with(|| why.into());
            let text = format!(
                "{why}: the paths of this Ingress answer 503 until the server or the host is written out"
            );
            self.problem(ingress, Reason::BadAnnotation, text);
        }
        if let Some(source) = notes.passwords.as_ref().filter(|_| notes.canary.is_none()) {
            match self.users(snapshot, ingress, source) {
                Ok(auth) => settings.auth = Some(auth),
                Err(why) => settings.closed = settings.closed.or(Some(why.into())),
            }
        }
        if let Some(secret) = notes.tls.secret.clone()
            && let Err(why) =
                self.credentials(snapshot, ingress, &secret, "TLS with endpoints", notes.tls.verifies)
        {
            settings.closed = settings.closed.or(Some(why.into()));
        }
        let authorities = notes.clients.as_ref().and_then(|clients| clients.authorities.split_once('/'));
        if let Some((namespace, name)) = authorities.filter(|_| notes.canary.is_none())
            && let secret = ObjectKey::new(namespace, name)
            && let Err(why) = self.credentials(snapshot, ingress, &secret, "client certificates", true)
        {
            settings.closed = settings.closed.or(Some(why.into()));
        }
        self.idle_without_tls = settings.are_idle_without_tls();
        let is_plain = settings == *plain.settings;
        self.settings = if is_plain { Arc::clone(&plain.settings) } else { Arc::new(settings) };
        self.notes = Arc::new(notes);
    }

    /// Whether a Secret has the certificates that are asked of it, or why the paths must stay closed without.
    fn credentials(
        &mut self,
        snapshot: &Snapshot,
        ingress: &IngressFact,
        key: &ObjectKey,
        what: &str,
        verifies: bool,
    ) -> Result<(), String> {
        self.secrets.push(key.clone());
        let fault = match snapshot.secrets.get(key) {
            None => return Err(format!("Secret {key} for {what} was not read yet")),
            Some(SecretFact::Missing) => "does not exist".to_owned(),
            Some(SecretFact::Broken(why)) => format!("is not usable: {why}"),
            Some(SecretFact::Unreadable(why)) => format!("cannot be read: {why}"),
            Some(SecretFact::Usable(..) | SecretFact::Opaque(_)) => {
                let credentials = Credentials::of(snapshot, Some(key));
                match credentials.authorities.as_deref().map(read_authorities) {
                    Some(Err(error)) => format!("is not usable: {error}"),
                    None if verifies || credentials.pair.is_none() => {
                        format!("has no {AUTHORITIES:?} with the certificates of authorities")
                    }
                    _ => return Ok(()),
                }
            }
        };
        let why = format!("Secret {key} for {what} {fault}");
        let text = format!("{why}: the paths of this Ingress answer 503 until it is mended");
        self.problem(ingress, Reason::BadSecret, text);
        Err(why)
    }

    /// Users and passwords, or why the paths must stay closed without them.
    fn users(
        &mut self,
        snapshot: &Snapshot,
        ingress: &IngressFact,
        source: &PasswordSource,
    ) -> Result<BasicAuth, String> {
        let key = &source.secret;
        self.secrets.push(key.clone());
        let fault = match snapshot.secrets.get(key) {
            None => return Err(format!("Secret {key} with passwords was not read yet")),
            Some(SecretFact::Missing) => "does not exist".to_owned(),
            Some(SecretFact::Broken(why)) => format!("is not usable: {why}"),
            Some(SecretFact::Unreadable(why)) => format!("cannot be read: {why}"),
            Some(SecretFact::Usable(..)) => "holds a certificate and not passwords".to_owned(),
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

    fn rules(&mut self, ingress: &IngressFact) {
        let mut hosts: BTreeMap<HostPattern, Vec<u32>> = BTreeMap::new();
        for (rule, number) in ingress.spec.rules.iter().flatten().zip(0..) {
            let field = rule.host.as_deref().unwrap_or_default();
            match HostPattern::parse(field) {
                Ok(host) => {
                    if self.aliased.is_none() && host != HostPattern::Any && !self.notes.aliases.is_empty() {
                        self.aliased = Some(host.clone());
                    }
                    hosts.entry(host).or_default().push(number);
                }
                Err(error) => {
                    let text = format!("spec.rules host {field:?} cannot be served: {error}");
                    self.problem(ingress, Reason::InvalidHost, text);
                }
            }
        }
        if ingress.spec.default_backend.is_some() {
            if self.is_canary() {
                let text = "a canary's defaultBackend is not served: write it as a rule".to_owned();
                self.problem(ingress, Reason::Conflict, text);
            } else if hosts.is_empty() {
                hosts.insert(HostPattern::Any, Vec::new());
            }
        }
        self.hosts = hosts.into_iter().collect();
    }

    fn certificates(&mut self, snapshot: &Snapshot, ingress: &IngressFact) {
        let (mut certificates, mut with_tls) = (BTreeMap::new(), BTreeSet::new());
        for tls in ingress.spec.tls.iter().flatten() {
            let secret = self.usable_secret(snapshot, ingress, tls.secret_name.as_deref());
            for host in tls_hosts(ingress, tls.hosts.as_deref()) {
                match (HostPattern::parse(host), &secret) {
                    (Ok(host), secret) => {
                        if let Some(secret) = secret {
                            certificates.entry(host.clone()).or_insert_with(|| secret.clone());
                        }
                        with_tls.insert(host);
                    }
                    (Err(error), Some(_)) => {
                        let text = format!("spec.tls host {host:?} cannot be served: {error}");
                        self.problem(ingress, Reason::InvalidHost, text);
                    }
                    (Err(_), None) => {}
                }
            }
        }
        self.certificates = certificates.into_iter().collect();
        self.tls = with_tls.into_iter().collect();
        self.secrets.sort();
        self.secrets.dedup();
    }

    /// The secret of this name, if there is a usable pair in it; notes it if there is not.
    fn usable_secret(
        &mut self,
        snapshot: &Snapshot,
        ingress: &IngressFact,
        name: Option<&str>,
    ) -> Option<ObjectKey> {
        // No secret: these hosts are served with the default certificate.
        let key = ObjectKey::new(&ingress.key.namespace, name.filter(|name| !name.is_empty())?);
        self.secrets.push(key.clone());
        let why = match snapshot.secrets.get(&key) {
            None => return None, // not read yet
            Some(SecretFact::Usable(..)) => return Some(key),
            Some(SecretFact::Missing) => {
                let text = format!(
                    "Secret {:?} for TLS does not exist in namespace {:?}: its hosts are served with the default \
                     certificate until it does",
                    key.name, key.namespace
                );
                self.problem(ingress, Reason::BadSecret, text);
                return None;
            }
            Some(SecretFact::Unreadable(why)) => {
                let text = format!(
                    "Secret {:?} for TLS cannot be read: {why}. Its hosts are served with the default certificate until \
                     the ingress may list and watch this Secret: a Role that names it in resourceNames grants that",
                    key.name
                );
                self.problem(ingress, Reason::BadSecret, text);
                return None;
            }
            Some(SecretFact::Broken(why)) => why.as_str(),
            Some(SecretFact::Opaque(_)) => "it has no \"tls.crt\"",
        };
        let text = format!(
            "Secret {:?} for TLS is not usable: {why}. Its hosts are served with the default certificate until it is \
             made anew: kubectl create secret tls {} --cert=FILE --key=FILE",
            key.name, key.name
        );
        self.problem(ingress, Reason::BadSecret, text);
        None
    }

    fn services(&mut self, snapshot: &Snapshot, ingress: &IngressFact) {
        let rules = ingress.spec.rules.iter().flatten().filter_map(|rule| rule.http.as_ref());
        let backends = rules.flat_map(|http| &http.paths).map(|path| &path.backend);
        let backends = backends.chain(&ingress.spec.default_backend);
        let named = backends.filter_map(|backend| backend.service.as_ref());
        let key = |name: &str| ObjectKey::new(&ingress.key.namespace, name);
        let mut services: BTreeSet<ObjectKey> = named.map(|service| key(&service.name)).collect();
        if let Some(key) = self.default_service() {
            if snapshot.services.get(&key).is_none_or(|service| service.ports.is_empty()) {
                let text =
                    format!("annotation default-backend: Service {key} does not exist, or has no port");
                self.problem(ingress, Reason::BadService, text);
            }
            services.insert(key);
        }
        self.services = services.into_iter().collect();
    }

    /// The Service of annotation `default-backend`.
    pub(super) fn default_service(&self) -> Option<ObjectKey> {
        let name = self.notes.default_backend.as_deref().filter(|_| !self.is_canary())?;
        Some(ObjectKey::new(&self.age.1.namespace, name))
    }
}

/// Whether some rule takes requests for whatever host they name.
fn serves_any_host(ingress: &IngressFact) -> bool {
    let rules = ingress.spec.rules.as_deref().unwrap_or_default();
    rules.iter().any(|rule| rule.host.as_deref().unwrap_or_default().is_empty())
        || (rules.is_empty() && ingress.spec.default_backend.is_some())
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
