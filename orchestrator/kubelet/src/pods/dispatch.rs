//! Gives every pod of this node its worker, and every worker its news.
//!
//! Pods come from one watch (`spec.nodeName`), news of containers from the runtime's events. What the runtime has and
//! the apiserver does not know is an orphan: it gets a worker too, which only ends it. Workers are bounded: pods beyond
//! `--max-pods` get one that says `OutOfpods` and does nothing else.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use futures::StreamExt;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{
    execute::Shared,
    spec::GRACE_ANNOTATION,
    status::is_final,
    view::{Memory, Rejection},
    worker::{Update, Worker},
};
use crate::{
    metrics::StateLabel,
    runtime::{ContainerState, Event, Runtime, SandboxId},
    volumes,
};

/// The pods that have workers, by uid: what `/pods` shows and what logs are looked up in.
pub(crate) type PodTable = Arc<RwLock<HashMap<String, Arc<Pod>>>>;

struct Handle {
    updates: watch::Sender<Update>,
    wake: Arc<Notify>,
}

/// All workers.
pub(crate) struct Dispatcher<R> {
    shared: Arc<Shared<R>>,
    max_pods: usize,
    network: watch::Receiver<Option<String>>,
    table: PodTable,
    handles: HashMap<String, Handle>,
    workers: JoinSet<String>,
    /// Uids of the list that is being received.
    listed: HashSet<String>,
    /// The first list is complete, so that what is not in it is an orphan.
    synced: bool,
}

impl<R: Runtime> Dispatcher<R> {
    pub(crate) fn new(
        shared: Arc<Shared<R>>,
        max_pods: u32,
        network: watch::Receiver<Option<String>>,
        table: PodTable,
    ) -> Self {
        Self {
            shared,
            max_pods: max_pods as usize,
            network,
            table,
            handles: HashMap::new(),
            workers: JoinSet::new(),
            listed: HashSet::new(),
            synced: false,
        }
    }

    /// Runs until dropped. Pods stay as they are then.
    pub(crate) async fn run(mut self, node_name: &str) {
        let api = Api::<Pod>::all(self.shared.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
        let mut pods = std::pin::pin!(watcher(api, config).default_backoff());
        let runtime = self.shared.runtime.clone();
        let mut events = runtime.events();
        loop {
            tokio::select! {
                Some(event) = pods.next() => match event {
                    Ok(event) => self.pod_event(event).await,
                    Err(error) => tracing::warn!(%error, "watch of this node's pods failed"),
                },
                Some(event) = events.next() => self.runtime_event(&event).await,
                Some(ended) = self.workers.join_next(), if !self.workers.is_empty() => match ended {
                    Ok(uid) => self.forget(&uid),
                    Err(error) => tracing::error!(%error, "a pod's worker ended badly"),
                },
            }
        }
    }

    async fn pod_event(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(pod) => {
                self.listed.extend(pod.metadata.uid.clone());
                self.apply(pod);
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                for (uid, handle) in self.handles.iter().filter(|(uid, _)| !listed.contains(*uid)) {
                    tracing::info!(uid, "the pod went while nobody watched");
                    handle.updates.send_modify(|update| update.removed = true);
                }
                if !self.synced {
                    self.synced = true;
                    self.adopt_orphans().await;
                }
            }
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if let Some(handle) = self.handles.get(&uid) {
                    handle.updates.send_replace(Update { pod: Arc::new(slim(pod)), removed: true });
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let pod = Arc::new(slim(pod));
        let Some(uid) = pod.metadata.uid.clone() else { return };
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), pod.clone());
        if let Some(handle) = self.handles.get(&uid) {
            handle.updates.send_replace(Update { pod, removed: false });
            return;
        }
        let mut memory = Memory::default();
        let known = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if !known && self.active() > self.max_pods {
            memory.rejected = Some(Rejection {
                reason: "OutOfpods".to_owned(),
                message: format!("Node didn't have enough resource: pods, capacity: {}", self.max_pods),
            });
        }
        memory.seen_at = pod.status.as_ref().and_then(|status| Some(status.start_time.as_ref()?.0));
        self.start(uid, Update { pod, removed: false }, memory);
    }

    /// Pods that hold resources, the newest included.
    fn active(&self) -> usize {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let ended =
            |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(is_final);
        table.values().filter(|pod| !ended(pod)).count()
    }

    fn start(&mut self, uid: String, update: Update, memory: Memory) {
        let (updates, receiver) = watch::channel(update);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(self.shared.clone(), receiver, wake.clone(), memory);
        let (network, id) = (self.network.clone(), uid.clone());
        self.workers.spawn(async move {
            worker.run(network).await;
            id
        });
        self.handles.insert(uid, Handle { updates, wake });
        self.shared.metrics.pods.set(self.handles.len() as i64);
    }

    fn forget(&mut self, uid: &str) {
        self.handles.remove(uid);
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.shared.metrics.pods.set(self.handles.len() as i64);
    }

    /// Ends what the runtime or the disk has of pods that the apiserver does not know.
    async fn adopt_orphans(&mut self) {
        match self.shared.runtime.list_sandboxes().await {
            Ok(sandboxes) => {
                for sandbox in sandboxes {
                    let spec = sandbox.spec;
                    if self.handles.contains_key(&spec.uid) {
                        continue;
                    }
                    tracing::info!(namespace = spec.namespace, pod = spec.name, "ends a pod that is gone");
                    let metadata = ObjectMeta {
                        name: Some(spec.name),
                        namespace: Some(spec.namespace),
                        uid: Some(spec.uid.clone()),
                        deletion_grace_period_seconds: spec
                            .annotations
                            .get(GRACE_ANNOTATION)
                            .and_then(|seconds| seconds.parse().ok()),
                        ..ObjectMeta::default()
                    };
                    let pod = Arc::new(Pod { metadata, ..Pod::default() });
                    let memory = Memory { removed: true, ..Memory::default() };
                    self.start(spec.uid, Update { pod, removed: true }, memory);
                }
            }
            Err(error) => tracing::error!(%error, "orphans cannot be found: the runtime cannot list"),
        }
        let (dir, known) = (self.shared.defaults.pods_dir.clone(), self.handles.keys().cloned().collect());
        let swept = tokio::task::spawn_blocking(move || sweep(&dir, &known)).await;
        if let Ok(Err(error)) = swept {
            tracing::error!(%error, "directories of pods that are gone stay");
        }
    }

    async fn runtime_event(&mut self, event: &Event) {
        match event {
            Event::Started { sandbox, .. } | Event::Exited { sandbox, .. } => self.wake(sandbox).await,
            Event::Lost => self.handles.values().for_each(|handle| handle.wake.notify_one()),
        }
        self.count_containers().await;
    }

    async fn wake(&self, id: &SandboxId) {
        let sandboxes = self.shared.runtime.list_sandboxes().await.unwrap_or_default();
        let uid = sandboxes.iter().find(|sandbox| sandbox.id == *id).map(|sandbox| &sandbox.spec.uid);
        if let Some(handle) = uid.and_then(|uid| self.handles.get(uid)) {
            handle.wake.notify_one();
        }
    }

    async fn count_containers(&self) {
        let Ok(containers) = self.shared.runtime.list_containers().await else { return };
        for (wanted, state) in [
            (ContainerState::Created, "created"),
            (ContainerState::Running, "running"),
            (ContainerState::Exited, "exited"),
        ] {
            let count = containers.iter().filter(|container| container.state == wanted).count();
            self.shared.metrics.containers.get_or_create(&StateLabel { state }).set(count as i64);
        }
    }
}

/// Without what nobody here reads: managed fields are often half of an object.
fn slim(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    pod
}

/// Unmounts and removes directories of pods that no worker has.
fn sweep(pods_dir: &std::path::Path, known: &HashSet<String>) -> volumes::Result<()> {
    let Ok(entries) = std::fs::read_dir(pods_dir) else { return Ok(()) };
    for entry in entries.flatten() {
        if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
            volumes::tear_down(&entry.path())?;
            volumes::remove_dir(&entry.path())?;
        }
    }
    Ok(())
}
