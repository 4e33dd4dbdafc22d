//! Actions as tasks: one at a time for each slot, and what their ends mean.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{STATUS_RETRY, Worker};
use crate::{
    pods::{
        execute::{Failed, Outcome, Starting, Stopping},
        plan::{Action, StopReason},
        status,
        view::{Failure, Slot, View, Work, after},
    },
    runtime::Runtime,
};

/// First and longest wait between two tries of what failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
/// The same for volumes and sandboxes, whose failures are mostly short.
const RETRY_SETUP: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(2));

/// A task's end.
pub(super) enum Done {
    Action { slot: Slot, work: Work, action: Action, outcome: Outcome<Option<Timestamp>> },
    Status { status: Box<PodStatus>, written: bool },
}

impl<R: Runtime> Worker<R> {
    pub(super) fn act(&mut self, view: &View<'_>, action: Action) {
        let (slot, work) = match &action {
            Action::Prepare | Action::TearDown | Action::Finish => (Slot::Volumes, Work::Other),
            Action::RunSandbox { .. } | Action::StopSandbox(_) | Action::RemoveSandbox(_) => {
                (Slot::Sandbox, Work::Other)
            }
            Action::Delete => (Slot::Object, Work::Other),
            Action::Start { container, backoff, .. } => {
                if let Some(backoff) = backoff {
                    self.memory.backoff.insert(container.clone(), *backoff);
                }
                (Slot::Container(container.clone()), Work::Start)
            }
            Action::Stop { container, deadline, id, reason } => {
                if *reason != StopReason::PodEnds {
                    self.memory.replaced.insert(id.clone());
                }
                (Slot::Container(container.clone()), Work::Stop { deadline: *deadline })
            }
            Action::Remove { container, .. } => (Slot::Container(container.clone()), Work::Other),
        };
        let sooner = matches!(action, Action::Stop { .. }) && self.memory.busy.contains_key(&slot);
        if !sooner && self.memory.busy.contains_key(&slot) {
            return;
        }
        self.spawn(view, slot, work, action);
    }

    /// Runs the action as a task; its end comes back through [`Self::done`].
    pub(super) fn spawn(&mut self, view: &View<'_>, slot: Slot, work: Work, action: Action) {
        let sooner = self.memory.busy.insert(slot.clone(), work).is_some();
        let (shared, pod, cancel) = (self.shared.clone(), self.pod.clone(), self.cancel.clone());
        let sandbox = view.sandbox().cloned();
        let ip = view.pod_ips().first().copied();
        let qos = status::qos_class(view);
        self.tasks.spawn(async move {
            let declared = |name: &str| {
                let spec = pod.spec.as_ref()?;
                spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
            };
            let outcome = match &action {
                Action::Prepare => shared.prepare(&pod).await,
                Action::RunSandbox { attempt } => shared.run_sandbox(&pod, *attempt).await.map(|()| None),
                Action::StopSandbox(id) => shared.stop_sandbox(id).await.map(|()| None),
                Action::RemoveSandbox(id) => shared.remove_sandbox(id).await.map(|()| None),
                Action::Start { container, attempt, .. } => match (declared(container), &sandbox) {
                    (Some(container), Some(sandbox)) => {
                        let what = Starting {
                            pod: &pod,
                            sandbox,
                            container,
                            attempt: *attempt,
                            qos,
                            cancel: &cancel,
                        };
                        shared.start(&what).await.map(|()| None)
                    }
                    // The pod changed meanwhile: the next plan knows.
                    _ => Ok(None),
                },
                Action::Stop { id, container, deadline, reason } => {
                    let container = declared(container);
                    let how = Stopping { deadline: *deadline, reason, pod_ip: ip, sooner };
                    shared.stop(&pod, container, id, &how).await.map(|()| None)
                }
                Action::Remove { id, .. } => shared.remove(id).await.map(|()| None),
                Action::TearDown => shared.tear_down(&pod).await.map(|()| None),
                Action::Delete => shared.delete(&pod).await.map(|()| None),
                Action::Finish => shared.finish(&pod).await.map(|()| None),
            };
            Done::Action { slot, work, action, outcome }
        });
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Status { status, written } => {
                self.status_writing = false;
                if written {
                    self.status_retry_at = None;
                    self.status_written = Some(*status);
                } else {
                    self.status_retry_at = Some(after(Timestamp::now(), STATUS_RETRY));
                }
            }
            Done::Action { slot, work, action, outcome } => {
                // A stop that was overtaken by a sooner one must not free the slot of that one.
                if self.memory.busy.get(&slot) == Some(&work) {
                    self.memory.busy.remove(&slot);
                }
                match outcome {
                    Ok(value) => self.succeeded(&slot, &action, value),
                    Err(failed) => self.failed(slot, failed),
                }
            }
        }
    }

    fn succeeded(&mut self, slot: &Slot, action: &Action, value: Option<Timestamp>) {
        self.memory.failures.remove(slot);
        match action {
            Action::Prepare => {
                self.memory.prepared = true;
                self.memory.torn_down = false;
                self.tokens_at = value;
            }
            Action::TearDown => {
                self.memory.prepared = false;
                self.memory.torn_down = true;
            }
            Action::Delete => self.memory.deleted = true,
            Action::Finish => self.finished = true,
            _ => {}
        }
    }

    fn failed(&mut self, slot: Slot, failed: Failed) {
        let now = Timestamp::now();
        let count = self.memory.failures.get(&slot).map_or(1, |before| before.count + 1);
        let (first, longest) = if matches!(slot, Slot::Container(_)) { RETRY } else { RETRY_SETUP };
        let wait = first.saturating_mul(1 << (count - 1).min(10)).min(longest);
        tracing::warn!(
            pod = self.pod.metadata.name,
            namespace = self.pod.metadata.namespace,
            ?slot,
            reason = failed.reason,
            message = failed.message,
            retry_ms = wait.as_millis() as u64,
            "failed"
        );
        let retry_at = after(now, wait);
        let Failed { reason, message } = failed;
        self.memory
            .failures
            .insert(slot, Failure { reason: reason.to_owned(), message, count, at: now, retry_at });
    }
}
