//! What is being served right now.

mod installer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub(crate) use installer::Installer;

use crate::compile::{BackendKey, ObjectKey};
use crate::metrics::{HostMetrics, TargetMetrics};
use crate::policy::{Passage, Policy};
use crate::shared::{Shared, lock};
use crate::table::RouteTable;
use crate::tls::{ClientAuth, Pair};
use crate::upstream::Pool;

/// The table in service; swapped whole.
#[derive(Debug, Default)]
pub(crate) struct Live {
    table: RouteTable<Arc<Target>>,
    pools: Arc<Pools>,
    pairs: Arc<Pairs>,
    /// Handshakes that ask for certificates, by the Secrets with the authorities.
    client_auths: Arc<BTreeMap<Arc<str>, Arc<ClientAuth>>>,
    /// Hosts whose connections are special.
    doors: usize,
}

/// What is special about TLS connections for a host.
pub(crate) enum Door {
    /// They go to the endpoints of this target as they are.
    Passthrough(Arc<Target>),
    /// The client is asked for a certificate.
    Clients(Arc<ClientAuth>),
}

/// What a look at all pools found.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// Connections that wait for a request.
    pub(crate) idle: usize,
    /// Endpoints that are ejected.
    pub(crate) ejected: usize,
    /// Endpoints that health checks took out.
    pub(crate) unhealthy: usize,
}

/// Pools by what they are known by. A lock, because the watching task adds and removes them while others go through them;
/// no request waits for it.
type Pools = Mutex<Shared<Arc<BackendKey>, Arc<Pool>>>;

/// Pairs by their secrets, of which there are as many as are watched. Likewise.
type Pairs = Mutex<Shared<ObjectKey, Pair>>;

impl Live {
    /// Hosts and paths.
    pub(crate) fn table(&self) -> &RouteTable<Arc<Target>> {
        &self.table
    }

    /// All backends with their endpoints, by Service.
    pub(crate) fn backends(&self) -> Vec<(Arc<BackendKey>, Arc<Pool>)> {
        let pools = lock(&self.pools);
        pools.0.iter().map(|(key, (pool, _))| (Arc::clone(key), Arc::clone(pool))).collect()
    }

    /// The secrets whose pairs answer for hosts.
    pub(crate) fn secrets(&self) -> Vec<(ObjectKey, Pair)> {
        lock(&self.pairs).0.iter().map(|(key, (pair, _))| (key.clone(), Arc::clone(pair))).collect()
    }

    /// The target for a request.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<&Arc<Target>> {
        self.table.lookup(host, path)
    }

    /// Whether connections for some host are special.
    pub(crate) fn has_doors(&self) -> bool {
        self.doors > 0
    }

    /// What is special about connections for this name; it stands in the policies of all rules of the host. A path that the
    /// host has no rule for is a wildcard's affair, or every host's: what those ask of clients is asked too, if it has
    /// nothing to ask itself.
    pub(crate) fn door(&self, name: &str) -> Option<Door> {
        let mut all = self.table.all_covering(name).filter_map(|rules| {
            let target = rules.lookup("/").or_else(|| rules.targets().next())?;
            Some((target, target.policy.as_ref()))
        });
        let (target, policy) = all.next()?;
        if policy.is_some_and(|policy| policy.passthrough) {
            return Some(Door::Passthrough(Arc::clone(target)));
        }
        let others = all.map(|(_, policy)| policy);
        let asked = std::iter::once(policy).chain(others).find_map(|policy| policy?.clients.as_ref())?;
        self.client_auths.get(&asked.authorities).map(|auth| Door::Clients(Arc::clone(auth)))
    }

    /// Closes connections to endpoints that waited too long. Returns what is left.
    pub(crate) fn sweep(&self) -> Swept {
        let pools: Vec<Arc<Pool>> = lock(&self.pools).0.values().map(|(pool, _)| Arc::clone(pool)).collect();
        let mut swept = Swept::default();
        for pool in pools {
            swept.idle += pool.sweep();
            swept.ejected += pool.ejected();
            swept.unhealthy += pool.unhealthy();
        }
        swept
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
    /// What the pool is known by.
    pool: Option<Arc<BackendKey>>,
    /// What becomes of requests before and after.
    pub(crate) policy: Option<Arc<Policy>>,
    /// Where the policy's canary sends requests.
    pub(crate) canary: Option<Arc<Target>>,
    /// Who answers when there are no endpoints, and with error pages.
    pub(crate) fallback: Option<Arc<Target>>,
    pub(crate) metrics: Arc<TargetMetrics>,
    /// Of the host whose rules it is of.
    pub(crate) host: Arc<HostMetrics>,
}

impl Target {
    /// The canary, if the policies send a request there and it can be.
    pub(crate) fn canary_for(&self, passage: &Passage) -> Option<&Arc<Self>> {
        self.canary.as_ref().filter(|canary| passage.to_canary() && canary.has_endpoints())
    }

    /// By which Secret's authorities clients are asked for certificates, if they are.
    fn asks_by(&self) -> Option<&Arc<str>> {
        Some(&self.policy.as_ref()?.clients.as_ref()?.authorities)
    }

    /// The Service and port that it sends to.
    pub(crate) fn sends_to(&self) -> Option<&BackendKey> {
        self.pool.as_deref()
    }

    /// Whether a request can be sent there.
    pub(crate) fn has_endpoints(&self) -> bool {
        self.backend.as_ref().is_ok_and(|pool| !pool.is_empty())
    }
}
