//! Sizes: how the `ReplicaSets` of a rollout grow and shrink, and how they share a change of the Deployment's size.

use std::cmp::Reverse;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{Rollout, Step, age, name};
use crate::deployment::model::{
    self, DESIRED_REPLICAS, annotation, available, fenceposts, replicas, size, size_annotations,
};

impl Rollout<'_> {
    /// A size of the Deployment that its `ReplicaSets` have not been scaled for.
    pub(super) fn is_scaling(&self) -> bool {
        let wanted = replicas(self.deployment);
        self.all().into_iter().filter(|replica_set| size(replica_set) > 0).any(|replica_set| {
            annotation(replica_set, DESIRED_REPLICAS).is_some_and(|desired| desired != wanted)
        })
    }

    pub(super) fn grow_new(&mut self) -> bool {
        let Some(new) = self.new.clone() else { return false };
        let wanted = replicas(self.deployment);
        let to = if size(&new) > wanted {
            wanted
        } else {
            model::new_size(self.deployment, self.total(), size(&new))
        };
        self.resize(&new, to)
    }

    pub(super) fn shrink_old(&mut self) -> bool {
        let active: Vec<_> = self.old.iter().filter(|old| size(old) > 0).cloned().collect();
        if active.is_empty() {
            return false;
        }
        let minimum = replicas(self.deployment) - model::max_unavailable(self.deployment);
        let new_missing = self.new.as_ref().map(|new| size(new) - remaining(new)).unwrap_or_default();
        let removable = self.total() - minimum - new_missing;
        if removable <= 0 {
            return false;
        }
        // Pods that do not serve go first: they are missed by nobody, and would else hold up the rollout.
        let mut unhealthy = 0;
        for old in &active {
            let broken = size(old) - remaining(old);
            let count = broken.min(removable - unhealthy);
            if count > 0 {
                self.resize(old, size(old) - count);
                unhealthy += count;
            }
        }
        let serving: i32 = self.all().into_iter().map(remaining).sum();
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
    pub(super) fn scale(&mut self) {
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

    pub(super) fn resize(&mut self, replica_set: &ReplicaSet, to: i32) -> bool {
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
}

/// Available pods that stay: those beyond the size go as soon as their controller looks, whatever its status still says.
fn remaining(replica_set: &ReplicaSet) -> i32 {
    available(replica_set).min(size(replica_set))
}
