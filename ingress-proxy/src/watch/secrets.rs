//! Secrets of certificates and passwords: watched one by one, by name.
//!
//! A watch over all secrets would be one stream instead of many, and would need the right to read every secret
//! of the cluster: whoever takes over the proxy would own the cluster. A watch with a field selector on
//! `metadata.name` needs the right for that name only (RBAC `resourceNames`), and memory holds no secret that
//! is not served. The price is a connection to the apiserver per secret, so their number is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::change::Change;
use crate::compile::{AUTHORITIES, ObjectKey, SecretFact, Snapshot};
use crate::metrics::Metrics;
use crate::tls::{PairError, read_pair};

/// Secrets that are watched at a time. One beyond is reported as an Event on the Ingress that names it.
const MAX_WATCHES: usize = 512;
/// Changes that may wait to be taken in; a watch that has more waits itself.
const QUEUE: usize = 64;

/// The running watches.
pub(super) struct Watches {
    client: Client,
    running: BTreeMap<ObjectKey, AbortHandle>,
    /// Named, but beyond the bound.
    waiting: BTreeSet<ObjectKey>,
    /// Watched whether an Ingress names it or not.
    always: Option<ObjectKey>,
    changes: mpsc::Receiver<(ObjectKey, SecretFact)>,
    sender: mpsc::Sender<(ObjectKey, SecretFact)>,
    count: Gauge,
    refused: Gauge,
}

impl Watches {
    pub(super) fn new(client: Client, always: Option<ObjectKey>, metrics: &Metrics) -> Self {
        let (sender, changes) = mpsc::channel(QUEUE);
        let (count, refused) = (metrics.secret_watches.clone(), metrics.secrets_refused.clone());
        let (running, waiting) = (BTreeMap::new(), BTreeSet::new());
        let mut watches = Self { client, running, waiting, always, changes, sender, count, refused };
        if let Some(always) = watches.always.clone() {
            watches.start(always);
        }
        watches
    }

    /// Starts and ends watches: these secrets are named now, or no more. Returns those that are not watched, for there are
    /// too many; the snapshot says so of them.
    pub(super) fn follow(
        &mut self,
        named: BTreeMap<ObjectKey, bool>,
        snapshot: &mut Snapshot,
    ) -> BTreeSet<ObjectKey> {
        let named = named.into_iter().filter(|(key, _)| self.always.as_ref() != Some(key));
        let (new, gone): (Vec<_>, Vec<_>) = named.partition(|(_, is_named)| *is_named);
        for (key, _) in gone {
            if let Some(watch) = self.running.remove(&key) {
                watch.abort();
            }
            self.waiting.remove(&key);
            snapshot.secrets.remove(&key);
        }
        self.waiting.extend(new.iter().map(|(key, _)| key.clone()));
        while self.running.len() < MAX_WATCHES
            && let Some(key) = self.waiting.pop_first()
        {
            self.start(key);
        }
        self.count.set(self.running.len() as i64);
        self.refused.set(self.waiting.len() as i64);
        let new = new.into_iter().map(|(key, _)| key);
        let refused: BTreeSet<ObjectKey> = new.filter(|key| self.waiting.contains(key)).collect();
        for key in &refused {
            let why = format!("more than {MAX_WATCHES} secrets are in use");
            snapshot.secrets.insert(key.clone(), SecretFact::Broken(why));
        }
        refused
    }

    fn start(&mut self, key: ObjectKey) {
        let task = tokio::spawn(follow(self.client.clone(), key.clone(), self.sender.clone()));
        self.running.insert(key, task.abort_handle());
    }

    /// Whether every watched secret was read, or found missing.
    pub(super) fn all_read(&self, snapshot: &Snapshot) -> bool {
        self.running.keys().all(|key| snapshot.secrets.contains_key(key))
    }

    /// The next change. Never ends: this end of the queue is kept open.
    pub(super) async fn changed(&mut self) -> Change {
        loop {
            match self.changes.recv().await {
                Some(change) => {
                    if let Some(change) = self.of_running(change) {
                        return change;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    /// The next change if there is one.
    pub(super) fn changed_already(&mut self) -> Option<Change> {
        while let Ok(change) = self.changes.try_recv() {
            if let Some(change) = self.of_running(change) {
                return Some(change);
            }
        }
        None
    }

    /// A watch that was ended may have left something in the queue.
    fn of_running(&self, (key, fact): (ObjectKey, SecretFact)) -> Option<Change> {
        self.running.contains_key(&key).then(|| Change::Secret(key, fact))
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for watch in self.running.values() {
            watch.abort();
        }
    }
}

/// Follows one secret until aborted.
async fn follow(client: Client, key: ObjectKey, changes: mpsc::Sender<(ObjectKey, SecretFact)>) {
    let api = Api::<Secret>::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut events = watch(api, config).default_backoff().boxed();
    let mut known = false;
    let mut listed = false;
    while let Some(event) = events.next().await {
        let fact = match event {
            Ok(Event::Init) => {
                listed = false;
                continue;
            }
            Ok(Event::InitApply(secret) | Event::Apply(secret)) => {
                listed = true;
                read(&secret)
            }
            Ok(Event::InitDone) if listed => continue,
            Ok(Event::InitDone | Event::Delete(_)) => SecretFact::Missing,
            Err(error) => {
                tracing::warn!(secret = %key, %error, "watch failed, trying again");
                if known {
                    continue; // what was read is better than nothing
                }
                SecretFact::Unreadable(why(&error))
            }
        };
        known = true;
        if changes.send((key.clone(), fact)).await.is_err() {
            return;
        }
    }
}

/// What the API server says, where it is that.
fn why(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}

/// What a secret is good for.
pub(crate) fn read(secret: &Secret) -> SecretFact {
    let has_pair = |name| secret.data.as_ref().is_some_and(|data| data.contains_key(name));
    if !has_pair("tls.crt") && !has_pair("tls.key") {
        let data = secret.data.iter().flatten();
        return SecretFact::Opaque(Arc::new(
            data.map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect(),
        ));
    }
    let part = |name: &'static str| {
        let found = secret.data.as_ref().and_then(|data| data.get(name));
        found.map(|bytes| bytes.0.as_slice()).ok_or(PairError::Missing(name))
    };
    let pair = part("tls.crt").and_then(|chain| read_pair(chain, part("tls.key")?));
    match pair {
        Ok(pair) => {
            let authorities = secret.data.as_ref().and_then(|data| data.get(AUTHORITIES));
            SecretFact::Usable(Arc::new(pair), authorities.map(|pem| pem.0.as_slice().into()))
        }
        Err(error) => SecretFact::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_beyond_the_bound_waits_for_a_place() {
        let nobody = "http://127.0.0.1:1".parse().unwrap();
        let client = Client::try_from(kube::Config::new(nobody)).unwrap();
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let key = |number: usize| ObjectKey::new("n", &format!("s{number:04}"));
        let mut watches = Watches::new(client, Some(key(0)), &metrics);
        let mut snapshot = Snapshot::default();
        let mut follow = |numbers: std::ops::Range<usize>, is_named: bool| {
            let named = numbers.map(|number| (key(number), is_named)).collect();
            let refused = watches.follow(named, &mut snapshot);
            assert!(refused.iter().all(|key| matches!(snapshot.secrets[key], SecretFact::Broken(_))));
            (refused.into_iter().collect::<Vec<_>>(), snapshot.secrets.len())
        };
        assert_eq!(follow(0..MAX_WATCHES + 1, true), (vec![key(MAX_WATCHES)], 1));
        assert_eq!((metrics.secret_watches.get(), metrics.secrets_refused.get()), (MAX_WATCHES as i64, 1));
        assert_eq!(follow(7..8, false), (vec![], 1), "the place is taken, and the secret is not read yet");
        assert_eq!((metrics.secret_watches.get(), metrics.secrets_refused.get()), (MAX_WATCHES as i64, 0));
        assert_eq!(follow(0..MAX_WATCHES + 1, false), (vec![], 0));
        assert_eq!(metrics.secret_watches.get(), 1, "the default one is always watched");
    }
}
