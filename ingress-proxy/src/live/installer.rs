//! How what the compiler tells becomes what is served.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;

use super::{Live, Pairs, Pools, Target};
use crate::certificate::Certificate;
use crate::compile::{
    BackendKey, Credentials, HostUpdate, ObjectKey, SecretFact, Snapshot, TargetSpec, Update, endpoints,
};
use crate::config::Timeouts;
use crate::metrics::{MAX_LABELLED_TARGETS, Metrics, Sizes, TargetLabels, TargetMetrics};
use crate::shared::{Shared, lock};
use crate::table::{HostPattern, HostRules, RouteTable};
use crate::tls::{Certificates, ClientAuth, Pair};
use crate::upstream::{Checks, Pool};

/// Puts into service what the compiler tells. Owned by the watching task: there is one writer.
pub(crate) struct Installer {
    live: Arc<ArcSwap<Live>>,
    certificates: Arc<ArcSwap<Certificates>>,
    metrics: Metrics,
    timeouts: Timeouts,
    self_signed: Arc<CertifiedKey>,
    default_secret: Option<ObjectKey>,
    /// Nothing where endpoints are never checked.
    checks: Option<Checks>,
    pools: Arc<Pools>,
    series: Shared<TargetLabels, Arc<TargetMetrics>>,
    pairs: Arc<Pairs>,
    /// Nothing while the Secret is not usable.
    client_auths: Shared<Arc<str>, Option<Arc<ClientAuth>>>,
    doors: usize,
    /// Of all pools.
    endpoints: usize,
}

/// What of one host was made already.
struct Made {
    host: HostPattern,
    /// Targets, by where their specifications are.
    targets: HashMap<*const TargetSpec, (Arc<TargetSpec>, Arc<Target>)>,
}

impl Installer {
    pub(crate) fn new(
        live: Arc<ArcSwap<Live>>,
        certificates: Arc<ArcSwap<Certificates>>,
        metrics: Metrics,
        timeouts: Timeouts,
        self_signed: Arc<CertifiedKey>,
        default_secret: Option<ObjectKey>,
    ) -> Self {
        let (pools, pairs) = (Arc::clone(&live.load().pools), Arc::clone(&live.load().pairs));
        Self {
            live,
            certificates,
            metrics,
            timeouts,
            self_signed,
            default_secret,
            checks: None,
            pools,
            series: Shared::default(),
            pairs,
            client_auths: Shared::default(),
            doors: 0,
            endpoints: 0,
        }
    }

    /// Has endpoints checked where that is asked for.
    pub(crate) fn checking(self, checks: Checks) -> Self {
        Self { checks: Some(checks), ..self }
    }

    /// Replaces what is different in table and certificates. `since` is when the first of the changes arrived.
    pub(crate) fn install(&mut self, snapshot: &Snapshot, update: Update, since: Instant) {
        let mut table = self.live.load().table.clone();
        let (mut aliases, mut before) = (Vec::new(), Vec::new());
        for (host, update) in update.hosts {
            let rules = match update {
                HostUpdate::Rules(rules) => {
                    let mut made = Made { host: host.clone(), targets: HashMap::new() };
                    let rules = rules.map(|spec| self.target(snapshot, &spec, &mut made));
                    Some(Arc::new(rules.build()))
                }
                HostUpdate::SameAs(other) => {
                    aliases.push((host, other));
                    continue;
                }
                HostUpdate::Gone => None,
            };
            before.extend(self.replace(snapshot, &mut table, &host, rules));
        }
        for (alias, host) in aliases {
            let rules = table.rules(&host).cloned();
            before.extend(self.replace(snapshot, &mut table, &alias, rules));
        }
        self.install_certificates(snapshot, &update.certificates);
        let sizes = Sizes {
            hosts: table.hosts(),
            paths: update.totals.paths,
            certificates: update.totals.certificates,
            problems: update.totals.problems,
        };
        self.store(table);
        // Only now is nothing new routed to what is gone.
        for rules in before {
            self.release(&rules);
        }
        self.metrics.endpoints(self.endpoints);
        self.metrics.reloaded(since.elapsed(), sizes);
    }

    /// Brings the pools of these Services up to date; no rule changed.
    pub(crate) fn refresh(&mut self, snapshot: &Snapshot, services: &BTreeSet<ObjectKey>) {
        let pools = lock(&self.pools);
        for service in services {
            let first = BackendKey::new(service.clone(), "");
            let first = pools.0.range(Arc::new(first)..);
            for (key, (pool, _)) in first.take_while(|(key, _)| key.service == *service) {
                update(pool, key, snapshot, &self.timeouts, &mut self.endpoints);
            }
        }
        self.metrics.endpoints(self.endpoints);
    }

    /// Puts the pairs that are in these secrets now in the place of those that were; no host has another secret.
    pub(crate) fn renew(&mut self, snapshot: &Snapshot, secrets: &BTreeSet<ObjectKey>) {
        if secrets.is_empty() {
            return;
        }
        for secret in secrets {
            let usable = usable(snapshot, secret);
            if let (Some((pair, _)), Some(usable)) = (lock(&self.pairs).0.get(secret), &usable) {
                pair.store(Arc::clone(usable));
                self.note_expiry(secret, usable);
            }
            if self.default_secret.as_ref() == Some(secret) {
                let default = usable.unwrap_or_else(|| Arc::clone(&self.self_signed));
                self.certificates.load().default_pair().store(default);
            }
        }
        let renewed: Vec<Arc<str>> = secrets
            .iter()
            .map(|secret| secret.to_string().into())
            .filter(|name| self.client_auths.0.contains_key(name))
            .collect();
        for name in &renewed {
            let auth = self.client_auth(snapshot, name);
            if let Some((slot, _)) = self.client_auths.0.get_mut(name) {
                *slot = auth;
            }
        }
        if !renewed.is_empty() {
            self.store(self.live.load().table.clone());
        }
        // Connections that are up keep what they were opened with, those that wait for a request are not used any more.
        for (key, (pool, _)) in &lock(&self.pools).0 {
            if key.tls.secret.as_ref().is_some_and(|secret| secrets.contains(secret)) {
                update(pool, key, snapshot, &self.timeouts, &mut self.endpoints);
            }
        }
        self.metrics.endpoints(self.endpoints);
    }

    /// Returns the rules that the host had.
    fn replace(
        &mut self,
        snapshot: &Snapshot,
        table: &mut RouteTable<Arc<Target>>,
        host: &HostPattern,
        rules: Option<Arc<HostRules<Arc<Target>>>>,
    ) -> Option<Arc<HostRules<Arc<Target>>>> {
        for target in rules.iter().flat_map(|rules| distinct(rules.targets()).into_values()) {
            if let Some(pool) = &target.pool {
                lock(&self.pools).hold(pool);
            }
            self.series.hold(target.metrics.labels());
            if let Some(name) = target.asks_by() {
                let is_new = !self.client_auths.0.contains_key(name);
                let auth = if is_new { self.client_auth(snapshot, name) } else { None };
                self.client_auths.0.entry(Arc::clone(name)).or_insert((auth, 0));
                self.client_auths.hold(name);
            }
            self.metrics.hosts.hold(&target.host);
        }
        self.doors += usize::from(rules.as_deref().is_some_and(has_door));
        let before = table.rules(host).cloned();
        table.set(host, rules);
        before
    }

    fn release(&mut self, rules: &HostRules<Arc<Target>>) {
        self.doors -= usize::from(has_door(rules));
        for target in distinct(rules.targets()).into_values() {
            let pool = target.pool.as_ref();
            if let Some(pool) = pool.and_then(|pool| lock(&self.pools).release(pool)) {
                self.endpoints -= pool.len();
                pool.retire();
            }
            if let Some(series) = self.series.release(target.metrics.labels()) {
                self.metrics.forget(series.labels());
            }
            if let Some(name) = target.asks_by() {
                self.client_auths.release(name);
            }
            self.metrics.hosts.release(&target.host);
        }
    }

    fn store(&self, table: RouteTable<Arc<Target>>) {
        let usable = |(name, (auth, _)): (&Arc<str>, &(Option<Arc<ClientAuth>>, usize))| {
            auth.as_ref().map(|auth| (Arc::clone(name), Arc::clone(auth)))
        };
        let client_auths = Arc::new(self.client_auths.0.iter().filter_map(usable).collect());
        let (pools, pairs, doors) = (Arc::clone(&self.pools), Arc::clone(&self.pairs), self.doors);
        self.live.store(Arc::new(Live { table, pools, pairs, client_auths, doors }));
    }

    /// The handshake that asks for certificates of this Secret's authorities. Without it the rules are closed, and the compiler
    /// has said why.
    fn client_auth(&self, snapshot: &Snapshot, name: &Arc<str>) -> Option<Arc<ClientAuth>> {
        let (namespace, secret) = name.split_once('/')?;
        let credentials = Credentials::of(snapshot, Some(&ObjectKey::new(namespace, secret)));
        let auth = ClientAuth::new(name, credentials.authorities.as_deref()?, Arc::clone(&self.certificates));
        auth.map(Arc::new).ok()
    }

    fn target(&mut self, snapshot: &Snapshot, spec: &Arc<TargetSpec>, made: &mut Made) -> Arc<Target> {
        if let Some((_, known)) = made.targets.get(&Arc::as_ptr(spec)) {
            return Arc::clone(known);
        }
        let canary = spec.canary.as_ref().map(|canary| self.target(snapshot, canary, made));
        let fallback = spec.fallback.as_ref().map(|fallback| self.target(snapshot, fallback, made));
        let labels = TargetLabels { ingress: spec.owner.to_string(), service: spec.service.clone() };
        let (backend, pool) = match &spec.backend {
            Ok(key) => {
                let (key, pool) = self.pool(snapshot, key);
                (Ok(pool), Some(key))
            }
            Err(why) => (Err(why.as_str().into()), None),
        };
        let target = Arc::new(Target {
            ingress: labels.ingress.as_str().into(),
            service: spec.service.as_str().into(),
            backend,
            pool,
            policy: spec.policy.clone(),
            canary,
            fallback,
            metrics: self.counters(labels),
            host: self.metrics.hosts.of(&made.host),
        });
        made.targets.insert(Arc::as_ptr(spec), (Arc::clone(spec), Arc::clone(&target)));
        target
    }

    fn pool(&mut self, snapshot: &Snapshot, key: &BackendKey) -> (Arc<BackendKey>, Arc<Pool>) {
        let mut pools = lock(&self.pools);
        if let Some((key, (pool, _))) = pools.0.get_key_value(key) {
            return (Arc::clone(key), Arc::clone(pool));
        }
        let (key, pool) = (Arc::new(key.clone()), Arc::new(Pool::default()));
        update(&pool, &key, snapshot, &self.timeouts, &mut self.endpoints);
        if let Some(checks) = &self.checks {
            checks.begin(&pool, &key);
        }
        pools.0.insert(Arc::clone(&key), (Arc::clone(&pool), 0));
        (key, pool)
    }

    /// Those of the pair of Ingress and Service or, at the bound, those that all others share: until its host is
    /// compiled again, even if there is room before.
    fn counters(&mut self, labels: TargetLabels) -> Arc<TargetMetrics> {
        let has_own = self.series.0.contains_key(&labels) || self.series.0.len() < MAX_LABELLED_TARGETS;
        let labels = if has_own { labels } else { TargetLabels::other() };
        let series = self.series.0.entry(labels);
        let (counters, _) = series.or_insert_with_key(|labels| (self.metrics.target(labels), 0));
        Arc::clone(counters)
    }

    fn install_certificates(
        &mut self,
        snapshot: &Snapshot,
        changes: &BTreeMap<HostPattern, (Option<ObjectKey>, Option<ObjectKey>)>,
    ) {
        if changes.is_empty() {
            return;
        }
        let mut table = Certificates::clone(&self.certificates.load());
        for (host, (_, now)) in changes {
            table.set(host, now.as_ref().map(|secret| self.pair(snapshot, secret)));
        }
        self.certificates.store(Arc::new(table));
        for secret in changes.values().filter_map(|(before, _)| before.as_ref()) {
            if lock(&self.pairs).release(secret).is_some() {
                self.metrics.certificate_expiry(secret, None);
            }
        }
    }

    fn pair(&self, snapshot: &Snapshot, secret: &ObjectKey) -> Pair {
        let now = || usable(snapshot, secret).unwrap_or_else(|| Arc::clone(&self.self_signed));
        if let Some(usable) = usable(snapshot, secret) {
            self.note_expiry(secret, &usable);
        }
        let mut pairs = lock(&self.pairs);
        let pair = pairs.0.entry(secret.clone()).or_insert_with(|| (Arc::new(ArcSwap::new(now())), 0));
        let pair = Arc::clone(&pair.0);
        pairs.hold(secret);
        pair
    }

    fn note_expiry(&self, secret: &ObjectKey, pair: &CertifiedKey) {
        self.metrics.certificate_expiry(secret, Certificate::of(pair).map(|read| read.not_after));
    }
}

/// Brings a pool up to date; `count` is of the endpoints of all pools.
fn update(pool: &Pool, key: &BackendKey, snapshot: &Snapshot, timeouts: &Timeouts, count: &mut usize) {
    *count -= pool.len();
    pool.update(key, &endpoints(snapshot, key), timeouts);
    *count += pool.len();
}

/// Whether connections for the host are special; all of its rules say so.
fn has_door(rules: &HostRules<Arc<Target>>) -> bool {
    let policy = rules.targets().next().and_then(|target| target.policy.as_ref());
    policy.is_some_and(|policy| policy.passthrough || policy.clients.is_some())
}

/// Each target once, with canaries and fallbacks.
fn distinct<'a>(targets: impl Iterator<Item = &'a Arc<Target>>) -> BTreeMap<*const Target, &'a Target> {
    let mut found = BTreeMap::new();
    let mut open: Vec<&'a Arc<Target>> = targets.collect();
    while let Some(target) = open.pop() {
        if found.insert(Arc::as_ptr(target), &**target).is_none() {
            open.extend(target.canary.iter().chain(&target.fallback));
        }
    }
    found
}

fn usable(snapshot: &Snapshot, secret: &ObjectKey) -> Option<Arc<CertifiedKey>> {
    match snapshot.secrets.get(secret) {
        Some(SecretFact::Usable(pair, _)) => Some(Arc::clone(pair)),
        _ => None,
    }
}

#[cfg(test)]
impl Installer {
    /// What is kept for what is served, by name.
    pub(crate) fn kept(&self) -> (Vec<BackendKey>, Vec<TargetLabels>, Vec<ObjectKey>, usize) {
        let pools = lock(&self.pools).0.keys().map(|key| BackendKey::clone(key)).collect();
        let (series, pairs) = (&self.series.0, &lock(&self.pairs).0);
        (pools, series.keys().cloned().collect(), pairs.keys().cloned().collect(), self.endpoints)
    }
}
