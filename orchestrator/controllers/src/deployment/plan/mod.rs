//! What a Deployment needs: a pure function of the Deployment, its `ReplicaSets` and what pods are left of old ones.
//!
//! The steps are applied to a copy of the `ReplicaSets` as they are planned, so that the status is what upstream would
//! write after having carried them out.

mod revision;
mod scaling;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) use self::revision::owner_reference;
use super::model::{self, actual, replicas, size};
use super::status;

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

#[cfg(test)]
mod tests;
