//! What to do next for a pod: a pure function from what is known to a list of actions.
//!
//! Level-triggered: the plan of the same [`View`] is always the same, nothing is remembered between two plans but what
//! the worker puts in its [`Memory`](super::view::Memory), and an action that is under way (its slot is busy) is not
//! planned twice. So the worker may plan after every event, and a lost event costs time, never correctness.
//!
//! The life of a pod has three regimes, decided first: it is terminating (asked to go, or gone), finished (its phase is
//! final), or it should run.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    status,
    view::{Backoff, Role, Slot, View, Work, after, changed},
};
use crate::runtime::{ContainerId, ContainerState, ContainerStatus, SandboxId};

/// What the worker does, and when it must plan again if nothing happens before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be started now, in this order; none waits for another.
    pub(crate) actions: Vec<Action>,
    /// The next moment at which the plan changes by itself.
    pub(crate) wake_at: Option<Timestamp>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the pod's directories and volumes.
    Prepare,
    /// Make a sandbox.
    RunSandbox {
        /// Its number among the pod's sandboxes.
        attempt: u32,
    },
    /// Take a sandbox's network and processes away.
    StopSandbox(SandboxId),
    /// Remove a sandbox's records.
    RemoveSandbox(SandboxId),
    /// Create and start a container.
    Start {
        /// Its name.
        container: String,
        /// Its number among the containers of this name.
        attempt: u32,
        /// The crash backoff from here on, if this is a restart.
        backoff: Option<Backoff>,
    },
    /// Stop a container: preStop hook, signal, and at the deadline the end.
    Stop {
        /// Which.
        id: ContainerId,
        /// Its name.
        container: String,
        /// When it is killed.
        deadline: Timestamp,
        /// Why.
        reason: StopReason,
    },
    /// Remove a container's record that newer ones have superseded.
    Remove {
        /// Which.
        id: ContainerId,
        /// Its name.
        container: String,
    },
    /// Unmount the volumes.
    TearDown,
    /// Write the last status, then delete the API object.
    Delete,
    /// Nothing of the pod is left but directories: remove them and end the worker.
    Finish,
}

/// Why a container is stopped: the text of its `Killing` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The pod goes.
    PodEnds,
    /// Its definition changed.
    Changed,
    /// A probe condemned it.
    Probe(String),
}

/// How many records of one container name are kept: the newest, and the one that `lastState` and
/// `kubectl logs --previous` show.
const KEPT_RECORDS: usize = 2;
/// The same for sandboxes: the old one keeps the records that `lastState` shows.
const KEPT_SANDBOXES: usize = 2;
/// Grace of a pod that was removed by force, so that its processes may still flush.
const MINIMUM_GRACE: Duration = Duration::from_secs(1);

/// What to do next.
pub(crate) fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    if view.terminating() {
        plan_termination(view, &mut plan);
    } else if status::is_final(status::phase(view)) {
        plan_finished(view, &mut plan);
    } else {
        plan_running(view, &mut plan);
    }
    plan
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Adds the action unless its slot is busy or waits for its next try.
    fn add(&mut self, view: &View<'_>, slot: &Slot, action: Action) {
        if view.memory.busy.contains_key(slot) {
            return;
        }
        match view.memory.failures.get(slot) {
            Some(failure) if failure.retry_at > view.now => self.wake(failure.retry_at),
            _ => self.actions.push(action),
        }
    }
}

/// The end: containers, sandbox, volumes, API object, records; each step only after the one before.
fn plan_termination(view: &View<'_>, plan: &mut Plan) {
    let deadline = termination_deadline(view);
    if !stop_containers(view, plan, deadline) || !stop_sandboxes(view, plan) {
        return;
    }
    if !view.memory.torn_down {
        return plan.add(view, &Slot::Volumes, Action::TearDown);
    }
    if !view.memory.removed && !view.memory.deleted {
        return plan.add(view, &Slot::Object, Action::Delete);
    }
    match view.sandboxes.last() {
        Some(sandbox) => plan.add(view, &Slot::Sandbox, Action::RemoveSandbox(sandbox.id.clone())),
        None => plan.add(view, &Slot::Volumes, Action::Finish),
    }
}

/// When the pod's containers are killed: the grace period runs from the moment this node learnt of the deletion, not
/// from the apiserver's clock.
fn termination_deadline(view: &View<'_>) -> Timestamp {
    let metadata = &view.pod.metadata;
    let declared = || view.spec().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = metadata.deletion_grace_period_seconds.or_else(declared).unwrap_or(30).max(0);
    let grace = Duration::from_secs(seconds.unsigned_abs());
    let grace = if view.memory.removed { grace.max(MINIMUM_GRACE) } else { grace };
    after(view.memory.terminating_since.unwrap_or(view.now), grace)
}

/// A pod that has ended keeps its records, so that logs and exit codes can be seen, and gives back everything else.
fn plan_finished(view: &View<'_>, plan: &mut Plan) {
    let grace = view.spec().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30).max(0);
    let deadline = after(view.now, Duration::from_secs(grace.unsigned_abs()));
    if stop_containers(view, plan, deadline) && stop_sandboxes(view, plan) && !view.memory.torn_down {
        plan.add(view, &Slot::Volumes, Action::TearDown);
    }
}

/// Stops what runs: main containers together, then sidecars from the last to the first. True when nothing runs and
/// nothing is being done to a container.
fn stop_containers(view: &View<'_>, plan: &mut Plan, deadline: Timestamp) -> bool {
    let alive: Vec<_> =
        view.containers.iter().filter(|container| container.state != ContainerState::Exited).collect();
    let sidecars: Vec<&str> = view
        .declared()
        .filter(|(role, _)| *role == Role::Sidecar)
        .map(|(_, container)| container.name.as_str())
        .collect();
    let position =
        |container: &ContainerStatus| sidecars.iter().position(|name| *name == container.spec.name);
    let last_sidecar = alive.iter().filter_map(|container| position(container)).max();
    let only_sidecars = alive.iter().all(|container| position(container).is_some());
    for container in &alive {
        let turn = match position(container) {
            None => true,
            at => only_sidecars && at == last_sidecar,
        };
        if turn {
            stop(view, plan, container, deadline, StopReason::PodEnds);
        }
    }
    let busy = view.memory.busy.keys().any(|slot| matches!(slot, Slot::Container(_)));
    alive.is_empty() && !busy
}

/// True when no sandbox has network or processes.
fn stop_sandboxes(view: &View<'_>, plan: &mut Plan) -> bool {
    if let Some(sandbox) = view.sandboxes.iter().find(|sandbox| sandbox.ready) {
        plan.add(view, &Slot::Sandbox, Action::StopSandbox(sandbox.id.clone()));
        return false;
    }
    !view.memory.busy.contains_key(&Slot::Sandbox) && !view.memory.busy.contains_key(&Slot::Volumes)
}

/// Stops a container, or stops it sooner than planned before.
fn stop(view: &View<'_>, plan: &mut Plan, status: &ContainerStatus, deadline: Timestamp, reason: StopReason) {
    let slot = Slot::Container(status.spec.name.clone());
    match view.memory.busy.get(&slot) {
        Some(Work::Stop { deadline: earlier }) if *earlier <= deadline => return,
        Some(Work::Start | Work::Other) => return,
        _ => {}
    }
    if let Some(failure) = view.memory.failures.get(&slot).filter(|failure| failure.retry_at > view.now) {
        return plan.wake(failure.retry_at);
    }
    let (id, container) = (status.id.clone(), status.spec.name.clone());
    // What never ran needs no hook and no signal.
    plan.actions.push(match status.state {
        ContainerState::Created => Action::Remove { id, container },
        _ => Action::Stop { id, container, deadline, reason },
    });
}

/// Volumes and sandbox, then init containers in order, then the main containers in order.
fn plan_running(view: &View<'_>, plan: &mut Plan) {
    if !view.memory.prepared {
        plan.add(view, &Slot::Volumes, Action::Prepare);
    }
    let Some(sandbox) = view.sandbox() else {
        return plan_sandbox(view, plan);
    };
    remove_superseded(view, plan, &sandbox.id);
    if !view.memory.prepared {
        return;
    }
    let initialized = view.initialized();
    for (role, container) in view.declared() {
        if role == Role::Init && initialized {
            continue;
        }
        let done = plan_container(view, plan, role, container);
        // Init containers start only when the one before is done; sidecars of an initialised pod hold nobody up.
        if role != Role::Main && !initialized && !done {
            return;
        }
    }
}

/// There is no usable sandbox: finish off the old one and make the next.
fn plan_sandbox(view: &View<'_>, plan: &mut Plan) {
    if let Some(dead) = view.sandboxes.first() {
        let alive = |status: &&ContainerStatus| status.state != ContainerState::Exited;
        if view.containers.iter().filter(alive).any(|container| container.sandbox == dead.id) {
            return plan.add(view, &Slot::Sandbox, Action::StopSandbox(dead.id.clone()));
        }
    }
    if let Some(old) = view.sandboxes.get(KEPT_SANDBOXES - 1) {
        return plan.add(view, &Slot::Sandbox, Action::RemoveSandbox(old.id.clone()));
    }
    if !view.host_network() && !view.memory.network_ready {
        return;
    }
    let attempt = view.sandboxes.iter().map(|sandbox| sandbox.spec.attempt + 1).max().unwrap_or(0);
    plan.add(view, &Slot::Sandbox, Action::RunSandbox { attempt });
}

/// Brings one container to where it should be. True if the next init container may start.
fn plan_container(
    view: &View<'_>,
    plan: &mut Plan,
    role: Role,
    container: &k8s_openapi::api::core::v1::Container,
) -> bool {
    let Some(status) = view.current(&container.name) else {
        // A container that ended well in an earlier sandbox has done its work.
        let over = view.latest(&container.name).is_some_and(|status| {
            status.state == ContainerState::Exited && role == Role::Main && !view.will_restart(role, status)
        });
        if !over {
            start(view, plan, &container.name, None);
        }
        return false;
    };
    match status.state {
        // Its maker died between create and start: begin anew, under the same number.
        ContainerState::Created => {
            let slot = Slot::Container(container.name.clone());
            plan.add(
                view,
                &slot,
                Action::Remove { id: status.id.clone(), container: container.name.clone() },
            );
            false
        }
        ContainerState::Running => {
            let grace = |probe: Option<i64>| {
                let seconds = probe.or(view.spec().and_then(|spec| spec.termination_grace_period_seconds));
                after(view.now, Duration::from_secs(seconds.unwrap_or(30).max(0).unsigned_abs()))
            };
            if let Some(message) = view.memory.condemned.get(&status.id) {
                let probe = container.liveness_probe.as_ref().or(container.startup_probe.as_ref());
                let deadline = grace(probe.and_then(|probe| probe.termination_grace_period_seconds));
                stop(view, plan, status, deadline, StopReason::Probe(message.clone()));
            } else if role != Role::Init && changed(Some(container), status) {
                stop(view, plan, status, grace(None), StopReason::Changed);
            }
            role == Role::Sidecar && view.started(container, status)
        }
        ContainerState::Exited => {
            if view.will_restart(role, status) {
                let at = view.restart_at(status);
                if at > view.now {
                    plan.wake(at);
                } else {
                    start(view, plan, &container.name, Some(status));
                }
            }
            role == Role::Init && status.exit_code == Some(0)
        }
    }
}

/// Starts a container, unless another of the pod is just starting: they start one after another, in order.
fn start(view: &View<'_>, plan: &mut Plan, name: &str, exited: Option<&ContainerStatus>) {
    let starting = view.memory.busy.values().any(|work| *work == Work::Start)
        || plan.actions.iter().any(|action| matches!(action, Action::Start { .. }));
    if starting {
        return;
    }
    let backoff = exited.map(|status| {
        let exited_at = status.finished_at.unwrap_or(status.created_at);
        Backoff::raised(view.memory.backoff.get(name).copied(), exited_at, view.now)
    });
    let action = Action::Start { container: name.to_owned(), attempt: view.next_attempt(name), backoff };
    plan.add(view, &Slot::Container(name.to_owned()), action);
}

/// Removes records nobody can ask for any more.
fn remove_superseded(view: &View<'_>, plan: &mut Plan, current: &SandboxId) {
    for (_, container) in view.declared() {
        let records = view.containers.iter().filter(|status| status.spec.name == container.name);
        let old = records.skip(KEPT_RECORDS).find(|status| status.state == ContainerState::Exited);
        if let Some(status) = old {
            let (id, name) = (status.id.clone(), container.name.clone());
            plan.add(view, &Slot::Container(name.clone()), Action::Remove { id, container: name });
        }
    }
    if let Some(old) = view.sandboxes.get(KEPT_SANDBOXES).filter(|sandbox| sandbox.id != *current) {
        plan.add(view, &Slot::Sandbox, Action::RemoveSandbox(old.id.clone()));
    }
}
