//! Deletes what its owners leave behind: `metadata.ownerReferences`.
//!
//! Of every kind only the metadata is looked at. Kinds that other controllers watch are seen through their watch; the
//! rest is watched as `PartialObjectMetadata`. Nothing is deleted on the word of a cache alone: an owner that was never
//! seen is asked for, and each deletion names the UID and version that it was decided on.

mod graph;
pub(crate) mod kinds;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_client::{
    Informer, ObjectKey, Outcome, Queue, QueueMetrics, is_conflict, is_not_found, run_workers,
};

use self::graph::{Graph, Identity, Item, Owner, Policy, Step};
use self::kinds::{Kind, Kinds};
use crate::error::{Error, Trying};
use crate::namespace::Namespaces;
use crate::shared::{Shared, Watches};

/// Objects looked at at once.
const WORKERS: usize = 8;
/// Event objects have no owners and are many.
const NOT_WATCHED: &str = "Event";

/// The controller.
pub(crate) struct Garbage {
    shared: Arc<Shared>,
    queue: Arc<Queue<String>>,
    // A blocking lock, never held across an await.
    graph: Arc<Mutex<Graph>>,
    kinds: OnceLock<Kinds>,
}

type Metadata = Api<PartialObjectMeta<DynamicObject>>;

impl Garbage {
    pub(crate) fn new(shared: &Arc<Shared>, watches: &mut Watches, metrics: &QueueMetrics) -> Self {
        let garbage = Self {
            shared: shared.clone(),
            queue: Arc::new(Queue::new("garbage-collector", metrics)),
            graph: Arc::default(),
            kinds: OnceLock::new(),
        };
        watches.on_meta(garbage.observer());
        garbage
    }

    fn observer(&self) -> impl Fn(&str, &str, &ObjectKey, Option<&ObjectMeta>) + Clone + Send + Sync + use<> {
        let (graph, queue) = (self.graph.clone(), self.queue.clone());
        move |api_version, kind, key, meta| {
            let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
            let identity = Identity { api_version, kind, key: key.clone() };
            let look = graph.lock().unwrap_or_else(PoisonError::into_inner).apply(&identity, meta);
            for uid in look {
                queue.add(uid);
            }
        }
    }

    /// Watches the metadata of the kinds that nobody else watches; waits until all have been listed.
    pub(crate) async fn watch(
        &self,
        kinds: Kinds,
        namespaces: &Arc<Namespaces>,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) -> bool {
        let elsewhere = Watches::kinds();
        let mut caches = Vec::new();
        for kind in kinds.iter() {
            let (version, name) = (kind.resource.api_version.clone(), kind.resource.kind.clone());
            if name == NOT_WATCHED || elsewhere.contains(&(version.clone(), name.clone())) {
                continue;
            }
            let api: Metadata = Api::all_with(self.shared.client.clone(), &kind.resource);
            // The graph keeps what is needed, the cache of this watch stays empty.
            let mut informer = Informer::<_, ()>::new(api, watcher::Config::default(), |_| None);
            let (observe, namespaces) = (self.observer(), namespaces.observer());
            informer.on_meta(move |key, meta| {
                observe(&version, &name, key, meta);
                namespaces(key, meta);
            });
            caches.push(informer.cache());
            tasks.spawn(informer.run(shutdown.clone()));
        }
        // Set once: this is called once.
        let _ = self.kinds.set(kinds);
        for cache in caches {
            if !cache.synced().await {
                return false;
            }
        }
        true
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |uid| self.reconcile(uid)).await;
    }

    fn lock(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind(&self, api_version: &str, kind: &str) -> Option<&Kind> {
        let kinds = self.kinds.get()?;
        // Owners may name another version of the group than the one that is preferred.
        let group =
            |version: &str| version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned());
        kinds.iter().find(|known| known.resource.kind == kind && known.resource.group == group(api_version))
    }

    fn api(&self, item: &Identity) -> Option<Metadata> {
        let kind = self.kind(&item.api_version, &item.kind)?;
        Some(api(&self.shared.client, &kind.resource, kind.namespaced, &item.key.namespace))
    }

    async fn reconcile(&self, uid: String) -> Result<Outcome, Error> {
        let Some(item) = self.lock().get(&uid).cloned() else { return Ok(Outcome::Done) };
        let mut absent = Vec::new();
        for owner in &item.owners {
            let known = self.lock().owner(&owner.uid);
            if known.is_none() && !self.exists(owner, &item.identity.key.namespace).await? {
                absent.push(owner.uid.clone());
            }
        }
        let step = {
            let graph = self.lock();
            // Never seen and yet there: a kind that is not watched, or an owner newer than its watch.
            let unseen = |owner: &str| {
                if absent.iter().any(|uid| uid == owner) { Owner::Absent } else { Owner::Solid }
            };
            graph.plan(&uid, |owner| graph.owner(owner).unwrap_or_else(|| unseen(owner)))
        };
        match step {
            None => Ok(Outcome::Done),
            Some(step) => self.execute(&uid, &item, step).await,
        }
    }

    /// Asks whether the owner is there. One of a kind that is not served counts as there: better to keep too much.
    async fn exists(&self, owner: &OwnerReference, namespace: &str) -> Result<bool, Error> {
        let Some(kind) = self.kind(&owner.api_version, &owner.kind) else { return Ok(true) };
        let api = api(&self.shared.client, &kind.resource, kind.namespaced, namespace);
        let live = api.get_opt(&owner.name).await.trying("look for owner", &owner.name)?;
        Ok(live.is_some_and(|live| live.metadata.uid.as_deref() == Some(&owner.uid)))
    }

    async fn execute(&self, uid: &str, item: &Item, step: Step) -> Result<Outcome, Error> {
        let Some(api) = self.api(&item.identity) else { return Ok(Outcome::Done) };
        let name = &item.identity.key.name;
        let result = match step {
            Step::Look(uids) => {
                for uid in uids {
                    self.queue.add(uid);
                }
                return Ok(Outcome::Done);
            }
            Step::Delete(policy) => {
                let params = DeleteParams {
                    propagation_policy: Some(match policy {
                        Policy::Background => PropagationPolicy::Background,
                        Policy::Foreground => PropagationPolicy::Foreground,
                        Policy::Orphan => PropagationPolicy::Orphan,
                    }),
                    preconditions: Some(Preconditions {
                        uid: Some(uid.to_owned()),
                        resource_version: item.resource_version.clone(),
                    }),
                    ..DeleteParams::default()
                };
                tracing::debug!(object = %item.identity.key, kind = item.identity.kind, "deleting a dependent");
                api.delete(name, &params).await.map(drop)
            }
            Step::RemoveOwners(owners) => remove_owners(&api, name, uid, &owners).await,
            Step::RemoveFinalizer(finalizer) => remove_finalizer(&api, name, uid, finalizer).await,
            Step::Release(dependents) => {
                for dependent in dependents {
                    self.release(&dependent, uid).await?;
                }
                remove_finalizer(&api, name, uid, graph::ORPHAN).await
            }
        };
        match result {
            Ok(()) => Ok(Outcome::Done),
            Err(error) if is_not_found(&error) => Ok(Outcome::Done),
            // The object changed since; its event brings it back, and this is the net below.
            Err(error) if is_conflict(&error) => Ok(Outcome::Again),
            Err(error) => {
                Err(error).trying("collect", format!("{} {}", item.identity.kind, item.identity.key))
            }
        }
    }

    async fn release(&self, dependent: &str, owner: &str) -> Result<(), Error> {
        let Some(item) = self.lock().get(dependent).cloned() else { return Ok(()) };
        let Some(api) = self.api(&item.identity) else { return Ok(()) };
        let key = &item.identity.key;
        match remove_owners(&api, &key.name, dependent, &[owner.to_owned()]).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.trying("orphan", key),
        }
    }
}

fn api(client: &Client, resource: &ApiResource, namespaced: bool, namespace: &str) -> Metadata {
    if namespaced {
        Api::namespaced_with(client.clone(), namespace, resource)
    } else {
        Api::all_with(client.clone(), resource)
    }
}

/// Reads the live list and writes it without these owners, over the version that was read: kinds without a strategic
/// merge cannot take one entry out.
async fn remove_owners(api: &Metadata, name: &str, uid: &str, owners: &[String]) -> Result<(), kube::Error> {
    let live = api.get(name).await?.metadata;
    if live.uid.as_deref() != Some(uid) {
        return Ok(());
    }
    let mut references = live.owner_references.unwrap_or_default();
    references.retain(|reference| !owners.contains(&reference.uid));
    let metadata =
        json!({ "uid": uid, "resourceVersion": live.resource_version, "ownerReferences": references });
    patch(api, name, &json!({ "metadata": metadata })).await
}

/// The same for a finalizer.
async fn remove_finalizer(api: &Metadata, name: &str, uid: &str, finalizer: &str) -> Result<(), kube::Error> {
    let live = api.get(name).await?.metadata;
    let mut finalizers = live.finalizers.unwrap_or_default();
    if live.uid.as_deref() != Some(uid) || !finalizers.iter().any(|one| one == finalizer) {
        return Ok(());
    }
    finalizers.retain(|one| one != finalizer);
    let metadata = json!({ "uid": uid, "resourceVersion": live.resource_version, "finalizers": finalizers });
    patch(api, name, &json!({ "metadata": metadata })).await
}

async fn patch(api: &Metadata, name: &str, patch: &serde_json::Value) -> Result<(), kube::Error> {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}
