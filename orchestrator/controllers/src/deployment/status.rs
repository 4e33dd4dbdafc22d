//! The status of a Deployment and its conditions, which `kubectl rollout status` reads.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::model::{actual, available, max_unavailable, ready, replicas, size};

/// A new ReplicaSet has been made.
pub(super) const NEW_REPLICA_SET: &str = "NewReplicaSetCreated";
/// A ReplicaSet of this template was there already.
pub(super) const FOUND_REPLICA_SET: &str = "FoundNewReplicaSet";
/// The rollout moves.
pub(super) const UPDATED: &str = "ReplicaSetUpdated";
/// The rollout is complete.
pub(super) const COMPLETE: &str = "NewReplicaSetAvailable";
/// The rollout has not moved for `progressDeadlineSeconds`.
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// A ReplicaSet could not be made.
pub(super) const CREATE_ERROR: &str = "ReplicaSetCreateError";
/// `spec.paused` was set.
pub(super) const PAUSED: &str = "DeploymentPaused";
/// `spec.paused` was cleared.
pub(super) const RESUMED: &str = "DeploymentResumed";

/// No deadline, as upstream writes it.
const NO_DEADLINE: i32 = i32::MAX;

/// The deadline for progress; `None` when there is none.
pub(super) fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    let deadline = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds)?;
    (deadline != NO_DEADLINE).then_some(deadline)
}

/// A condition by its type.
pub(super) fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// A condition of now.
pub(super) fn new_condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: &Time,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Puts a condition in; one that says the same for the same reason stays as it is.
pub(super) fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(current) = condition(status, &new.type_) {
        if current.status == new.status && current.reason == new.reason {
            return;
        }
        if current.status == new.status {
            new.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

/// Takes a condition out.
pub(super) fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = status.conditions.as_mut() {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

/// Numbers and the Available condition.
pub(super) fn calculate(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: &Time,
) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let sum = |of: fn(&ReplicaSet) -> i32| all.iter().map(|replica_set| of(replica_set)).sum::<i32>();
    let serving = sum(available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(actual)),
        updated_replicas: Some(new.map(actual).unwrap_or_default()),
        ready_replicas: Some(sum(ready)),
        available_replicas: Some(serving),
        unavailable_replicas: Some((sum(size) - serving).max(0)),
        collision_count: before.collision_count,
        conditions: before.conditions,
        terminating_replicas: before.terminating_replicas,
    };
    let enough = serving >= replicas(deployment) - max_unavailable(deployment);
    let available = if enough {
        let message = "Deployment has minimum availability.".to_owned();
        new_condition("Available", "True", "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        new_condition("Available", "False", "MinimumReplicasUnavailable", message, now)
    };
    set(&mut status, available);
    status
}

/// Adds the conditions of a rollout that is under way: Progressing and `ReplicaFailure`.
pub(super) fn rollout(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    mut status: DeploymentStatus,
    now: &Time,
) -> DeploymentStatus {
    if progress_deadline(deployment).is_none() {
        remove(&mut status, "Progressing");
    }
    let current = condition(&status, "Progressing").cloned();
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().and_then(|current| current.reason.as_deref()) == Some(COMPLETE);
    if progress_deadline(deployment).is_some() && !was_complete {
        let name = new.and_then(|new| new.metadata.name.as_deref());
        let subject = match name {
            Some(name) => format!("ReplicaSet \"{name}\""),
            None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        let progressing =
            |status: &str, reason, message| new_condition("Progressing", status, reason, message, now);
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, progressing("True", COMPLETE, message));
        } else if has_progressed(deployment, &status) {
            let mut condition = progressing("True", UPDATED, format!("{subject} is progressing."));
            // Each step of progress restarts the deadline, so this one is replaced even if it says the same.
            if let Some(current) = current.filter(|current| current.status == "True") {
                condition.last_transition_time = current.last_transition_time;
            }
            remove(&mut status, "Progressing");
            set(&mut status, condition);
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, progressing("False", TIMED_OUT, message));
        }
    }
    match failure(all, new) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, "ReplicaFailure"),
    }
    status
}

/// Notes that a rollout was paused or resumed, so that the time it was paused does not count as lack of progress.
pub(super) fn paused(deployment: &Deployment, status: &mut DeploymentStatus, now: &Time) {
    if progress_deadline(deployment).is_none() {
        return;
    }
    let reason = condition(status, "Progressing").and_then(|current| current.reason.clone());
    if reason.as_deref() == Some(TIMED_OUT) {
        return;
    }
    let is_paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or_default();
    let was_paused = reason.as_deref() == Some(PAUSED);
    let note =
        |reason, message: &str| new_condition("Progressing", "Unknown", reason, message.to_owned(), now);
    if is_paused && !was_paused {
        set(status, note(PAUSED, "Deployment is paused"));
    } else if !is_paused && was_paused {
        set(status, note(RESUMED, "Deployment is resumed"));
    }
}

/// All pods are of the new template, and available, and no others are left.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(replicas(deployment));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let number = Option::<i32>::unwrap_or_default;
    let outdated = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || outdated(new) < outdated(&old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: &Time) -> bool {
    let Some(current) = condition(status, "Progressing") else { return false };
    match current.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => left(deployment, current, now).is_some_and(|left| left < 0),
    }
}

/// Seconds until the deadline; negative once it has passed.
fn left(deployment: &Deployment, current: &DeploymentCondition, now: &Time) -> Option<i64> {
    let since = current.last_update_time.as_ref()?;
    Some(i64::from(progress_deadline(deployment)?) - now.0.duration_since(since.0).as_secs())
}

/// When to look again for lack of progress.
pub(super) fn recheck(deployment: &Deployment, status: &DeploymentStatus, now: &Time) -> Option<Duration> {
    let current = condition(status, "Progressing")?;
    if is_complete(deployment, status) || current.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let left = left(deployment, current, now)?;
    // A second later, so that the deadline has passed by then.
    Some(Duration::from_secs(u64::try_from(left).unwrap_or_default() + 1))
}

/// What a ReplicaSet ran into, preferably the new one.
fn failure(all: &[&ReplicaSet], new: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let of = |replica_set: &ReplicaSet| {
        let status = replica_set.status.as_ref()?;
        let failed = status.conditions.iter().flatten().find(|one| one.type_ == "ReplicaFailure")?;
        Some(DeploymentCondition {
            type_: "ReplicaFailure".to_owned(),
            status: failed.status.clone(),
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            last_update_time: failed.last_transition_time.clone(),
            last_transition_time: failed.last_transition_time.clone(),
        })
    };
    new.and_then(of).or_else(|| all.iter().find_map(|replica_set| of(replica_set)))
}

/// Whether two statuses say the same: a missing number is zero, missing conditions are none.
pub(super) fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let numbers = |status: &DeploymentStatus| {
        [
            status.replicas,
            status.updated_replicas,
            status.ready_replicas,
            status.available_replicas,
            status.unavailable_replicas,
        ]
        .map(Option::unwrap_or_default)
    };
    let conditions = |status: &DeploymentStatus| status.conditions.clone().unwrap_or_default();
    numbers(a) == numbers(b)
        && a.observed_generation == b.observed_generation
        && a.collision_count == b.collision_count
        && conditions(a) == conditions(b)
}
