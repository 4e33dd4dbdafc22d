//! Empties a namespace that is being deleted, then lets it go.
//!
//! Its content is listed and deleted kind by kind, as discovery names them, until nothing is left; then the finalizer
//! `kubernetes` is taken off through `/finalize`. Objects that take their time (pods that shut down, foreign
//! finalizers) wake the controller when they are gone.

use std::sync::{Arc, OnceLock};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use weir_client::{Cache, ObjectKey, Outcome, Queue, QueueMetrics, is_not_found, run_workers};

use crate::error::{Error, Trying, all_of};
use crate::garbage::kinds::{Kind, Kinds};
use crate::shared::{Shared, Watches};

/// Namespaces emptied at once.
const WORKERS: usize = 2;
/// Objects of a kind deleted in one go; a larger namespace takes several.
const PAGE: u32 = 200;
/// The finalizer that holds a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// The controller.
pub(crate) struct Namespaces {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    kinds: OnceLock<Kinds>,
}

impl Namespaces {
    pub(crate) fn new(shared: &Arc<Shared>, watches: &mut Watches, metrics: &QueueMetrics) -> Self {
        let queue = Arc::new(Queue::new("namespace", metrics));
        let wake = queue.clone();
        watches.namespaces.on_change(move |change| {
            if change.new.is_some_and(|namespace| is_terminating(namespace)) {
                wake.add(change.key.clone());
            }
        });
        let namespaces = Self { shared: shared.clone(), queue, kinds: OnceLock::new() };
        let observe = namespaces.observer();
        watches.on_meta(move |_, _, key, meta| observe(key, meta));
        namespaces
    }

    /// Wakes a namespace that is being deleted when an object of it is gone.
    pub(crate) fn observer(&self) -> impl Fn(&ObjectKey, Option<&ObjectMeta>) + Clone + Send + Sync + use<> {
        let queue = self.queue.clone();
        let namespaces: Cache<Namespace> = self.shared.namespaces.clone();
        move |key, meta| {
            if meta.is_some() || key.namespace.is_empty() {
                return;
            }
            let namespace = ObjectKey::cluster(&key.namespace);
            if namespaces.get(&namespace).is_some_and(|namespace| is_terminating(&namespace)) {
                queue.add(namespace);
            }
        }
    }

    /// Takes the kinds that discovery found.
    pub(crate) fn know(&self, kinds: &Kinds) {
        // Set once: this is called once.
        let _ = self.kinds.set(kinds.clone());
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let namespace = self.shared.namespaces.get(&key).filter(|namespace| is_terminating(namespace));
        let (Some(namespace), Some(kinds)) = (namespace, self.kinds.get()) else { return Ok(Outcome::Done) };
        let held = |namespace: &Namespace| {
            let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
            finalizers.is_some_and(|all| all.iter().any(|one| one == FINALIZER))
        };
        if !held(&namespace) {
            return Ok(Outcome::Done);
        }
        let namespaced = kinds.iter().filter(|kind| kind.namespaced);
        let found = join_all(namespaced.map(|kind| self.empty(&key.name, kind))).await;
        let found: usize = all_of(found)?.into_iter().sum();
        if found > 0 {
            // What was deleted may be gone by now, or wake this when it is. Events are not watched, so look again anyway.
            return Ok(Outcome::Again);
        }
        let api: Api<Namespace> = Api::all(self.shared.client.clone());
        let mut live = match api.get_opt(&key.name).await.trying("read namespace", &key)? {
            Some(live) if live.uid() == namespace.uid() && held(&live) => live,
            _ => return Ok(Outcome::Done),
        };
        if let Some(finalizers) = live.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        match api.replace_subresource("finalize", &key.name, &PostParams::default(), &live).await {
            Err(error) if is_not_found(&error) => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done).trying("finalize namespace", &key),
        }
    }

    /// Deletes the objects of one kind; returns how many were found.
    async fn empty(&self, namespace: &str, kind: &Kind) -> Result<usize, Error> {
        let client = self.shared.client.clone();
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(client, namespace, &kind.resource);
        let what = || format!("{} of namespace {namespace}", kind.resource.plural);
        let list = api.list(&ListParams::default().limit(PAGE)).await.trying("list", what())?;
        let found = list.items.len();
        let waiting = list.items.iter().filter(|object| object.metadata.deletion_timestamp.is_none());
        let deletions = waiting.map(|object| async {
            match api.delete(&object.name_any(), &DeleteParams::background()).await {
                Err(error) if !is_not_found(&error) => {
                    Err(error).trying("delete", format!("{} of {}", object.name_any(), what()))
                }
                _ => Ok(()),
            }
        });
        all_of(join_all(deletions).await)?;
        Ok(found)
    }
}

/// Whether the namespace is being deleted.
pub(crate) fn is_terminating(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}
