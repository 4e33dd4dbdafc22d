//! The status of one container: waiting, running or terminated, and what it was before.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus as ApiContainerStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::view::{Role, Slot, View, after};
use crate::runtime::{ContainerState, ContainerStatus};

/// How long a pull failure shows as itself before it shows as the backoff that follows it.
const PULL_ERROR_SHOWN: std::time::Duration = std::time::Duration::from_secs(2);

/// What the API shows of a container.
pub(crate) fn container_status(view: &View<'_>, role: Role, container: &Container) -> ApiContainerStatus {
    let latest = view.latest(&container.name);
    let recorded = view.recorded(&container.name);
    let state = match latest {
        Some(status) if status.state == ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning { started_at: status.started_at.map(seconds) }),
            ..ApiState::default()
        },
        Some(status) if status.state == ContainerState::Exited => exited(view, role, status),
        _ => waiting(view, role, container),
    };
    let last = match latest {
        // While it waits, the exit that it waits after is the last state.
        Some(status) if status.state == ContainerState::Exited && state.waiting.is_some() => Some(status),
        Some(_) => view.previous(&container.name),
        None => None,
    };
    let last_state = match last {
        Some(status) => Some(terminated(view, status)),
        None => recorded.and_then(|recorded| lost(latest, recorded)),
    };
    let shown = latest.filter(|status| status.state != ContainerState::Created).or(last);
    ApiContainerStatus {
        name: container.name.clone(),
        image: shown
            .map_or_else(|| container.image.clone().unwrap_or_default(), |status| status.spec.image.clone()),
        image_id: shown.map(|status| status.spec.image_id.clone()).unwrap_or_default(),
        container_id: shown.map(|status| format!("weir://{}", status.id)),
        restart_count: latest.map_or_else(
            || recorded.map_or(0, |recorded| recorded.restart_count),
            |status| status.spec.attempt as i32,
        ),
        ready: match role {
            // An init container is ready when its work is done.
            Role::Init => state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0),
            _ => latest.is_some_and(|status| view.sandbox().is_some() && view.ready(container, status)),
        },
        started: Some(latest.is_some_and(|status| view.started(container, status))),
        last_state,
        state: Some(state),
        ..ApiContainerStatus::default()
    }
}

/// An exited container: waiting for its next start, or terminated for good.
fn exited(view: &View<'_>, role: Role, status: &ContainerStatus) -> ApiState {
    if view.will_restart(role, status) {
        let slot = Slot::Container(status.spec.name.clone());
        if let Some(failure) = view.memory.failures.get(&slot) {
            return wait(failure_reason(view, failure, status.spec.image.as_str()));
        }
        let at = view.restart_at(status);
        if at > view.now {
            let delay =
                view.memory.backoff.get(&status.spec.name).map_or(0, |backoff| backoff.delay.as_secs());
            let metadata = &view.pod.metadata;
            return wait((
                "CrashLoopBackOff".to_owned(),
                format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    go_duration(delay),
                    status.spec.name,
                    metadata.name.as_deref().unwrap_or_default(),
                    metadata.namespace.as_deref().unwrap_or_default(),
                    metadata.uid.as_deref().unwrap_or_default()
                ),
            ));
        }
    }
    terminated(view, status)
}

/// A container that has not run yet.
fn waiting(view: &View<'_>, role: Role, container: &Container) -> ApiState {
    let slot = Slot::Container(container.name.clone());
    if let Some(failure) = view.memory.failures.get(&slot) {
        return wait(failure_reason(view, failure, container.image.as_deref().unwrap_or_default()));
    }
    let has_init = view.declared().any(|(role, _)| role == Role::Init);
    let reason = if role == Role::Main && has_init && !view.initialized() {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    wait((reason.to_owned(), String::new()))
}

/// A failed pull is followed by its backoff; everything else shows as it failed.
fn failure_reason(view: &View<'_>, failure: &super::view::Failure, image: &str) -> (String, String) {
    if failure.reason == "ErrImagePull" && view.now >= pull_error_until(failure) {
        let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failure.message);
        return ("ImagePullBackOff".to_owned(), message);
    }
    (failure.reason.clone(), failure.message.clone())
}

/// When a pull error turns into `ImagePullBackOff`. A second failure in a row does not show again.
pub(crate) fn pull_error_until(failure: &super::view::Failure) -> Timestamp {
    if failure.count > 1 { failure.at } else { after(failure.at, PULL_ERROR_SHOWN) }
}

fn wait((reason, message): (String, String)) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason),
            message: Some(message).filter(|message| !message.is_empty()),
        }),
        ..ApiState::default()
    }
}

/// How a container ended.
fn terminated(view: &View<'_>, status: &ContainerStatus) -> ApiState {
    let exit_code = status.exit_code.unwrap_or(128);
    let reason = if status.started_at.is_none() {
        "StartError"
    } else if status.oom_killed {
        "OOMKilled"
    } else if exit_code == 0 {
        "Completed"
    } else {
        "Error"
    };
    ApiState {
        terminated: Some(ContainerStateTerminated {
            exit_code,
            reason: Some(reason.to_owned()),
            message: status.message.clone().or_else(|| {
                view.memory.last_words.get(&status.id).filter(|words| !words.is_empty()).cloned()
            }),
            started_at: status.started_at.map(seconds),
            finished_at: status.finished_at.map(seconds),
            container_id: Some(format!("weir://{}", status.id)),
            ..ContainerStateTerminated::default()
        }),
        ..ApiState::default()
    }
}

/// What the apiserver remembers and this machine does not: after a reboot, the container that ran before it.
fn lost(latest: Option<&ContainerStatus>, recorded: &ApiContainerStatus) -> Option<ApiState> {
    let ran = recorded.state.as_ref().is_some_and(|state| state.running.is_some());
    let id = recorded.container_id.clone().filter(|id| !id.is_empty());
    let same = latest.is_some_and(|status| id.as_deref() == Some(format!("weir://{}", status.id).as_str()));
    if ran && id.is_some() && !same {
        return Some(ApiState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                container_id: id,
                ..ContainerStateTerminated::default()
            }),
            ..ApiState::default()
        });
    }
    recorded.last_state.clone().filter(|state| *state != ApiState::default())
}

/// Times in the API are whole seconds; anything finer would never equal what is read back.
pub(crate) fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// `10s`, `1m20s`, `5m0s`: durations as Go writes them, because people grep for them.
pub(crate) fn go_duration(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}
