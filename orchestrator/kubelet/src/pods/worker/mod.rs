//! One pod's worker: looks, plans, starts what is planned, and waits for the next reason to look again.
//!
//! The loop never waits for an action: actions are tasks whose ends are reasons to look. So a shorter grace period, a
//! deletion during a start, or a probe's verdict is acted upon at once. All decisions are
//! [`plan`]'s and all words are [`status`]'s; here is only the order of things.

mod probing;
mod report;
mod tasks;

use std::{collections::HashMap, fs, io::Read, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::tasks::Done;
use super::{
    container_status::pull_error_until,
    execute::Shared,
    plan::{Action, Plan, plan},
    status,
    view::{Memory, Slot, View, Work, after},
};
use crate::{
    objects::references,
    probes::{self, Report},
    runtime::{ContainerId, ContainerState, ContainerStatus, Runtime, Sandbox},
};

/// How long after a failed status patch the next is tried.
const STATUS_RETRY: Duration = Duration::from_secs(1);
/// A worker looks at its pod at least so often. Nothing depends on it; it bounds the sleep's arithmetic.
const LONGEST_SLEEP: Duration = Duration::from_hours(24);
/// The longest termination message, as upstream.
const LAST_WORDS_BYTES: u64 = 4096;

/// What the dispatcher tells a worker.
#[derive(Debug, Clone)]
pub(crate) struct Update {
    /// The newest version of the pod.
    pub(crate) pod: Arc<Pod>,
    /// The API object is gone.
    pub(crate) removed: bool,
}

/// The worker of one pod.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each with a name")]
pub(crate) struct Worker<R> {
    shared: Arc<Shared<R>>,
    uid: String,
    pod: Arc<Pod>,
    memory: Memory,
    tasks: JoinSet<Done>,
    updates: watch::Receiver<Update>,
    /// Something happened to a container.
    wake: Arc<Notify>,
    /// An object changed that the pod refers to.
    objects_changed: Arc<Notify>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    probes: HashMap<ContainerId, AbortOnDropHandle<()>>,
    /// Ends starts that are under way.
    cancel: CancellationToken,
    /// What the last look came to; what was reported for it is not reported again.
    status_shown: Option<PodStatus>,
    status_written: Option<PodStatus>,
    status_writing: bool,
    status_retry_at: Option<Timestamp>,
    /// The volumes must be looked at again.
    refresh: bool,
    tokens_at: Option<Timestamp>,
    start_measured: bool,
    finished: bool,
}

impl<R: Runtime> Worker<R> {
    pub(crate) fn new(
        shared: Arc<Shared<R>>,
        updates: watch::Receiver<Update>,
        wake: Arc<Notify>,
        memory: Memory,
    ) -> Self {
        let pod = updates.borrow().pod.clone();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            shared,
            pod,
            memory,
            tasks: JoinSet::new(),
            updates,
            wake,
            objects_changed: Arc::default(),
            reports: mpsc::channel(probes::REPORTS),
            probes: HashMap::new(),
            cancel: CancellationToken::new(),
            status_shown: None,
            status_written: None,
            status_writing: false,
            status_retry_at: None,
            refresh: false,
            tokens_at: None,
            start_measured: false,
            finished: false,
        }
    }

    /// Works until nothing of the pod is left.
    pub(crate) async fn run(mut self, mut network: watch::Receiver<Option<String>>) {
        self.shared.objects.claim(&self.uid, &references(&self.pod), &self.objects_changed);
        while !self.finished {
            self.memory.network_ready = network.borrow_and_update().is_some();
            let wake_at = match self.look().await {
                Ok((sandboxes, containers)) => self.step(&sandboxes, &containers),
                Err(error) => {
                    tracing::warn!(uid = self.uid, %error, "the runtime cannot list");
                    Some(after(Timestamp::now(), STATUS_RETRY))
                }
            };
            if self.finished {
                break;
            }
            let sleep = wake_at.map_or(LONGEST_SLEEP, |at| {
                Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
            });
            tokio::select! {
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => tracing::error!(uid = self.uid, %error, "a task of the pod ended badly"),
                },
                changed = self.updates.changed() => match changed {
                    Ok(()) => self.updated(),
                    // The dispatcher is gone: the kubelet ends, the pod stays.
                    Err(_) => return,
                },
                () = self.wake.notified() => {}
                () = self.objects_changed.notified() => self.objects_changed(),
                Some(report) = self.reports.1.recv() => self.reported(report),
                Ok(()) = network.changed() => {}
                () = tokio::time::sleep(sleep.min(LONGEST_SLEEP)) => {}
            }
        }
        self.shared.objects.release(&self.uid);
    }

    /// What the runtime has of this pod, newest first.
    async fn look(&self) -> Result<(Vec<Sandbox>, Vec<ContainerStatus>), crate::runtime::Error> {
        let mut sandboxes = self.shared.runtime.list_sandboxes().await?;
        sandboxes.retain(|sandbox| sandbox.spec.uid == self.uid);
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.spec.attempt));
        let mut containers = self.shared.runtime.list_containers().await?;
        containers.retain(|container| sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox));
        containers.sort_by_key(|container| std::cmp::Reverse((container.spec.attempt, container.created_at)));
        Ok((sandboxes, containers))
    }

    /// Plans, writes the status if it changed, and starts what is planned. Returns when to look again.
    fn step(&mut self, sandboxes: &[Sandbox], containers: &[ContainerStatus]) -> Option<Timestamp> {
        let begun = std::time::Instant::now();
        let now = Timestamp::now();
        self.observe(containers, now);
        let pod = self.pod.clone();
        let node_ip = self.shared.node_ip;
        let before = self.memory.clone();
        let view = View { pod: &pod, sandboxes, containers, memory: &before, node_ip, now };
        if view.terminating() {
            self.cancel.cancel();
        }
        self.set_probes(&view);
        // Probes that begin now may have brought an earlier kubelet's results with them.
        let memory = self.memory.clone();
        let view = View { memory: &memory, ..view };
        let Plan { actions, mut wake_at } = plan(&view);
        let status = status::status(&view);
        self.measure_start(&status, now);
        self.report_backoff(&status);
        self.status_shown = Some(status.clone());
        let mut wake =
            |at: Timestamp| wake_at = Some(wake_at.map_or(at, |earlier: Timestamp| earlier.min(at)));
        let status_is_written = self.write_status(&view, status, &mut wake);
        for action in actions {
            // The last word on a pod must be its real end.
            if action == Action::Delete && !status_is_written {
                continue;
            }
            self.act(&view, action);
        }
        if self.memory.prepared && !view.terminating() && !self.memory.busy.contains_key(&Slot::Volumes) {
            let tokens_due = self.tokens_at.is_some_and(|at| at <= now);
            if self.refresh || tokens_due {
                self.refresh = false;
                self.tokens_at = None;
                self.spawn(&view, Slot::Volumes, Work::Other, Action::Prepare);
            } else if let Some(at) = self.tokens_at {
                wake(at);
            }
        }
        for failure in self.memory.failures.values().filter(|failure| failure.reason == "ErrImagePull") {
            let shown_until = pull_error_until(failure);
            if shown_until > now {
                wake(shown_until);
            }
        }
        self.shared.metrics.sync_seconds.observe(begun.elapsed().as_secs_f64());
        wake_at
    }

    /// Brings the memory in line with what was seen.
    fn observe(&mut self, containers: &[ContainerStatus], now: Timestamp) {
        let memory = &mut self.memory;
        memory.seen_at.get_or_insert(now);
        if (memory.removed || self.pod.metadata.deletion_timestamp.is_some())
            && memory.terminating_since.is_none()
        {
            memory.terminating_since = Some(now);
            // What failed before does not delay the end.
            memory.failures.clear();
        }
        let running =
            |id: &ContainerId| containers.iter().any(|c| c.id == *id && c.state == ContainerState::Running);
        let known = |id: &ContainerId| containers.iter().any(|c| c.id == *id);
        memory.condemned.retain(|id, _| running(id));
        memory.probed.retain(|id, _| running(id));
        memory.replaced.retain(known);
        memory.last_words.retain(|id, _| known(id));
        for status in containers.iter().filter(|status| status.state == ContainerState::Exited) {
            if status.started_at.is_some() && !memory.last_words.contains_key(&status.id) {
                let name = &status.spec.name;
                let path = self.shared.defaults.termination_log(&self.pod, name, status.spec.attempt);
                memory.last_words.insert(status.id.clone(), last_words(&path));
            }
        }
    }

    fn updated(&mut self) {
        let update = self.updates.borrow_and_update().clone();
        let metadata = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        if update.removed {
            self.memory.removed = true;
        }
        if !Arc::ptr_eq(&update.pod, &self.pod) {
            self.refresh |= metadata(&update.pod) != metadata(&self.pod);
            let images = |pod: &Pod| {
                let spec = pod.spec.clone().unwrap_or_default();
                spec.containers
                    .into_iter()
                    .map(|container| (container.name, container.image))
                    .collect::<Vec<_>>()
            };
            if images(&update.pod) != images(&self.pod) {
                // Another image deserves another try at once.
                self.memory.failures.retain(|slot, _| !matches!(slot, Slot::Container(_)));
            }
            self.pod = update.pod;
        }
    }

    /// What failed for want of an object is tried again, and volumes follow their objects.
    fn objects_changed(&mut self) {
        self.refresh = true;
        self.memory
            .failures
            .retain(|slot, failure| *slot != Slot::Volumes && failure.reason != "CreateContainerConfigError");
    }
}

/// What a container left in its termination message file.
fn last_words(path: &std::path::Path) -> String {
    let mut data = Vec::new();
    // Bounded before it is read: the container decides how much is there. No file is no message.
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(LAST_WORDS_BYTES).read_to_end(&mut data);
    }
    String::from_utf8_lossy(&data).into_owned()
}
