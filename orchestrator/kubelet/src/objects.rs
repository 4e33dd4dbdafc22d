//! The `ConfigMaps` and Secrets that this node's pods refer to, and nothing else of their kind.
//!
//! One watch for each referenced object, shared by all pods that name it, ended with the last of them: the node sees
//! only what its pods need, and an update reaches volumes without polling. At most [`MAX_WATCHES`] are open at a time
//! (`weir_kubelet_object_watches`); an object beyond that is fetched whenever its pod is set up, and its changes are
//! seen then. Callers: the pod workers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{env::namespace, metrics::Metrics, volumes::payload};

/// Watches open at once. Each is a connection to the apiserver, some tens of KiB on both sides.
pub(crate) const MAX_WATCHES: usize = 256;
/// How long a pod waits for the first answer about an object before it is told so in an event.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The two kinds of objects that become files and variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ObjectKind {
    /// Text and bytes.
    ConfigMap,
    /// The same, confidential.
    Secret,
}

impl ObjectKind {
    /// As messages name it: `configmap`.
    pub(crate) fn lower(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    /// As the API names it: `ConfigMap`.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    /// Its kind.
    pub(crate) kind: ObjectKind,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

impl ObjectKey {
    /// A ConfigMap.
    pub(crate) fn config_map(namespace: &str, name: &str) -> Self {
        Self { kind: ObjectKind::ConfigMap, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A Secret.
    pub(crate) fn secret(namespace: &str, name: &str) -> Self {
        Self { kind: ObjectKind::Secret, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// What an object holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Values by key, whether they were text or base64 in the API.
    pub(crate) data: BTreeMap<String, Bytes>,
}

impl Payload {
    #[cfg(test)]
    pub(crate) fn of(entries: &[(&str, &[u8])]) -> Arc<Self> {
        let entry = |(key, value): &(&str, &[u8])| ((*key).to_owned(), Bytes::copy_from_slice(value));
        Arc::new(Self { data: entries.iter().map(entry).collect() })
    }
}

impl From<ConfigMap> for Payload {
    fn from(map: ConfigMap) -> Self {
        let text = map.data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value)));
        let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value.0)));
        Self { data: text.chain(binary).collect() }
    }
}

impl From<Secret> for Payload {
    fn from(secret: Secret) -> Self {
        let data = secret.data.into_iter().flatten();
        Self { data: data.map(|(key, value)| (key, Bytes::from(value.0))).collect() }
    }
}

/// The apiserver has not said what an object is.
#[derive(Debug, thiserror::Error)]
#[error("{} \"{}\" could not be read from the apiserver: {reason}", key.kind.lower(), key.name)]
pub(crate) struct Unanswered {
    key: ObjectKey,
    reason: String,
}

/// What the apiserver says about an object.
#[derive(Debug, Clone)]
enum Answer {
    /// Nothing yet; with the last error.
    Pending(String),
    /// It is this, or does not exist.
    Known(Option<Arc<Payload>>),
}

struct Watched {
    /// Pods by uid, and how to wake their workers.
    users: HashMap<String, Arc<Notify>>,
    answer: watch::Receiver<Answer>,
    _task: AbortOnDropHandle<()>,
}

/// All watched objects.
pub(crate) struct Objects {
    client: Client,
    metrics: Metrics,
    // A plain mutex: held for map operations only, never across an await.
    watched: Mutex<HashMap<ObjectKey, Watched>>,
}

impl Objects {
    pub(crate) fn new(client: Client, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { client, metrics, watched: Mutex::default() })
    }

    /// From now on the pod uses exactly `keys`; `wake` is called when one of them changes.
    pub(crate) fn claim(self: &Arc<Self>, uid: &str, keys: &BTreeSet<ObjectKey>, wake: &Arc<Notify>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|key, entry| {
            if !keys.contains(key) {
                entry.users.remove(uid);
            }
            !entry.users.is_empty()
        });
        for key in keys {
            if let Some(entry) = watched.get_mut(key) {
                entry.users.insert(uid.to_owned(), wake.clone());
            } else if watched.len() < MAX_WATCHES {
                let mut entry = self.watch(key.clone());
                entry.users.insert(uid.to_owned(), wake.clone());
                watched.insert(key.clone(), entry);
            }
        }
        self.metrics.object_watches.set(watched.len() as i64);
    }

    /// The pod uses no object any more.
    pub(crate) fn release(self: &Arc<Self>, uid: &str) {
        self.claim(uid, &BTreeSet::new(), &Arc::default());
    }

    /// The objects that exist among `keys`.
    pub(crate) async fn get(
        &self,
        keys: &BTreeSet<ObjectKey>,
    ) -> Result<BTreeMap<ObjectKey, Arc<Payload>>, Unanswered> {
        let mut found = BTreeMap::new();
        for key in keys {
            if let Some(payload) = self.get_one(key).await? {
                found.insert(key.clone(), payload);
            }
        }
        Ok(found)
    }

    async fn get_one(&self, key: &ObjectKey) -> Result<Option<Arc<Payload>>, Unanswered> {
        let receiver = {
            let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.get(key).map(|entry| entry.answer.clone())
        };
        let unanswered = |reason| Unanswered { key: key.clone(), reason };
        let Some(mut receiver) = receiver else {
            return self.fetch(key).await.map_err(|error| unanswered(error.to_string()));
        };
        let known = receiver.wait_for(|answer| matches!(answer, Answer::Known(_)));
        if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_TIMEOUT, known).await
            && let Answer::Known(payload) = &*answer
        {
            return Ok(payload.clone());
        }
        let reason = match &*receiver.borrow() {
            Answer::Pending(reason) => reason.clone(),
            Answer::Known(payload) => return Ok(payload.clone()),
        };
        Err(unanswered(reason))
    }

    /// One plain GET, for what is beyond the bound of watches.
    async fn fetch(&self, key: &ObjectKey) -> Result<Option<Arc<Payload>>, kube::Error> {
        let (client, namespace) = (self.client.clone(), &key.namespace);
        Ok(match key.kind {
            ObjectKind::ConfigMap => Api::<ConfigMap>::namespaced(client, namespace)
                .get_opt(&key.name)
                .await?
                .map(|map| Arc::new(map.into())),
            ObjectKind::Secret => Api::<Secret>::namespaced(client, namespace)
                .get_opt(&key.name)
                .await?
                .map(|secret| Arc::new(secret.into())),
        })
    }

    fn watch(self: &Arc<Self>, key: ObjectKey) -> Watched {
        let (sender, answer) = watch::channel(Answer::Pending("no answer yet".to_owned()));
        let (client, weak) = (self.client.clone(), Arc::downgrade(self));
        let task = tokio::spawn(async move {
            match key.kind {
                ObjectKind::ConfigMap => {
                    follow(Api::<ConfigMap>::namespaced(client, &key.namespace), &key, &sender, &weak).await;
                }
                ObjectKind::Secret => {
                    follow(Api::<Secret>::namespaced(client, &key.namespace), &key, &sender, &weak).await;
                }
            }
        });
        Watched { users: HashMap::new(), answer, _task: AbortOnDropHandle::new(task) }
    }

    fn wake_users(&self, key: &ObjectKey) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for wake in watched.get(key).into_iter().flat_map(|entry| entry.users.values()) {
            wake.notify_one();
        }
    }
}

/// Keeps `sender` at what the apiserver says, until the task is aborted.
async fn follow<K>(api: Api<K>, key: &ObjectKey, sender: &watch::Sender<Answer>, objects: &Weak<Objects>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Into<Payload> + 'static,
{
    let mut stream = std::pin::pin!(watcher::watch_object(api, &key.name).default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(object) => {
                let payload = object.map(|object| Arc::new(object.into()));
                let changed = sender.send_if_modified(|answer| match answer {
                    Answer::Known(known) if *known == payload => false,
                    _ => {
                        *answer = Answer::Known(payload);
                        true
                    }
                });
                if changed && let Some(objects) = objects.upgrade() {
                    objects.wake_users(key);
                }
            }
            Err(error) => {
                tracing::debug!(kind = key.kind.title(), namespace = key.namespace, name = key.name, %error, "watch failed");
                // What was known stays known: an apiserver that is away takes nothing from running pods.
                sender.send_if_modified(|answer| {
                    if let Answer::Pending(reason) = answer {
                        *reason = error.to_string();
                    }
                    false
                });
            }
        }
    }
}

/// Every ConfigMap and Secret that the pod's volumes and environments name.
pub(crate) fn references(pod: &Pod) -> BTreeSet<ObjectKey> {
    let namespace = namespace(pod);
    let mut keys = BTreeSet::new();
    let Some(spec) = &pod.spec else { return keys };
    for volume in spec.volumes.iter().flatten() {
        keys.extend(payload::references(namespace, volume));
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for source in container.env_from.iter().flatten() {
            keys.extend(source.config_map_ref.iter().map(|map| ObjectKey::config_map(namespace, &map.name)));
            keys.extend(source.secret_ref.iter().map(|secret| ObjectKey::secret(namespace, &secret.name)));
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            keys.extend(
                source.config_map_key_ref.iter().map(|map| ObjectKey::config_map(namespace, &map.name)),
            );
            keys.extend(
                source.secret_key_ref.iter().map(|secret| ObjectKey::secret(namespace, &secret.name)),
            );
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_found_wherever_they_hide() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "ns"},
            "spec": {
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}]}],
                "containers": [{"name": "c",
                    "envFrom": [{"secretRef": {"name": "b"}}],
                    "env": [{"name": "x", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                            {"name": "y", "valueFrom": {"secretKeyRef": {"name": "d", "key": "k"}}}]}],
                "volumes": [
                    {"name": "1", "configMap": {"name": "e"}},
                    {"name": "2", "secret": {"secretName": "f"}},
                    {"name": "3", "projected": {"sources": [{"configMap": {"name": "g"}}, {"secret": {"name": "h"}}]}}],
            }
        }))
        .unwrap();
        let names: String = {
            let mut names: Vec<_> = references(&pod).into_iter().map(|key| key.name).collect();
            names.sort();
            names.concat()
        };
        assert_eq!(names, "abcdefgh");
    }
}
