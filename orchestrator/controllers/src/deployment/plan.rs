//! What a Deployment needs: a pure function of the Deployment, its `ReplicaSets` and what pods are left of old ones.
//!
//! The steps are applied to a copy of the `ReplicaSets` as they are planned, so that the status is what upstream would
//! write after having carried them out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;

use super::model::{
    self, DESIRED_REPLICAS, NOT_COPIED, REVISION, REVISION_HISTORY, TEMPLATE_HASH, actual, annotation,
    available, fenceposts, replicas, size, size_annotations,
};
use super::status;

/// Longest value of the revision history, as upstream.
const HISTORY_CHARS_MAX: usize = 2000;

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Make the ReplicaSet of the current template.
    Create(Box<ReplicaSet>),
    /// Change the size of a ReplicaSet.
    Scale {
        /// Which.
        name: String,
        /// Its size now.
        from: i32,
        /// Its size then.
        to: i32,
    },
    /// Bring annotations and `minReadySeconds` of the new ReplicaSet up to date.
    Refresh {
        /// Which.
        name: String,
        /// Annotations to set.
        annotations: BTreeMap<String, String>,
        /// `spec.minReadySeconds`.
        min_ready_seconds: Option<i32>,
    },
    /// Delete a ReplicaSet beyond the history limit.
    Delete {
        /// Which.
        name: String,
    },
    /// Write the revision on the Deployment.
    SetRevision(String),
}

/// Steps in order, and the status that holds after them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// What to do.
    pub steps: Vec<Step>,
    /// What to write if it differs.
    pub status: DeploymentStatus,
    /// When to look again for lack of progress.
    pub recheck: Option<Duration>,
}

/// The plan. `owned` are the `ReplicaSets` of the Deployment, `old_pods_left` says whether any
/// pod that has not ended belongs to a ReplicaSet other than that of the current template.
pub(super) fn plan(
    deployment: &Deployment,
    owned: &[ReplicaSet],
    old_pods_left: impl Fn(Option<&str>) -> bool,
    now: &Time,
) -> Plan {
    let mut rollout = Rollout::new(deployment, owned, now);
    let spec = deployment.spec.clone().unwrap_or_default();
    if deployment.metadata.deletion_timestamp.is_some() {
        return rollout.finish(false);
    }
    status::paused(deployment, &mut rollout.conditions, now);
    if spec.paused.unwrap_or_default() {
        rollout.sync_revision(false);
        rollout.scale();
        rollout.clean_up();
        return rollout.finish(false);
    }
    if rollout.is_scaling() {
        rollout.sync_revision(false);
        rollout.scale();
        return rollout.finish(false);
    }
    if model::recreates(deployment) {
        rollout.recreate(old_pods_left);
    } else {
        rollout.roll();
    }
    rollout.finish(true)
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    new: Option<ReplicaSet>,
    /// Sorted by age, oldest first.
    old: Vec<ReplicaSet>,
    /// Carries the conditions that planning sets; its numbers are calculated at the end.
    conditions: DeploymentStatus,
    steps: Vec<Step>,
    now: &'a Time,
}

impl<'a> Rollout<'a> {
    fn new(deployment: &'a Deployment, owned: &[ReplicaSet], now: &'a Time) -> Self {
        let template = deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let mut old = owned.to_vec();
        old.sort_by_key(age);
        let is_new = |replica_set: &ReplicaSet| {
            let theirs = replica_set.spec.as_ref().and_then(|spec| spec.template.clone());
            model::same_template(&theirs.unwrap_or_default(), &template)
        };
        // Of several with this template the oldest is the new one, as upstream.
        let new = old.iter().position(is_new).map(|index| old.remove(index));
        let conditions = deployment.status.clone().unwrap_or_default();
        Self { deployment, new, old, conditions, steps: Vec::new(), now }
    }

    fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }

    fn total(&self) -> i32 {
        self.all().into_iter().map(size).sum()
    }

    /// A size of the Deployment that its `ReplicaSets` have not been scaled for.
    fn is_scaling(&self) -> bool {
        let wanted = replicas(self.deployment);
        self.all().into_iter().filter(|replica_set| size(replica_set) > 0).any(|replica_set| {
            annotation(replica_set, DESIRED_REPLICAS).is_some_and(|desired| desired != wanted)
        })
    }

    fn roll(&mut self) {
        self.sync_revision(true);
        if self.grow_new() || self.shrink_old() {
            return;
        }
        if self.is_complete() {
            self.clean_up();
        }
    }

    fn recreate(&mut self, old_pods_left: impl Fn(Option<&str>) -> bool) {
        self.sync_revision(false);
        let active = self.old.iter().filter(|old| size(old) > 0).cloned().collect::<Vec<_>>();
        for old in &active {
            self.resize(old, 0);
        }
        let new = self.new.as_ref().and_then(|new| new.metadata.uid.as_deref());
        if !active.is_empty() || self.old.iter().any(|old| actual(old) > 0) || old_pods_left(new) {
            return;
        }
        self.sync_revision(true);
        if let Some(new) = self.new.clone() {
            self.resize(&new, replicas(self.deployment));
        }
        if self.is_complete() {
            self.clean_up();
        }
    }

    fn is_complete(&self) -> bool {
        status::is_complete(self.deployment, &self.deployment.status.clone().unwrap_or_default())
    }

    /// Finds or makes the ReplicaSet of the current template and numbers it.
    fn sync_revision(&mut self, create: bool) {
        let newest_old = self.old.iter().map(revision).max().unwrap_or_default();
        let next = newest_old + 1;
        match self.new.clone() {
            Some(new) => self.refresh(new, next),
            None if create => self.create(next),
            None => {}
        }
    }

    fn refresh(&mut self, mut new: ReplicaSet, next: i64) {
        let current = new.metadata.annotations.clone().unwrap_or_default();
        let mut wanted = current.clone();
        for (key, value) in self.deployment.metadata.annotations.iter().flatten() {
            if !NOT_COPIED.contains(&key.as_str()) {
                wanted.insert(key.clone(), value.clone());
            }
        }
        let before = revision(&new);
        if before < next {
            wanted.insert(REVISION.to_owned(), next.to_string());
            if before > 0 {
                let history = wanted.get(REVISION_HISTORY).map(String::as_str).unwrap_or_default();
                wanted.insert(REVISION_HISTORY.to_owned(), longer_history(history, before));
            }
        }
        let min_ready_seconds = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let theirs = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        if wanted != current || theirs.unwrap_or_default() != min_ready_seconds.unwrap_or_default() {
            let name = name(&new);
            let changed = wanted.iter().filter(|(key, value)| current.get(*key) != Some(value));
            let annotations = changed.map(|(key, value)| (key.clone(), value.clone())).collect();
            self.steps.push(Step::Refresh { name, annotations, min_ready_seconds });
        }
        self.set_revision(wanted.get(REVISION).cloned());
        if status::condition(&self.conditions, "Progressing").is_none()
            && status::progress_deadline(self.deployment).is_some()
        {
            let message = format!("Found new replica set \"{}\"", name(&new));
            let reason = status::FOUND_REPLICA_SET;
            let found = status::new_condition("Progressing", "True", reason, message, self.now);
            status::set(&mut self.conditions, found);
        }
        new.metadata.annotations = Some(wanted);
        self.new = Some(new);
    }

    fn create(&mut self, next: i64) {
        let collisions = self.deployment.status.as_ref().and_then(|status| status.collision_count);
        let mut new = new_replica_set(self.deployment, next, collisions);
        let size = model::new_size(self.deployment, self.total(), 0);
        if let Some(spec) = new.spec.as_mut() {
            spec.replicas = Some(size);
        }
        if status::progress_deadline(self.deployment).is_some() {
            let message = format!("Created new replica set \"{}\"", name(&new));
            let reason = status::NEW_REPLICA_SET;
            let created = status::new_condition("Progressing", "True", reason, message, self.now);
            status::set(&mut self.conditions, created);
        }
        self.steps.push(Step::Create(Box::new(new.clone())));
        self.set_revision(Some(next.to_string()));
        self.new = Some(new);
    }

    fn set_revision(&mut self, revision: Option<String>) {
        let current = self.deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
        if let Some(revision) = revision
            && current != Some(&revision)
        {
            self.steps.push(Step::SetRevision(revision));
        }
    }

    fn grow_new(&mut self) -> bool {
        let Some(new) = self.new.clone() else { return false };
        let wanted = replicas(self.deployment);
        let to = if size(&new) > wanted {
            wanted
        } else {
            model::new_size(self.deployment, self.total(), size(&new))
        };
        self.resize(&new, to)
    }

    fn shrink_old(&mut self) -> bool {
        let active: Vec<_> = self.old.iter().filter(|old| size(old) > 0).cloned().collect();
        if active.is_empty() {
            return false;
        }
        let minimum = replicas(self.deployment) - model::max_unavailable(self.deployment);
        let new_missing = self.new.as_ref().map(|new| size(new) - available(new)).unwrap_or_default();
        let removable = self.total() - minimum - new_missing;
        if removable <= 0 {
            return false;
        }
        // Pods that do not serve go first: they are missed by nobody, and would else hold up the rollout.
        let mut unhealthy = 0;
        for old in &active {
            let broken = size(old) - available(old);
            let count = broken.min(removable - unhealthy);
            if count > 0 {
                self.resize(old, size(old) - count);
                unhealthy += count;
            }
        }
        let serving: i32 = self.all().into_iter().map(available).sum();
        let mut surplus = serving - minimum;
        let mut healthy = 0;
        for old in self.old.clone().iter().filter(|old| size(old) > 0) {
            let count = size(old).min(surplus);
            if count > 0 {
                self.resize(old, size(old) - count);
                surplus -= count;
                healthy += count;
            }
        }
        unhealthy + healthy > 0
    }

    /// Scales without rolling: everything in proportion, so that a paused or half-done rollout keeps its mixture.
    fn scale(&mut self) {
        let wanted = replicas(self.deployment);
        if let Some(only) = self.active_or_latest() {
            if size(&only) != wanted {
                self.resize(&only, wanted);
            }
            return;
        }
        if model::is_saturated(self.deployment, self.new.as_ref()) {
            for old in self.old.clone().iter().filter(|old| size(old) > 0) {
                self.resize(old, 0);
            }
            return;
        }
        if model::recreates(self.deployment) {
            return;
        }
        let mut active: Vec<ReplicaSet> =
            self.all().into_iter().filter(|replica_set| size(replica_set) > 0).cloned().collect();
        let total: i32 = active.iter().map(size).sum();
        let allowed = if wanted > 0 { wanted + fenceposts(self.deployment).0 } else { 0 };
        let to_add = allowed - total;
        // The largest takes the rest; of equals the newer grows and the older shrinks.
        active.sort_by_key(age);
        if to_add > 0 {
            active.reverse();
        }
        active.sort_by_key(|replica_set| Reverse(size(replica_set)));
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for replica_set in &active {
            let share = model::proportion(replica_set, self.deployment, to_add, added);
            sizes.push(size(replica_set) + share);
            added += share;
        }
        if let Some(first) = sizes.first_mut()
            && to_add != 0
        {
            *first = (*first + to_add - added).max(0);
        }
        for (replica_set, to) in active.iter().zip(sizes) {
            self.resize_always(replica_set, to);
        }
    }

    /// The only ReplicaSet with pods; without any, the new one or else the newest.
    fn active_or_latest(&self) -> Option<ReplicaSet> {
        let active: Vec<_> = self.all().into_iter().filter(|replica_set| size(replica_set) > 0).collect();
        match active.as_slice() {
            [] => self.new.clone().or_else(|| self.old.last().cloned()),
            [only] => Some((*only).clone()),
            _ => None,
        }
    }

    fn resize(&mut self, replica_set: &ReplicaSet, to: i32) -> bool {
        size(replica_set) != to && self.resize_always(replica_set, to)
    }

    /// Also when only the annotations about the Deployment's size are out of date.
    fn resize_always(&mut self, replica_set: &ReplicaSet, to: i32) -> bool {
        let annotations = size_annotations(self.deployment);
        let current = replica_set.metadata.annotations.clone().unwrap_or_default();
        let outdated = annotations.iter().any(|(key, value)| current.get(key) != Some(value));
        let from = size(replica_set);
        if from == to && !outdated {
            return false;
        }
        let name = name(replica_set);
        for mine in self.old.iter_mut().chain(&mut self.new) {
            if mine.metadata.name.as_deref() == Some(&name) {
                mine.metadata.annotations.get_or_insert_default().extend(annotations.clone());
                mine.spec.get_or_insert_default().replicas = Some(to);
            }
        }
        self.steps.push(Step::Scale { name, from, to });
        true
    }

    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit) else {
            return;
        };
        let mut alive: Vec<_> =
            self.old.iter().filter(|old| old.metadata.deletion_timestamp.is_none()).collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        alive.sort_by_key(|old| revision(old));
        let unused = |old: &&&ReplicaSet| {
            let observed = old.status.as_ref().and_then(|status| status.observed_generation);
            actual(old) == 0 && size(old) == 0 && old.metadata.generation <= observed
        };
        let gone: Vec<_> = alive.iter().take(surplus).filter(unused).map(|old| name(old)).collect();
        self.steps.extend(gone.into_iter().map(|name| Step::Delete { name }));
    }

    fn finish(self, rolling: bool) -> Plan {
        let all = self.all();
        let mut basis = self.deployment.clone();
        basis.status.get_or_insert_default().conditions.clone_from(&self.conditions.conditions);
        let mut status = status::calculate(&basis, &all, self.new.as_ref(), self.now);
        if rolling {
            status = status::rollout(&basis, &all, self.new.as_ref(), status, self.now);
        }
        let recheck = if rolling { status::recheck(self.deployment, &status, self.now) } else { None };
        Plan { steps: self.steps, status, recheck }
    }
}

fn name(replica_set: &ReplicaSet) -> String {
    replica_set.metadata.name.clone().unwrap_or_default()
}

fn age(replica_set: &ReplicaSet) -> (Option<Time>, String) {
    (replica_set.metadata.creation_timestamp.clone(), name(replica_set))
}

fn revision(replica_set: &ReplicaSet) -> i64 {
    let annotations = replica_set.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(REVISION)).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn longer_history(history: &str, revision: i64) -> String {
    let revision = revision.to_string();
    let mut entries: Vec<_> = history.split(',').filter(|entry| !entry.is_empty()).collect();
    let known: BTreeSet<_> = entries.iter().copied().collect();
    if known.contains(revision.as_str()) {
        return history.to_owned();
    }
    entries.push(&revision);
    while entries.len() > 1 && entries.iter().map(|entry| entry.len() + 1).sum::<usize>() > HISTORY_CHARS_MAX
    {
        entries.remove(0);
    }
    entries.join(",")
}

fn new_replica_set(deployment: &Deployment, revision: i64, collisions: Option<i32>) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = model::template_hash(&spec.template, collisions);
    let label = |labels: &mut Option<BTreeMap<String, String>>| {
        labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash.clone());
    };
    let mut template = spec.template;
    label(&mut template.metadata.get_or_insert_default().labels);
    let mut selector = spec.selector;
    label(&mut selector.match_labels);
    let mut annotations: BTreeMap<_, _> = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    annotations.extend(size_annotations(deployment));
    annotations.insert(REVISION.to_owned(), revision.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None::<ReplicaSetStatus>,
    }
}

/// The reference by which the Deployment controls its `ReplicaSets`.
pub(super) fn owner_reference(deployment: &Deployment) -> OwnerReference {
    OwnerReference {
        block_owner_deletion: Some(true),
        ..deployment.controller_owner_ref(&()).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
