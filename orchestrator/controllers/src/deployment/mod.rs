//! Rolls out the pod template of a Deployment through `ReplicaSets`.
//!
//! Woken by Deployments, by their `ReplicaSets`, and, for `Recreate`, by pods that go. `plan` decides, this carries
//! it out. Every write of a ReplicaSet names the version it was planned from, so that a plan made from a cache that lags is refused by the
//! API server rather than carried out.

mod model;
mod plan;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_client::{
    EventKind, ObjectKey, Outcome, Queue, QueueMetrics, is_already_exists, is_not_found, now,
    object_reference, run_workers,
};

use self::plan::Step;
use crate::claim::{Claim, adopt, claim, controller_of, release};
use crate::error::{Error, Trying, all_of};
use crate::freshness::{Freshness, STALE_RECHECK};
use crate::shared::{Shared, Watches};

/// Deployments reconciled at once.
const WORKERS: usize = 5;

/// The controller.
pub(crate) struct Deployments {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    /// Writes of `ReplicaSets`, and of the Deployment itself.
    replica_sets: Freshness,
    itself: Freshness,
}

impl Deployments {
    pub(crate) fn new(shared: &Arc<Shared>, watches: &mut Watches, metrics: &QueueMetrics) -> Self {
        let queue = Arc::new(Queue::new("deployment", metrics));
        let wake = queue.clone();
        watches.deployments.on_change(move |change| wake.add(change.key.clone()));

        let (wake, deployments) = (queue.clone(), shared.deployments.clone());
        watches.replica_sets.on_change(move |change| {
            for replica_set in change.old.into_iter().chain(change.new) {
                if let Some(owner) = owner_of(replica_set) {
                    wake.add(owner);
                }
            }
            let orphan = change.new.filter(|new| controller_of(new.owner_references()).is_none());
            if let Some(orphan) = orphan {
                for deployment in deployments.in_namespace(&change.key.namespace) {
                    if selector_of(&deployment).is_ok_and(|selector| selector.matches(orphan.labels())) {
                        wake.add(ObjectKey::of(&deployment.metadata));
                    }
                }
            }
        });

        let wake = queue.clone();
        let (deployments, replica_sets) = (shared.deployments.clone(), shared.replica_sets.clone());
        watches.pods.on_change(move |change| {
            // Only a Recreate waits for pods, and only for them to go.
            let gone = change.new.is_none_or(|new| new.has_ended());
            let Some(pod) = change.old.filter(|_| gone) else { return };
            let Some(owner) = controller_of(&pod.owners) else { return };
            let replica_set = replica_sets.get(&ObjectKey::new(&pod.key.namespace, &owner.name));
            let deployment = replica_set.and_then(|replica_set| owner_of(&replica_set));
            if let Some(key) = deployment
                && deployments.get(&key).is_some_and(|deployment| model::recreates(&deployment))
            {
                wake.add(key);
            }
        });
        Self {
            shared: shared.clone(),
            queue,
            replica_sets: Freshness::default(),
            itself: Freshness::default(),
        }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(deployment) = self.shared.deployments.get(&key) else {
            self.replica_sets.forget(&key);
            self.itself.forget(&key);
            return Ok(Outcome::Done);
        };
        let seen =
            self.replica_sets.is_fresh(&key, |mark| self.shared.replica_sets.has_seen(mark), |_| false)
                && self.itself.is_fresh(&key, |mark| self.shared.deployments.has_seen(mark), |_| false);
        if !seen {
            return Ok(Outcome::After(STALE_RECHECK));
        }
        let selector = selector_of(&deployment)?;
        if selector.selects_all() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.tell(&deployment, EventKind::Warning, "SelectingAll", text.to_owned());
            return Ok(Outcome::Done);
        }
        let owned = self.claim(&deployment, &selector).await?;
        let pods = self.shared.pods.in_namespace(&key.namespace);
        let uids: Vec<_> = owned.iter().filter_map(|one| one.metadata.uid.as_deref()).collect();
        let old_pods_left = |new: Option<&str>| {
            pods.iter().filter(|pod| !pod.has_ended()).any(|pod| {
                let owner = controller_of(&pod.owners).map(|owner| owner.uid.as_str());
                owner.is_some_and(|owner| uids.contains(&owner) && Some(owner) != new)
            })
        };
        let plan = plan::plan(&deployment, &owned, old_pods_left, &now());
        let mut touched = BTreeSet::new();
        for step in plan.steps {
            if let Some(outcome) = self.execute(&key, &deployment, &owned, &mut touched, step).await? {
                return Ok(outcome);
            }
        }
        self.write_status(&key, &deployment, &plan.status).await?;
        Ok(plan.recheck.map_or(Outcome::Done, Outcome::After))
    }

    /// The `ReplicaSets` that belong to the Deployment, after adopting orphans and releasing strangers.
    async fn claim(&self, deployment: &Deployment, selector: &Selector) -> Result<Vec<ReplicaSet>, Error> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &namespace);
        let owner = plan::owner_reference(deployment);
        let deleting = deployment.metadata.deletion_timestamp.is_some();
        let (mut owned, mut adoptions, mut releases) = (Vec::new(), Vec::new(), Vec::new());
        for replica_set in self.shared.replica_sets.in_namespace(&namespace) {
            let leaving = replica_set.metadata.deletion_timestamp.is_some();
            let matches = selector.matches(replica_set.labels());
            match claim(&owner.uid, deleting, matches, replica_set.owner_references(), leaving) {
                Claim::Mine => owned.push(ReplicaSet::clone(&replica_set)),
                Claim::Adopt => {
                    adoptions.push((replica_set.name_any(), replica_set.uid().unwrap_or_default()));
                    owned.push(ReplicaSet::clone(&replica_set));
                }
                Claim::Release => {
                    releases.push((replica_set.name_any(), replica_set.uid().unwrap_or_default()));
                }
                Claim::Other => {}
            }
        }
        if !adoptions.is_empty() {
            let deployments: Api<Deployment> = Api::namespaced(self.shared.client.clone(), &namespace);
            let name = deployment.name_any();
            let live = deployments.get_metadata(&name).await.trying("read Deployment", &name)?;
            if live.metadata.uid != deployment.metadata.uid || live.metadata.deletion_timestamp.is_some() {
                return Ok(Vec::new());
            }
        }
        let mut results = join_all(adoptions.iter().map(|(name, uid)| adopt(&api, name, uid, &owner))).await;
        results
            .extend(join_all(releases.iter().map(|(name, uid)| release(&api, name, uid, &owner.uid))).await);
        all_of(results)?;
        Ok(owned)
    }

    /// Carries out one step. `Some` ends the reconcile early.
    async fn execute(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        owned: &[ReplicaSet],
        touched: &mut BTreeSet<String>,
        step: Step,
    ) -> Result<Option<Outcome>, Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        // Makes a write fail if the ReplicaSet is no longer as planned from. A second write of one reconcile to one
        // ReplicaSet builds on the first.
        let mut version = |name: &str| {
            let planned_from = owned.iter().find(|one| one.metadata.name.as_deref() == Some(name));
            let first = touched.insert(name.to_owned());
            planned_from.filter(|_| first).and_then(|one| one.metadata.resource_version.clone())
        };
        match step {
            Step::Create(replica_set) => return self.create(key, deployment, &replica_set).await,
            Step::Scale { name, from, to } => {
                let annotations = model::size_annotations(deployment);
                let patch = json!({
                    "metadata": planned_meta(annotations, version(&name)),
                    "spec": { "replicas": to },
                });
                let result = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
                self.wrote(key, result.trying("scale ReplicaSet", &name)?);
                if from != to {
                    let verb = if to > from { "up" } else { "down" };
                    let text = format!("Scaled {verb} replica set {name} from {from} to {to}");
                    self.tell(deployment, EventKind::Normal, "ScalingReplicaSet", text);
                }
            }
            Step::Refresh { name, annotations, min_ready_seconds } => {
                let patch = json!({
                    "metadata": planned_meta(annotations, version(&name)),
                    "spec": { "minReadySeconds": min_ready_seconds },
                });
                let result = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
                self.wrote(key, result.trying("annotate ReplicaSet", &name)?);
            }
            Step::Delete { name } => {
                let resource_version = version(&name);
                let preconditions = Preconditions { resource_version, uid: None };
                let params = DeleteParams::background().preconditions(preconditions);
                match api.delete(&name, &params).await {
                    Err(error) if !is_not_found(&error) => {
                        return Err(error).trying("delete old ReplicaSet", &name);
                    }
                    _ => {}
                }
            }
            Step::SetRevision(revision) => {
                let deployments: Api<Deployment> =
                    Api::namespaced(self.shared.client.clone(), &key.namespace);
                let annotations = BTreeMap::from([(model::REVISION, revision)]);
                let patch = json!({ "metadata": { "uid": deployment.uid(), "annotations": annotations } });
                let result =
                    deployments.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
                let written = result.trying("number the revision of Deployment", key)?;
                let mark = self.shared.deployments.mark(written.metadata.resource_version.as_deref());
                self.itself.wrote(key, mark);
            }
        }
        Ok(None)
    }

    fn wrote(&self, key: &ObjectKey, written: ReplicaSet) {
        let mark = self.shared.replica_sets.mark(written.metadata.resource_version.as_deref());
        self.replica_sets.wrote(key, mark);
    }

    async fn create(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        replica_set: &ReplicaSet,
    ) -> Result<Option<Outcome>, Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let name = replica_set.name_any();
        match api.create(&PostParams::default(), replica_set).await {
            Ok(written) => {
                let size = model::size(&written);
                self.wrote(key, written);
                let text = format!("Scaled up replica set {name} from 0 to {size}");
                self.tell(deployment, EventKind::Normal, "ScalingReplicaSet", text);
                Ok(None)
            }
            Err(error) if is_already_exists(&error) => {
                let existing = api.get(&name).await.trying("read ReplicaSet", &name)?;
                let ours = controller_of(existing.owner_references()).map(|owner| owner.uid.clone())
                    == deployment.uid();
                let template = |one: &ReplicaSet| one.spec.as_ref().and_then(|spec| spec.template.clone());
                let same = model::same_template(
                    &template(&existing).unwrap_or_default(),
                    &template(replica_set).unwrap_or_default(),
                );
                if ours && same {
                    // Made by an earlier run; the cache will show it.
                    self.wrote(key, existing);
                    return Ok(Some(Outcome::After(STALE_RECHECK)));
                }
                let mut status = deployment.status.clone().unwrap_or_default();
                status.collision_count = Some(status.collision_count.unwrap_or_default() + 1);
                self.write_status(key, deployment, &status).await?;
                Ok(Some(Outcome::Again))
            }
            Err(error) => {
                let text = format!("Failed to create new replica set \"{name}\": {error}");
                self.tell(deployment, EventKind::Warning, status::CREATE_ERROR, text.clone());
                if status::progress_deadline(deployment).is_some() {
                    let mut next = deployment.status.clone().unwrap_or_default();
                    let reason = status::CREATE_ERROR;
                    let failed = status::new_condition("Progressing", "False", reason, text, &now());
                    status::set(&mut next, failed);
                    self.write_status(key, deployment, &next).await?;
                }
                Err(error).trying("create ReplicaSet", &name)
            }
        }
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        status: &DeploymentStatus,
    ) -> Result<(), Error> {
        if status::same(&deployment.status.clone().unwrap_or_default(), status) {
            return Ok(());
        }
        let api: Api<Deployment> = Api::namespaced(self.shared.client.clone(), &key.namespace);
        let patch = json!({
            "metadata": { "uid": deployment.uid() },
            "status": {
                "observedGeneration": status.observed_generation,
                "replicas": status.replicas,
                "updatedReplicas": status.updated_replicas,
                "readyReplicas": status.ready_replicas,
                "availableReplicas": status.available_replicas,
                "unavailableReplicas": status.unavailable_replicas,
                "collisionCount": status.collision_count,
                "conditions": status.conditions,
            },
        });
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => {
                let written = other.trying("write status of Deployment", key)?;
                let mark = self.shared.deployments.mark(written.metadata.resource_version.as_deref());
                self.itself.wrote(key, mark);
                Ok(())
            }
        }
    }

    fn tell(&self, deployment: &Deployment, kind: EventKind, reason: &'static str, text: String) {
        let object = object_reference::<Deployment>(&deployment.metadata);
        self.shared.recorder.record(object, kind, reason, text);
    }
}

fn owner_of(replica_set: &ReplicaSet) -> Option<ObjectKey> {
    let owner = controller_of(replica_set.owner_references()).filter(|owner| owner.kind == "Deployment")?;
    Some(ObjectKey::new(replica_set.namespace().unwrap_or_default(), &owner.name))
}

fn selector_of(deployment: &Deployment) -> Result<Selector, Error> {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    let object = || format!("Deployment {}", ObjectKey::of(&deployment.metadata));
    selector.try_into().map_err(|source| Error::Selector { object: object(), source })
}

/// Metadata of a patch: the annotations, and the version it was planned from if there is one to insist on.
fn planned_meta(annotations: BTreeMap<String, String>, version: Option<String>) -> serde_json::Value {
    let mut meta = json!({ "annotations": annotations });
    if let Some(version) = version {
        meta["resourceVersion"] = version.into();
    }
    meta
}
