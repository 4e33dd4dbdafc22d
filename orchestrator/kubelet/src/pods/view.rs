//! What is known about one pod at one moment: the API object, the runtime's records, and the worker's own memory.
//!
//! [`plan`](super::plan) and [`status`](super::status) are functions of a [`View`] and of nothing else. The API object
//! says what should be, the runtime's records are canonical for what is, and [`Memory`] holds the little that neither
//! of them keeps: backoffs, probe results, what is being done right now. A kubelet that restarts begins with an empty
//! memory and must come to the same conclusions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus as ApiContainerStatus, Pod, PodSpec};

use crate::runtime::{ContainerId, ContainerState, ContainerStatus, Sandbox};

/// Annotation on a container record: the hash of the parts of its specification whose change restarts it.
pub(crate) const HASH_ANNOTATION: &str = "weir.dev/container-hash";

/// Everything a decision may depend on.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    /// The newest version of the pod.
    pub(crate) pod: &'a Pod,
    /// The pod's sandboxes, newest first.
    pub(crate) sandboxes: &'a [Sandbox],
    /// The pod's containers, newest attempt first.
    pub(crate) containers: &'a [ContainerStatus],
    /// What only this kubelet's worker knows.
    pub(crate) memory: &'a Memory,
    /// The node's address.
    pub(crate) node_ip: IpAddr,
    /// The moment.
    pub(crate) now: Timestamp,
}

/// What the worker of a pod remembers between two decisions.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each with a name")]
pub(crate) struct Memory {
    /// When the worker first saw the pod: its `startTime`.
    pub(crate) seen_at: Option<Timestamp>,
    /// The node has a pod network.
    pub(crate) network_ready: bool,
    /// Volumes are there.
    pub(crate) prepared: bool,
    /// Volumes were taken away again.
    pub(crate) torn_down: bool,
    /// The API object is gone, or was never there: an orphan of an earlier life.
    pub(crate) removed: bool,
    /// Our own deletion of the API object went through.
    pub(crate) deleted: bool,
    /// When termination began.
    pub(crate) terminating_since: Option<Timestamp>,
    /// The pod may not run here at all.
    pub(crate) rejected: Option<Rejection>,
    /// What is being done, by what it is done to. One thing at a time for each slot.
    pub(crate) busy: BTreeMap<Slot, Work>,
    /// Why a slot's last work failed, and when it is tried again.
    pub(crate) failures: BTreeMap<Slot, Failure>,
    /// Crash backoff by container name.
    pub(crate) backoff: BTreeMap<String, Backoff>,
    /// Containers that a probe condemned, with the text for the event.
    pub(crate) condemned: BTreeMap<ContainerId, String>,
    /// Containers that were stopped so that a new one takes their place, whatever their exit code.
    pub(crate) replaced: BTreeSet<ContainerId>,
    /// Probe results of containers that have probes.
    pub(crate) probed: BTreeMap<ContainerId, Probed>,
    /// Termination messages of containers that exited.
    pub(crate) last_words: BTreeMap<ContainerId, String>,
}

/// Why a pod may not run on this node: the `reason` and `message` of its failed status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// For instance `OutOfpods`.
    pub(crate) reason: String,
    /// The sentence.
    pub(crate) message: String,
}

/// What work is done to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// Volumes and directories.
    Volumes,
    /// Sandboxes.
    Sandbox,
    /// The API object.
    Object,
    /// A container, by name.
    Container(String),
}

/// Work under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A container is being created and started.
    Start,
    /// A container is being stopped, and is killed at this time at the latest.
    Stop {
        /// End of the grace period.
        deadline: Timestamp,
    },
    /// Anything that simply takes its time.
    Other,
}

/// Work that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The waiting reason, such as `ErrImagePull`.
    pub(crate) reason: String,
    /// The sentence.
    pub(crate) message: String,
    /// How often in a row.
    pub(crate) count: u32,
    /// When.
    pub(crate) at: Timestamp,
    /// When it is tried again, unless something it depends on changes before.
    pub(crate) retry_at: Timestamp,
}

/// Last probe results of one container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// The startup probe has succeeded, or there is none.
    pub(crate) started: bool,
    /// The readiness probe succeeds, or there is none.
    pub(crate) ready: bool,
}

/// Upstream's crash backoff: the first restart is immediate, the next waits 10 s from the exit, then twice as long each
/// time up to 5 min; a container that ran for 10 min starts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// How long the next restart waits.
    pub(crate) delay: Duration,
    /// When the delay was last raised.
    pub(crate) raised_at: Timestamp,
}

impl Backoff {
    /// The first wait.
    pub(crate) const INITIAL: Duration = Duration::from_secs(10);
    /// The longest wait.
    pub(crate) const MAX: Duration = Duration::from_mins(5);

    /// The backoff after a restart at `now` of a container that had exited at `exited_at`.
    pub(crate) fn raised(previous: Option<Self>, exited_at: Timestamp, now: Timestamp) -> Self {
        let delay = match previous {
            Some(previous) if !previous.expired(exited_at) => (previous.delay * 2).min(Self::MAX),
            _ => Self::INITIAL,
        };
        Self { delay, raised_at: now }
    }

    /// When a container that exited at `exited_at` may start again.
    pub(crate) fn until(self, exited_at: Timestamp) -> Timestamp {
        if self.expired(exited_at) { exited_at } else { after(exited_at, self.delay) }
    }

    fn expired(self, exited_at: Timestamp) -> bool {
        exited_at > after(self.raised_at, Self::MAX * 2)
    }
}

/// `time + wait`; waits here are minutes, far from the end of the calendar.
pub(crate) fn after(time: Timestamp, wait: Duration) -> Timestamp {
    time.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// Which list of the pod a container is in, and what that means for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, then runs beside the others.
    Sidecar,
    /// What the pod is for.
    Main,
}

impl<'a> View<'a> {
    /// The specification; the apiserver stores no pod without one.
    pub(crate) fn spec(&self) -> Option<&'a PodSpec> {
        self.pod.spec.as_ref()
    }

    /// All containers of the specification in the order in which they start.
    pub(crate) fn declared(&self) -> impl Iterator<Item = (Role, &'a Container)> + use<'a> {
        let spec = self.spec();
        let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        init.iter()
            .map(|container| (role_of(container), container))
            .chain(main.iter().map(|c| (Role::Main, c)))
    }

    /// The sandbox that containers can run in.
    pub(crate) fn sandbox(&self) -> Option<&'a Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of this name, in whatever sandbox.
    pub(crate) fn latest(&self, name: &str) -> Option<&'a ContainerStatus> {
        self.containers.iter().find(|container| container.spec.name == name)
    }

    /// The one before the newest.
    pub(crate) fn previous(&self, name: &str) -> Option<&'a ContainerStatus> {
        self.containers.iter().filter(|container| container.spec.name == name).nth(1)
    }

    /// The newest container of this name, if it is in the sandbox that counts.
    pub(crate) fn current(&self, name: &str) -> Option<&'a ContainerStatus> {
        let sandbox = self.sandbox()?;
        self.latest(name).filter(|container| container.sandbox == sandbox.id)
    }

    /// The pod has been asked to go, or is gone.
    pub(crate) fn terminating(&self) -> bool {
        self.memory.removed || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// `Always`, `OnFailure` or `Never`.
    pub(crate) fn restart_policy(&self) -> &'a str {
        self.spec().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
    }

    /// The pod uses the node's network.
    pub(crate) fn host_network(&self) -> bool {
        self.spec().and_then(|spec| spec.host_network).unwrap_or(false)
    }

    /// The container runs and its startup probe, if any, has succeeded.
    pub(crate) fn started(&self, container: &Container, status: &ContainerStatus) -> bool {
        status.state == ContainerState::Running
            && (container.startup_probe.is_none()
                || self.memory.probed.get(&status.id).is_some_and(|probed| probed.started))
    }

    /// The container has started and its readiness probe, if any, succeeds.
    pub(crate) fn ready(&self, container: &Container, status: &ContainerStatus) -> bool {
        self.started(container, status)
            && (container.readiness_probe.is_none()
                || self.memory.probed.get(&status.id).is_some_and(|probed| probed.ready))
    }

    /// The apiserver's record of the container, from whichever list it is in.
    pub(crate) fn recorded(&self, name: &str) -> Option<&'a ApiContainerStatus> {
        let status = self.pod.status.as_ref()?;
        let lists = [&status.init_container_statuses, &status.container_statuses];
        lists.into_iter().flatten().flatten().find(|status| status.name == name)
    }

    /// Addresses of the pod, the primary one first.
    pub(crate) fn pod_ips(&self) -> Vec<IpAddr> {
        match self.sandbox() {
            Some(_) if self.host_network() => vec![self.node_ip],
            Some(sandbox) => sandbox.ips.clone(),
            None => Vec::new(),
        }
    }

    /// The main containers have been started in this sandbox, so that initialisation is over.
    pub(crate) fn initialized(&self) -> bool {
        self.declared().any(|(role, container)| role == Role::Main && self.current(&container.name).is_some())
    }

    /// An exited container gets a successor.
    pub(crate) fn will_restart(&self, role: Role, status: &ContainerStatus) -> bool {
        let succeeded = status.exit_code == Some(0);
        match role {
            _ if self.terminating() => false,
            Role::Sidecar => true,
            Role::Init => !succeeded && self.restart_policy() != "Never",
            Role::Main => match self.restart_policy() {
                "Never" => {
                    self.memory.replaced.contains(&status.id) && changed(self.declaration(status), status)
                }
                "OnFailure" => !succeeded || self.memory.replaced.contains(&status.id),
                _ => true,
            },
        }
    }

    /// When an exited container may start again.
    pub(crate) fn restart_at(&self, status: &ContainerStatus) -> Timestamp {
        let exited_at = status.finished_at.unwrap_or(status.created_at);
        match self.memory.backoff.get(&status.spec.name) {
            // A new image is not what crashed.
            Some(_) if changed(self.declaration(status), status) => exited_at,
            Some(backoff) => backoff.until(exited_at),
            None => exited_at,
        }
    }

    /// The specification's container that this record belongs to.
    fn declaration(&self, status: &ContainerStatus) -> Option<&'a Container> {
        self.declared().map(|(_, container)| container).find(|container| container.name == status.spec.name)
    }

    /// Number of the next attempt: one more than the runtime or the apiserver has seen.
    pub(crate) fn next_attempt(&self, name: &str) -> u32 {
        let seen = self.latest(name).map(|status| status.spec.attempt);
        let recorded = self
            .recorded(name)
            .filter(|status| status.container_id.as_deref().is_some_and(|id| !id.is_empty()))
            .map(|status| status.restart_count.max(0) as u32);
        seen.max(recorded).map_or(0, |attempt| attempt + 1)
    }
}

/// The container's definition differs from the one that the record was made from.
pub(crate) fn changed(declared: Option<&Container>, status: &ContainerStatus) -> bool {
    declared.is_some_and(|container| {
        status.spec.annotations.get(HASH_ANNOTATION).is_some_and(|hash| *hash != container_hash(container))
    })
}

/// Hash of what an update in place may change: name and image, as upstream since v1.31.
pub(crate) fn container_hash(container: &Container) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(container.name.as_bytes());
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or("").as_bytes());
    hash.finalize().iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
        use std::fmt::Write;
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn role_of(container: &Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}
