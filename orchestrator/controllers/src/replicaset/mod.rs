//! Keeps the number of pods that a ReplicaSet asks for.
//!
//! Woken by its `ReplicaSets`, by pods that are or were theirs, and by orphans that match. Creates in batches that
//! double (1, 2, 4, …), so that a template the API server refuses costs one request and not five hundred.

mod plan;
mod ranking;

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_client::{
    EventKind, ObjectKey, Outcome, Queue, QueueMetrics, is_not_found, now, object_reference, run_workers,
};

use self::plan::Step;
use crate::claim::{adopt, controller_of, release};
use crate::error::{Error, Trying, all_of};
use crate::freshness::{Freshness, STALE_RECHECK};
use crate::pods::PodView;
use crate::shared::{Shared, Watches};

/// `ReplicaSets` reconciled at once.
const WORKERS: usize = 5;
/// Creations or deletions of one ReplicaSet under way at once.
const REQUESTS_MAX: usize = 64;

/// The controller.
pub(crate) struct ReplicaSets {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    freshness: Freshness,
}

impl ReplicaSets {
    pub(crate) fn new(shared: &Arc<Shared>, watches: &mut Watches, metrics: &QueueMetrics) -> Self {
        let queue = Arc::new(Queue::new("replicaset", metrics));
        let wake = queue.clone();
        watches.replica_sets.on_change(move |change| wake.add(change.key.clone()));
        let (wake, replica_sets) = (queue.clone(), shared.replica_sets.clone());
        watches.pods.on_change(move |change| {
            for pod in change.old.into_iter().chain(change.new) {
                if let Some(owner) = owner_of(pod) {
                    wake.add(owner);
                }
            }
            // An orphan concerns whoever selects it.
            if let Some(pod) = change.new
                && controller_of(&pod.owners).is_none()
                && !pod.deleting
            {
                for replica_set in replica_sets.in_namespace(&change.key.namespace) {
                    if selector_of(&replica_set).is_ok_and(|selector| selector.matches(&pod.labels)) {
                        wake.add(ObjectKey::of(&replica_set.metadata));
                    }
                }
            }
        });
        Self { shared: shared.clone(), queue, freshness: Freshness::default() }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(replica_set) = self.shared.replica_sets.get(&key) else {
            self.freshness.forget(&key);
            return Ok(Outcome::Done);
        };
        let selector = selector_of(&replica_set)?;
        let cached = self.shared.pods.in_namespace(&key.namespace);
        let pods = &self.shared.pods;
        let alive = |uid: &str| cached.iter().any(|pod| pod.uid == uid && pod.is_active());
        let fresh = self.freshness.is_fresh(&key, |mark| pods.has_seen(mark), alive);

        let claimed = plan::claimed(&replica_set, &selector, &cached);
        self.settle(&replica_set, &claimed).await?;
        let mut result = Ok(());
        if fresh {
            let related = self.related(&replica_set, &cached);
            if let Some(step) = plan::plan(&replica_set, &claimed.pods, &related, now().0) {
                result = self.execute(&key, &replica_set, step).await;
            }
        }
        let failure = result.as_ref().err().map(|(reason, error)| (*reason, error.to_string()));
        let status = plan::status(&replica_set, &claimed.pods, failure, &now());
        self.write_status(&replica_set, &status).await?;
        result.map_err(|(_, error)| error)?;
        if !fresh {
            return Ok(Outcome::After(STALE_RECHECK));
        }
        let next = plan::next_available(&replica_set, &claimed.pods, now().0);
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }

    /// Adopts and releases. Before adopting, the API server is asked whether the ReplicaSet is still there: a cache that
    /// lags could make a deleted owner adopt pods that the garbage collector then deletes.
    async fn settle(&self, replica_set: &ReplicaSet, claimed: &plan::Claimed) -> Result<(), Error> {
        let namespace = replica_set.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.shared.client.clone(), &namespace);
        if !claimed.adopt.is_empty() {
            let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &namespace);
            let name = replica_set.name_any();
            let live = api.get_metadata(&name).await.trying("read ReplicaSet", &name)?;
            if live.metadata.uid != replica_set.metadata.uid || live.metadata.deletion_timestamp.is_some() {
                return Ok(());
            }
        }
        let owner = owner_reference(replica_set);
        let adoptions = claimed.adopt.iter().map(|pod| adopt(&pods, &pod.key.name, &pod.uid, &owner));
        let mut results = join_all(adoptions).await;
        let releases = claimed.release.iter().map(|pod| release(&pods, &pod.key.name, &pod.uid, &owner.uid));
        results.extend(join_all(releases).await);
        all_of(results).map(drop)
    }

    /// All active pods of `ReplicaSets` that have the same controller, or of this one alone.
    fn related(&self, replica_set: &ReplicaSet, pods: &[Arc<PodView>]) -> Vec<Arc<PodView>> {
        let family = |meta: &ObjectMeta| {
            controller_of(meta.owner_references.as_deref().unwrap_or_default()).map(|owner| owner.uid.clone())
        };
        let mine = family(&replica_set.metadata);
        let namespace = replica_set.metadata.namespace.as_deref().unwrap_or_default();
        let siblings: Vec<_> = self
            .shared
            .replica_sets
            .in_namespace(namespace)
            .into_iter()
            .filter(|other| {
                other.metadata.uid == replica_set.metadata.uid
                    || (mine.is_some() && family(&other.metadata) == mine)
            })
            .filter_map(|other| other.metadata.uid.clone())
            .collect();
        let belongs = |pod: &&Arc<PodView>| {
            pod.is_active() && controller_of(&pod.owners).is_some_and(|owner| siblings.contains(&owner.uid))
        };
        pods.iter().filter(belongs).cloned().collect()
    }

    /// Creates or deletes; on failure also says the reason for the condition.
    async fn execute(
        &self,
        key: &ObjectKey,
        replica_set: &ReplicaSet,
        step: Step,
    ) -> Result<(), (&'static str, Error)> {
        match step {
            Step::Create(count) => {
                self.create(key, replica_set, count).await.map_err(|error| ("FailedCreate", error))
            }
            Step::Delete(pods) => {
                self.delete(key, replica_set, &pods).await.map_err(|error| ("FailedDelete", error))
            }
        }
    }

    async fn create(&self, key: &ObjectKey, replica_set: &ReplicaSet, count: usize) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let pod = new_pod(replica_set);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left).min(REQUESTS_MAX);
            let params = PostParams::default();
            let results = join_all((0..size).map(|_| api.create(&params, &pod))).await;
            let results = results.into_iter().map(|result| match result {
                Ok(pod) => {
                    self.freshness
                        .wrote(key, self.shared.pods.mark(pod.metadata.resource_version.as_deref()));
                    self.tell(
                        replica_set,
                        EventKind::Normal,
                        "SuccessfulCreate",
                        format!("Created pod: {}", pod.name_any()),
                    );
                    Ok(())
                }
                // The namespace is going away, and the ReplicaSet with it.
                Err(kube::Error::Api(status)) if is_terminating(&status) => Ok(()),
                Err(error) => {
                    let text = format!("Error creating: {}", said_by_server(&error));
                    self.tell(replica_set, EventKind::Warning, "FailedCreate", text);
                    Err(error).trying("create a pod of ReplicaSet", key)
                }
            });
            all_of(results.collect())?;
            left -= size;
            batch = size * 2;
        }
        Ok(())
    }

    async fn delete(
        &self,
        key: &ObjectKey,
        replica_set: &ReplicaSet,
        pods: &[Arc<PodView>],
    ) -> Result<(), Error> {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let mut results = Vec::with_capacity(pods.len());
        for batch in pods.chunks(REQUESTS_MAX) {
            let deletions = batch.iter().map(|pod| async {
                let uid = Some(pod.uid.clone());
                let preconditions = Preconditions { uid, ..Preconditions::default() };
                let params = DeleteParams::default().preconditions(preconditions);
                match api.delete(&pod.key.name, &params).await {
                    Ok(_) => {
                        self.freshness.deleted(key, &pod.uid);
                        let text = format!("Deleted pod: {}", pod.key.name);
                        self.tell(replica_set, EventKind::Normal, "SuccessfulDelete", text);
                        Ok(())
                    }
                    Err(error) if is_not_found(&error) => Ok(()),
                    Err(error) => {
                        let text = format!("Error deleting: {}", said_by_server(&error));
                        self.tell(replica_set, EventKind::Warning, "FailedDelete", text);
                        Err(error).trying("delete pod", &pod.key)
                    }
                }
            });
            results.extend(join_all(deletions).await);
        }
        all_of(results).map(drop)
    }

    async fn write_status(&self, replica_set: &ReplicaSet, status: &ReplicaSetStatus) -> Result<(), Error> {
        if plan::same_status(replica_set.status.as_ref().unwrap_or(&ReplicaSetStatus::default()), status) {
            return Ok(());
        }
        let namespace = replica_set.namespace().unwrap_or_default();
        let name = replica_set.name_any();
        let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &namespace);
        let patch = json!({
            "metadata": { "uid": replica_set.metadata.uid },
            "status": {
                "replicas": status.replicas,
                "fullyLabeledReplicas": status.fully_labeled_replicas,
                "readyReplicas": status.ready_replicas,
                "availableReplicas": status.available_replicas,
                "observedGeneration": status.observed_generation,
                "conditions": status.conditions,
            },
        });
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.map(drop).trying("write status of ReplicaSet", &name),
        }
    }

    fn tell(&self, replica_set: &ReplicaSet, kind: EventKind, reason: &'static str, text: String) {
        let object = object_reference::<ReplicaSet>(&replica_set.metadata);
        self.shared.recorder.record(object, kind, reason, text);
    }
}

/// The key of the ReplicaSet that controls the pod.
fn owner_of(pod: &PodView) -> Option<ObjectKey> {
    let owner = controller_of(&pod.owners).filter(|owner| owner.kind == "ReplicaSet")?;
    Some(ObjectKey::new(&pod.key.namespace, &owner.name))
}

fn selector_of(replica_set: &ReplicaSet) -> Result<Selector, Error> {
    let selector = replica_set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    let object = || format!("ReplicaSet {}", ObjectKey::of(&replica_set.metadata));
    selector.try_into().map_err(|source| Error::Selector { object: object(), source })
}

fn owner_reference(replica_set: &ReplicaSet) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..replica_set.controller_owner_ref(&()).unwrap_or_default()
    }
}

/// A pod of the template. The name is completed by the API server.
fn new_pod(replica_set: &ReplicaSet) -> Pod {
    let template = replica_set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", replica_set.name_any())),
            namespace: replica_set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(replica_set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.is_forbidden() && causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// The API server's own words, without the client's wrapping.
fn said_by_server(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
