//! What is being served right now, and how a compiled table becomes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;

use crate::compile::{BackendKey, Compiled, ObjectKey, SecretFact, Snapshot, endpoints};
use crate::config::Timeouts;
use crate::metrics::{MAX_LABELLED_TARGETS, Metrics, Sizes, TargetLabels, TargetMetrics};
use crate::policy::{Passage, Policy};
use crate::table::{RouteTable, TargetId};
use crate::tls::Certificates;
use crate::upstream::Pool;

/// A table and what its target numbers mean; swapped whole.
#[derive(Debug, Default)]
pub(crate) struct Live {
    table: RouteTable,
    targets: Box<[Arc<Target>]>,
}

impl Live {
    /// The target for a request.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<&Arc<Target>> {
        self.table.lookup(host, path).map(|TargetId(id)| &self.targets[id as usize])
    }

    /// Closes connections to endpoints that waited too long. Returns how many are left.
    pub(crate) fn sweep(&self) -> usize {
        let pools: BTreeMap<_, _> = self
            .targets
            .iter()
            .filter_map(|target| target.backend.as_ref().ok())
            .map(|pool| (Arc::as_ptr(pool), pool))
            .collect();
        pools.into_values().map(|pool| pool.sweep()).sum()
    }
}

/// Where a rule sends its requests.
#[derive(Debug)]
pub(crate) struct Target {
    /// `namespace/name` of the Ingress.
    pub(crate) ingress: Box<str>,
    /// Name of the Service.
    pub(crate) service: Box<str>,
    /// Its endpoints, or why there can be none.
    pub(crate) backend: Result<Arc<Pool>, Box<str>>,
    /// What becomes of requests before and after.
    pub(crate) policy: Option<Arc<Policy>>,
    /// Where the policy's canary sends requests.
    pub(crate) canary: Option<Arc<Target>>,
    /// Who answers when there are no endpoints, and with error pages.
    pub(crate) fallback: Option<Arc<Target>>,
    pub(crate) metrics: Arc<TargetMetrics>,
}

impl Target {
    /// The canary, if the policies send a request there and it can be.
    pub(crate) fn canary_for(&self, passage: &Passage) -> Option<&Arc<Self>> {
        self.canary.as_ref().filter(|canary| passage.to_canary() && canary.has_endpoints())
    }

    /// Whether a request can be sent there.
    pub(crate) fn has_endpoints(&self) -> bool {
        self.backend.as_ref().is_ok_and(|pool| !pool.is_empty())
    }
}

/// Puts compiled tables into service. Owned by the watching task: there is one writer.
pub(crate) struct Installer {
    live: Arc<ArcSwap<Live>>,
    certificates: Arc<ArcSwap<Certificates>>,
    metrics: Metrics,
    timeouts: Timeouts,
    self_signed: Arc<CertifiedKey>,
    default_secret: Option<ObjectKey>,
    pools: BTreeMap<BackendKey, Arc<Pool>>,
    target_metrics: HashMap<TargetLabels, Arc<TargetMetrics>>,
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
        Self {
            live,
            certificates,
            metrics,
            timeouts,
            self_signed,
            default_secret,
            pools: BTreeMap::new(),
            target_metrics: HashMap::new(),
        }
    }

    /// Replaces table and certificates. `since` is when the first of the changes arrived.
    pub(crate) fn install(&mut self, snapshot: &Snapshot, compiled: Compiled, since: Instant) {
        let mut pools = BTreeMap::new();
        let mut series = HashMap::new();
        let mut targets: Vec<Arc<Target>> = Vec::with_capacity(compiled.targets.len());
        for spec in compiled.targets {
            let labels = TargetLabels { ingress: spec.owner.to_string(), service: spec.service.clone() };
            let backend = match spec.backend {
                Ok(key) => {
                    let pool = pools.entry(key).or_insert_with_key(|key| self.pool(snapshot, key));
                    Ok(Arc::clone(pool))
                }
                Err(why) => Err(why.into_boxed_str()),
            };
            let earlier = |id: Option<TargetId>| id.map(|TargetId(id)| Arc::clone(&targets[id as usize]));
            let (canary, fallback) = (earlier(spec.canary), earlier(spec.fallback));
            targets.push(Arc::new(Target {
                ingress: labels.ingress.clone().into_boxed_str(),
                service: spec.service.into_boxed_str(),
                backend,
                policy: spec.policy,
                canary,
                fallback,
                metrics: self.series(&mut series, labels),
            }));
        }
        let table = compiled.table;
        let sizes = Sizes {
            hosts: table.hosts(),
            paths: table.paths(),
            endpoints: pools.values().map(|pool| pool.len()).sum(),
            certificates: compiled.certificates.len(),
            problems: compiled.problems.len(),
        };
        self.install_certificates(snapshot, compiled.certificates);
        self.live.store(Arc::new(Live { table, targets: targets.into_boxed_slice() }));
        // Only now is nothing new routed to what is gone.
        self.pools = pools;
        let gone =
            self.target_metrics.keys().filter(|labels| !series.contains_key(*labels)).cloned().collect();
        self.metrics.forget(&gone);
        self.target_metrics = series;
        self.metrics.reloaded(since.elapsed(), sizes);
    }

    /// Brings the pools of these Services up to date; no rule changed.
    pub(crate) fn refresh(&self, snapshot: &Snapshot, services: &BTreeSet<ObjectKey>) {
        for service in services {
            let first = BackendKey { service: service.clone(), port: String::new(), h2c: false };
            for (key, pool) in self.pools.range(first..).take_while(|(key, _)| key.service == *service) {
                pool.update(&endpoints(snapshot, key), &self.timeouts);
            }
        }
    }

    fn pool(&self, snapshot: &Snapshot, key: &BackendKey) -> Arc<Pool> {
        let pool = self.pools.get(key).cloned().unwrap_or_default();
        pool.update(&endpoints(snapshot, key), &self.timeouts);
        pool
    }

    fn series(
        &self,
        series: &mut HashMap<TargetLabels, Arc<TargetMetrics>>,
        labels: TargetLabels,
    ) -> Arc<TargetMetrics> {
        let labels = if series.contains_key(&labels) || series.len() < MAX_LABELLED_TARGETS {
            labels
        } else {
            TargetLabels::other()
        };
        let known = self.target_metrics.get(&labels);
        let entry = series.entry(labels);
        let fresh = |labels: &TargetLabels| known.cloned().unwrap_or_else(|| self.metrics.target(labels));
        Arc::clone(entry.or_insert_with_key(fresh))
    }

    fn install_certificates(
        &self,
        snapshot: &Snapshot,
        hosts: BTreeMap<crate::table::HostPattern, ObjectKey>,
    ) {
        let usable = |key: &ObjectKey| match snapshot.secrets.get(key) {
            Some(SecretFact::Usable(pair)) => Some(Arc::clone(pair)),
            _ => None,
        };
        let default = self.default_secret.as_ref().and_then(usable);
        let default = default.unwrap_or_else(|| Arc::clone(&self.self_signed));
        let pairs = hosts.into_iter().filter_map(|(host, secret)| Some((host, usable(&secret)?)));
        self.certificates.store(Arc::new(Certificates::new(pairs, default)));
    }
}
