//! The loop: events in, decisions out.
//!
//! One task owns snapshot and queue, so nothing is locked. Requests to the API server run beside it, at most
//! [`IN_FLIGHT_MAX`] at once; at that bound no further pod is decided until one returns, while events are still taken in.

use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Binding, Node as ApiNode, ObjectReference, Pod as ApiPod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_client::{EventKind, ObjectKey, Observed, Recorder};

use crate::decision::{Decision, schedule};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::pod::Pod;
use crate::queue::{Help, Waiting};
use crate::snapshot::Snapshot;

/// Binds and status writes under way at once.
const IN_FLIGHT_MAX: usize = 64;

/// A request that has returned.
enum Done {
    Bound(Box<Bound>),
    Reported,
}

/// A binding that has returned.
struct Bound {
    pod: Pod,
    node: String,
    since: Instant,
    result: Result<(), kube::Error>,
}

/// Everything the loop owns.
pub(crate) struct Driver {
    client: Client,
    scheduler_name: Arc<str>,
    recorder: Recorder,
    metrics: Metrics,
    snapshot: Snapshot,
    waiting: Waiting,
    requests: JoinSet<Done>,
}

impl Driver {
    pub(crate) fn new(client: Client, scheduler_name: &str, recorder: Recorder, metrics: Metrics) -> Self {
        Self {
            client,
            scheduler_name: scheduler_name.into(),
            recorder,
            metrics,
            snapshot: Snapshot::default(),
            waiting: Waiting::default(),
            requests: JoinSet::new(),
        }
    }

    /// Schedules until `shutdown`; `ready` is told once nodes and pods have been listed.
    pub(crate) async fn run(
        mut self,
        nodes: impl Stream<Item = Observed<ApiNode>>,
        pods: impl Stream<Item = Observed<ApiPod>>,
        ready: Option<oneshot::Sender<()>>,
        shutdown: CancellationToken,
    ) {
        let (mut nodes, mut pods) = (pin!(nodes), pin!(pods));
        let (mut nodes_synced, mut pods_synced) = (false, false);
        let mut ready = ready;
        loop {
            let now = Instant::now();
            let synced = nodes_synced && pods_synced;
            if synced && let Some(ready) = ready.take() {
                // Nobody listening is nobody waiting.
                let _ = ready.send(());
            }
            let may_decide = synced && self.requests.len() < IN_FLIGHT_MAX && self.waiting.has_active(now);
            let due = self.waiting.next_due();
            self.metrics.pending(self.waiting.counts());
            tokio::select! {
                // Events first: a decision should know what is already known.
                biased;
                () = shutdown.cancelled() => return,
                Some(seen) = nodes.next() => nodes_synced |= self.see_node(seen, now),
                Some(seen) = pods.next() => pods_synced |= self.see_pod(seen, now),
                Some(done) = self.requests.join_next() => self.finish(done),
                () = std::future::ready(()), if may_decide => self.decide(now),
                () = sleep_until(due) => {}
            }
        }
    }

    /// Takes in an event of a node; whether it completes the list.
    fn see_node(&mut self, seen: Observed<ApiNode>, now: Instant) -> bool {
        match seen {
            Observed::Listing => {}
            Observed::Synced => return true,
            Observed::Gone { key, .. } => self.snapshot.remove_node(&key.name),
            Observed::Applied(node) => {
                let node = Node::of(&node);
                let changed = node.clone();
                let before = self.snapshot.set_node(node);
                // Heartbeats change nothing that scheduling looks at.
                if changed.may_help_since(before.as_deref()) {
                    self.waiting.help(Help::Node, now);
                }
            }
        }
        false
    }

    /// Takes in an event of a pod; whether it completes the list.
    fn see_pod(&mut self, seen: Observed<ApiPod>, now: Instant) -> bool {
        match seen {
            Observed::Listing => {}
            Observed::Synced => return true,
            Observed::Gone { key, .. } => self.lose(&key, now),
            Observed::Applied(pod) => match Pod::of(&pod, &self.scheduler_name) {
                None => self.lose(&ObjectKey::of(&pod.metadata), now),
                Some(pod) if !pod.node.is_empty() => {
                    self.waiting.remove(&pod.key);
                    if self.snapshot.set_pod(&pod) {
                        self.waiting.help(Help::PodLeft, now);
                    }
                }
                Some(pod) if pod.deleting => self.lose(&pod.key, now),
                // An event from before our own bind.
                Some(pod) if self.snapshot.is_placed(&pod.key, &pod.uid) => {}
                Some(pod) => self.waiting.set(pod, now),
            },
        }
        false
    }

    fn lose(&mut self, key: &ObjectKey, now: Instant) {
        self.waiting.remove(key);
        if self.snapshot.remove_pod(key) {
            self.waiting.help(Help::PodLeft, now);
        }
    }

    fn decide(&mut self, now: Instant) {
        let Some((pod, since)) = self.waiting.pop(now) else { return };
        let decision = schedule(&self.snapshot, &pod);
        self.metrics.decided(now.elapsed());
        match decision {
            Decision::Bind { node } => {
                self.snapshot.assume(&pod, &node);
                let client = self.client.clone();
                self.requests.spawn(async move {
                    let result = bind(&client, &pod, &node).await;
                    Done::Bound(Box::new(Bound { pod, node, since, result }))
                });
            }
            Decision::Unschedulable(failure) => {
                self.metrics.unschedulable();
                let message = failure.message();
                tracing::debug!(pod = %pod.key, message, "no node for the pod");
                self.tell(&pod, EventKind::Warning, "FailedScheduling", message.clone());
                if self.waiting.unplaced(&pod.key, failure, now) {
                    let client = self.client.clone();
                    self.requests.spawn(async move {
                        report(&client, &pod, &message).await;
                        Done::Reported
                    });
                }
            }
        }
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let Bound { pod, node, since, result } = match done {
            Ok(Done::Bound(bound)) => *bound,
            Ok(Done::Reported) => return,
            // A panic in a request is a defect; hiding it would leave its pod assumed for ever.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match result {
            Ok(()) => {
                self.metrics.bound(since.elapsed());
                self.waiting.remove(&pod.key);
                let text = format!("Successfully assigned {} to {node}", pod.key);
                self.tell(&pod, EventKind::Normal, "Scheduled", text);
            }
            Err(error) => {
                self.snapshot.forget(&pod.key, &pod.uid);
                self.metrics.failed();
                if weir_client::is_not_found(&error) {
                    self.waiting.remove(&pod.key);
                    return;
                }
                self.tell(&pod, EventKind::Warning, "FailedScheduling", format!("binding rejected: {error}"));
                self.waiting.failed(&pod.key, Instant::now());
            }
        }
    }

    fn tell(&self, pod: &Pod, kind: EventKind, reason: &'static str, text: String) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        self.recorder.record(object, kind, reason, text);
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Binds through the subresource: it writes `nodeName` and PodScheduled=True at once. The UID keeps a pod that
/// was replaced under the same name from being bound by a decision for its predecessor.
async fn bind(client: &Client, pod: &Pod, node: &str) -> Result<(), kube::Error> {
    let api: Api<ApiPod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let answer: Result<serde_json::Value, _> =
        api.create_subresource("binding", &pod.key.name, &PostParams::default(), &binding).await;
    answer.map(drop)
}

/// Says on the pod itself why it waits. Best effort: the Event says it too, and the next attempt says it again.
async fn report(client: &Client, pod: &Pod, message: &str) {
    let api: Api<ApiPod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": weir_client::now(),
    });
    let patch = json!({
        "metadata": { "uid": pod.uid },
        "status": { "conditions": [condition] },
    });
    let result = api.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    if let Err(error) = result
        && !weir_client::is_not_found(&error)
    {
        tracing::warn!(pod = %pod.key, %error, "PodScheduled condition not written");
    }
}
