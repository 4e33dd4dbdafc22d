//! `status.loadBalancer`: where an Ingress can be reached.
//!
//! The addresses are given, or those of a Service: all Services are watched anyway, and of this one it is kept where it is
//! reached. A write is needed where a status differs from them, and one replica makes it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::watch;

use crate::compile::{Address, ObjectKey, Snapshot};
use crate::metrics::registered;
use crate::{Config, Error};

/// A status that was written is not written again for so long: its echo may still be under way, and whoever writes something
/// else is not raced.
const ECHO: Duration = Duration::from_secs(5);
/// The wait after a failed write, before everything that is still wrong is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Where the addresses come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// They are given; if there is none, status is left alone.
    Given(Vec<Address>),
    /// They are this Service's.
    Service(ObjectKey),
}

impl Source {
    pub(crate) fn of(config: &Config) -> Result<Self, Error> {
        let Some(service) = &config.publish_service else {
            let given = config.publish_address.iter().map(|text| Address::from(text.as_str()));
            return Ok(Self::Given(given.collect()));
        };
        if !config.publish_address.is_empty() {
            return Err(Error::PublishTwice);
        }
        let key = ObjectKey::parse(service).ok_or_else(|| Error::PublishService(service.clone()))?;
        Ok(Self::Service(key))
    }

    /// Whether anything can ever come of it.
    pub(crate) fn says_something(&self) -> bool {
        match self {
            Self::Given(addresses) => !addresses.is_empty(),
            Self::Service(_) => true,
        }
    }
}

/// What operators see of it.
#[derive(Debug, Clone)]
pub(crate) struct StatusMetrics {
    pub(super) addresses: Gauge,
    pub(super) outdated: Gauge,
    failures: Counter,
}

impl StatusMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            addresses: registered(
                r,
                "status_addresses",
                "Addresses to publish; with none, every status stays as it is",
            ),
            outdated: registered(r, "status_outdated", "Ingresses whose status has other addresses"),
            failures: registered(r, "status_failures", "Writes of a status that failed and are tried again"),
        }
    }
}

/// What is to be done about statuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What every status is to have; if it is none, statuses stay as they are.
    pub(super) addresses: Arc<[Address]>,
    /// The Ingresses whose status is wrong.
    pub(super) wrong: BTreeSet<ObjectKey>,
}

impl Wanted {
    /// Looks at these Ingresses again. Says whether anything else is to be done now.
    fn look(
        &mut self,
        ingresses: &BTreeSet<ObjectKey>,
        claimed: &BTreeSet<ObjectKey>,
        snapshot: &Snapshot,
    ) -> bool {
        let Self { addresses, wrong } = self;
        let is_wrong = |key: &ObjectKey| {
            let ingress = snapshot.ingresses.get(key).filter(|_| claimed.contains(key));
            !addresses.is_empty() && ingress.is_some_and(|ingress| *ingress.published != **addresses)
        };
        let mut modified = false;
        for key in ingresses {
            modified |= if is_wrong(key) { wrong.insert(key.clone()) } else { wrong.remove(key) };
        }
        modified
    }
}

/// Knows which statuses differ from what is wanted, and has them written in the background while this replica leads.
pub(crate) struct Publisher {
    /// The Service whose addresses are published.
    service: Option<ObjectKey>,
    /// Why it has none, as it was last said.
    fault: Option<&'static str>,
    claimed: BTreeSet<ObjectKey>,
    wanted: watch::Sender<Wanted>,
    metrics: StatusMetrics,
}

impl Publisher {
    pub(crate) fn start(
        client: Client,
        source: Source,
        leads: watch::Receiver<bool>,
        metrics: StatusMetrics,
    ) -> Self {
        let says_something = source.says_something();
        let failures = metrics.failures.clone();
        let (publisher, wanted) = Self::new(source, metrics);
        if says_something {
            tokio::spawn(write_all(client, wanted, leads, failures));
        }
        publisher
    }

    /// And what is to be written.
    pub(super) fn new(source: Source, metrics: StatusMetrics) -> (Self, watch::Receiver<Wanted>) {
        let (addresses, service): (Arc<[Address]>, _) = match source {
            Source::Given(addresses) => (addresses.into(), None),
            Source::Service(service) => (Arc::default(), Some(service)),
        };
        metrics.addresses.set(addresses.len() as i64);
        let (wanted, receiver) = watch::channel(Wanted { addresses, wrong: BTreeSet::new() });
        (Self { service, fault: None, claimed: BTreeSet::new(), wanted, metrics }, receiver)
    }

    /// The Service whose addresses are published, if they are one's.
    pub(super) fn service(&self) -> Option<&ObjectKey> {
        self.service.as_ref()
    }

    /// Looks where the Service is reached now. One that is reached nowhere empties no status: clients that come where they came
    /// before are better off than those that are told of no place.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        let Some(service) = &self.service else { return };
        let (addresses, fault) = match snapshot.services.get(service) {
            None => (&[][..], Some("is not there")),
            Some(fact) if fact.addresses.is_empty() => (&[][..], Some("has no address")),
            Some(fact) => (&fact.addresses[..], None),
        };
        if let Some(fault) = fault.filter(|_| self.fault != fault) {
            tracing::warn!(%service, "nothing is published, and what was stays: the Service of --publish-service {fault}");
        }
        self.fault = fault;
        if *self.wanted.borrow().addresses == *addresses {
            return;
        }
        // Both at once: with the old list, no addresses would be written where they were missing.
        self.wanted.send_modify(|wanted| {
            wanted.addresses = addresses.into();
            wanted.look(&self.claimed, &self.claimed, snapshot);
        });
        self.metrics.addresses.set(addresses.len() as i64);
        self.count();
    }

    /// These Ingresses are ours now, or no more.
    pub(super) fn claim(&mut self, snapshot: &Snapshot, ingresses: BTreeMap<ObjectKey, bool>) {
        let mut looked_at = BTreeSet::new();
        for (key, is_ours) in ingresses {
            if is_ours {
                self.claimed.insert(key.clone());
            } else {
                self.claimed.remove(&key);
            }
            looked_at.insert(key);
        }
        self.publish(snapshot, &looked_at);
    }

    /// Publishes where it is needed: the status of these Ingresses may have changed.
    pub(super) fn publish(&self, snapshot: &Snapshot, ingresses: &BTreeSet<ObjectKey>) {
        self.wanted.send_if_modified(|wanted| wanted.look(ingresses, &self.claimed, snapshot));
        self.count();
    }

    fn count(&self) {
        self.metrics.outdated.set(self.wanted.borrow().wrong.len() as i64);
    }
}

/// What is wrong while another leads is looked at when this replica does. Ends when the publisher is dropped, or when this
/// replica will never lead.
async fn write_all(
    client: Client,
    mut wanted: watch::Receiver<Wanted>,
    mut leads: watch::Receiver<bool>,
    failures: Counter,
) {
    let mut written: HashMap<ObjectKey, Instant> = HashMap::new();
    let mut addresses = Arc::default();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let now = wanted.borrow_and_update().clone();
        if now.addresses != addresses {
            written.clear();
            addresses = now.addresses;
        }
        written.retain(|_, when| when.elapsed() < ECHO);
        let body = json!({ "status": { "loadBalancer": { "ingress": *addresses } } });
        let (mut failed, mut awaits_echo) = (false, false);
        for key in now.wrong {
            if written.contains_key(&key) {
                awaits_echo = true;
                continue;
            }
            if !*leads.borrow() || wanted.borrow().addresses != addresses {
                break;
            }
            let api = Api::<Ingress>::namespaced(client.clone(), &key.namespace);
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&body)).await {
                Ok(_) => {
                    written.insert(key, Instant::now());
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {} // it is gone, so is the need
                Err(error) => {
                    tracing::warn!(ingress = %key, %error, "cannot publish the status, trying again");
                    failures.inc();
                    failed = true;
                }
            }
        }
        let again = async {
            if failed {
                tokio::time::sleep(RETRY).await;
                wanted.has_changed().map(drop)
            } else if awaits_echo {
                // Somebody else may have written since.
                tokio::time::timeout(ECHO, wanted.changed()).await.unwrap_or(Ok(()))
            } else {
                wanted.changed().await
            }
        };
        tokio::select! {
            gone = again => if gone.is_err() { return },
            () = lost(&mut leads) => written.clear(),
        }
    }
}

/// Waits until this replica leads no more.
async fn lost(leads: &mut watch::Receiver<bool>) {
    // One that stands in no election leads for good.
    if leads.wait_for(|leads| !*leads).await.is_err() {
        std::future::pending::<()>().await;
    }
}
