//! One pod's worker: looks, plans, starts what is planned, and waits for the next reason to look again.
//!
//! The loop never waits for an action: actions are tasks whose ends are reasons to look. So a shorter grace period, a
//! deletion during a start, or a probe's verdict is acted upon at once. All decisions are
//! [`plan`]'s and all words are [`status`]'s; here is only the order of things.

use std::{collections::HashMap, fs, io::Read, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus as ApiContainerStatus, Pod, PodStatus};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    container_status::pull_error_until,
    execute::{Failed, Outcome, Shared, Stopping},
    plan::{Action, Plan, StopReason, plan},
    status,
    view::{Failure, Memory, Probed, Slot, View, Work, after},
};
use crate::{
    env::namespace,
    events::Kind,
    objects::references,
    probes::{self, ProbeKind, Report, Target, Verdict},
    runtime::{ContainerId, ContainerState, ContainerStatus, Runtime, Sandbox},
};

/// First and longest wait between two tries of what failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
/// The same for volumes and sandboxes, whose failures are mostly short.
const RETRY_SETUP: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(2));
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

/// A task's end.
enum Done {
    Action { slot: Slot, work: Work, action: Action, outcome: Outcome<Option<Timestamp>> },
    Status { status: Box<PodStatus>, written: bool },
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

    /// Starts the probes of containers that run, and ends the others.
    fn set_probes(&mut self, view: &View<'_>) {
        let running = |id: &ContainerId| {
            view.containers.iter().any(|c| c.id == *id && c.state == ContainerState::Running)
        };
        // A pod that goes is not restarted by its probes; readiness stays as it was.
        if view.terminating() {
            self.probes.clear();
        }
        self.probes.retain(|id, _| running(id));
        let Some(ip) = view.pod_ips().first().copied().filter(|_| !view.terminating()) else { return };
        for (_, container) in view.declared() {
            let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
            let Some(status) = view.current(&container.name).filter(|status| running(&status.id)) else {
                continue;
            };
            if probes.iter().all(|probe| probe.is_none()) || self.probes.contains_key(&status.id) {
                continue;
            }
            // What an earlier kubelet found out still holds: a restart of the kubelet takes no pod out of its
            // Services.
            let id = format!("weir://{}", status.id);
            let before =
                view.recorded(&container.name).filter(|s| s.container_id.as_deref() == Some(id.as_str()));
            let was_started = before.is_some_and(|before| before.started == Some(true));
            let known = Probed {
                started: container.startup_probe.is_none() || was_started,
                ready: container.readiness_probe.is_none() || before.is_some_and(|before| before.ready),
            };
            self.memory.probed.entry(status.id.clone()).or_insert(known);
            let target = Target {
                runtime: self.shared.runtime.clone(),
                metrics: self.shared.metrics.clone(),
                id: status.id.clone(),
                ip,
                started_at: status.started_at.unwrap_or(status.created_at),
                container: container.clone(),
                was_started,
                reports: self.reports.0.clone(),
            };
            self.probes.insert(status.id.clone(), target.spawn());
        }
    }

    /// Says in events what began to wait for its next try.
    fn report_backoff(&self, status: &PodStatus) {
        let reason = |status: &ApiContainerStatus| {
            status
                .state
                .as_ref()?
                .waiting
                .as_ref()?
                .reason
                .clone()
                .filter(|reason| reason.ends_with("BackOff"))
        };
        let lists = |status: &PodStatus| {
            let both = [status.container_statuses.clone(), status.init_container_statuses.clone()];
            both.into_iter().flatten().flatten().collect::<Vec<_>>()
        };
        let before = self.status_shown.as_ref().map(lists).unwrap_or_default();
        for status in lists(status) {
            let Some(now) = reason(&status) else { continue };
            if before.iter().any(|before| before.name == status.name && reason(before).as_ref() == Some(&now))
            {
                continue;
            }
            let metadata = &self.pod.metadata;
            let message = if now == "ImagePullBackOff" {
                format!("Back-off pulling image \"{}\"", status.image)
            } else {
                format!(
                    "Back-off restarting failed container {} in pod {}_{}({})",
                    status.name,
                    metadata.name.as_deref().unwrap_or_default(),
                    namespace(&self.pod),
                    self.uid
                )
            };
            let kind = if now == "ImagePullBackOff" { Kind::Normal } else { Kind::Warning };
            self.shared.events.pod(&self.pod, Some(&status.name), kind, "BackOff", message);
        }
    }

    fn measure_start(&mut self, status: &PodStatus, now: Timestamp) {
        let running = status.phase.as_deref() == Some("Running");
        if let Some(seen) = self.memory.seen_at.filter(|_| running && !self.start_measured) {
            self.start_measured = true;
            self.shared.metrics.start_seconds.observe(now.duration_since(seen).as_secs_f64());
        }
    }

    /// Starts a patch if the status differs from what was written. True if nothing is left to be written.
    fn write_status(&mut self, view: &View<'_>, status: PodStatus, wake: &mut impl FnMut(Timestamp)) -> bool {
        if self.memory.removed || self.memory.deleted {
            return true;
        }
        if self.status_writing {
            return false;
        }
        if self.status_written.is_none()
            && view.pod.status.as_ref().is_some_and(|recorded| covers(recorded, &status))
        {
            self.status_written = Some(status.clone());
        }
        if self.status_written.as_ref() == Some(&status) {
            return true;
        }
        if let Some(at) = self.status_retry_at.filter(|at| *at > view.now) {
            wake(at);
            return false;
        }
        self.status_writing = true;
        self.shared.metrics.status_patches.inc();
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        self.tasks.spawn(async move {
            let written = patch_status(&shared, &pod, &status).await;
            Done::Status { status: Box::new(status), written }
        });
        false
    }

    fn act(&mut self, view: &View<'_>, action: Action) {
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
    fn spawn(&mut self, view: &View<'_>, slot: Slot, work: Work, action: Action) {
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
                        shared.start(&pod, sandbox, container, *attempt, qos, &cancel).await.map(|()| None)
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

    fn done(&mut self, done: Done) {
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

    fn reported(&mut self, report: Report) {
        let Report { id, container, kind, verdict } = report;
        let probed = self.memory.probed.entry(id.clone()).or_default();
        match (kind, verdict) {
            (ProbeKind::Startup, Verdict::Good) => probed.started = true,
            (ProbeKind::Readiness, Verdict::Good) => probed.ready = true,
            (ProbeKind::Readiness, Verdict::Bad(_)) => probed.ready = false,
            (ProbeKind::Liveness, Verdict::Good) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, Verdict::Bad(_)) => {
                let text = format!("Container {container} failed {} probe, will be restarted", kind.name());
                self.memory.condemned.insert(id, text);
            }
            (_, Verdict::Failed(text)) => {
                let mut name = kind.name().to_owned();
                name[..1].make_ascii_uppercase();
                let message = format!("{name} probe failed: {text}");
                self.shared.events.pod(&self.pod, Some(&container), Kind::Warning, "Unhealthy", message);
            }
        }
    }
}

/// Writes the status. True if it is written, or nobody is left to read it.
async fn patch_status<R>(shared: &Shared<R>, pod: &Pod, status: &PodStatus) -> bool {
    let api = Api::<Pod>::namespaced(shared.client.clone(), namespace(pod));
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => true,
        // Gone, or another pod by the same name: 409 because of the uid.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => true,
        Err(error) => {
            tracing::warn!(pod = name, namespace = namespace(pod), %error, "status not written");
            false
        }
    }
}

/// The recorded status says all that `ours` says; others may have added conditions.
fn covers(recorded: &PodStatus, ours: &PodStatus) -> bool {
    let conditions = |status: &PodStatus| status.conditions.clone().unwrap_or_default();
    let known = conditions(recorded);
    let rest =
        |status: &PodStatus| PodStatus { conditions: None, observed_generation: None, ..status.clone() };
    conditions(ours).iter().all(|condition| known.contains(condition)) && rest(recorded) == rest(ours)
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
