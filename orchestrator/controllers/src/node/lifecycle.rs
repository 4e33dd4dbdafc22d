//! Watches over the heartbeats of nodes.
//!
//! A kubelet renews its Lease in `kube-node-lease` every 10 s. Silence is measured on our own clock from when a
//! renewal was *seen*, so that a node whose clock is off is not taken for dead, and a node that was silent while
//! no controller ran gets the full grace. Nothing is polled: each node has one deadline in the work queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_client::{
    EventKind, ObjectKey, Outcome, Queue, QueueMetrics, is_not_found, now, object_reference, run_workers,
};

use super::health;
use crate::error::{Error, Trying};
use crate::shared::{Shared, Watches};

/// Nodes reconciled at once.
const WORKERS: usize = 2;
/// Where kubelets keep their Leases.
const LEASES: &str = "kube-node-lease";

/// The controller.
pub(crate) struct Lifecycle {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    /// When a sign of life of each node was last seen. Bounded by the nodes.
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    grace: Duration,
}

impl Lifecycle {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        watches: &mut Watches,
        metrics: &QueueMetrics,
        grace: Duration,
    ) -> Self {
        let queue = Arc::new(Queue::new("node-lifecycle", metrics));
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();

        let (wake, alive) = (queue.clone(), seen.clone());
        watches.leases.on_change(move |change| {
            let renewed = change.new.is_some() && change.old != change.new;
            if change.key.namespace == LEASES && renewed {
                let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
                // Only a node that was given up needs a look now; for others the deadline moves when it comes.
                if alive.insert(change.key.name.clone(), Instant::now()).is_none() {
                    wake.add(ObjectKey::cluster(&change.key.name));
                }
            }
        });
        let (wake, alive) = (queue.clone(), seen.clone());
        watches.nodes.on_change(move |change| {
            let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
            let heartbeat = |node: &Node| {
                health::condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone())
            };
            match change.new {
                None => drop(alive.remove(&change.key.name)),
                Some(new) if change.old.is_none_or(|old| heartbeat(old) != heartbeat(new)) => {
                    alive.insert(change.key.name.clone(), Instant::now());
                }
                Some(_) => {}
            }
            wake.add(change.key.clone());
        });
        Self { shared: shared.clone(), queue, seen, grace }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(node) = self.shared.nodes.get(&key) else { return Ok(Outcome::Done) };
        let silence = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.entry(key.name.clone()).or_insert_with(Instant::now).elapsed()
        };
        let mut node = Node::clone(&node);
        if let Some(conditions) = health::unknown_conditions(&node, silence, self.grace, &now()) {
            tracing::warn!(node = %key, silence_s = silence.as_secs(), "node is silent, its state is unknown");
            let patch = json!({ "metadata": { "uid": node.uid() }, "status": { "conditions": conditions } });
            let api: Api<Node> = Api::all(self.shared.client.clone());
            let result = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            node = result.trying("mark as silent node", &key)?;
            self.tell(&node, "NodeNotReady", format!("Node {key} status is now: NodeNotReady"));
        }
        if let Some(taints) = health::taints(&node, &now()) {
            // The list of taints is written whole, so only over the version it was planned from.
            let patch = json!({
                "metadata": { "uid": node.uid(), "resourceVersion": node.resource_version() },
                "spec": { "taints": taints },
            });
            let api: Api<Node> = Api::all(self.shared.client.clone());
            let result = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            result.map(drop).trying("taint node", &key)?;
        }
        if health::readiness(&node) != "True" && health::condition(&node, "Ready").is_some() {
            self.mark_pods(&key.name).await?;
        }
        // A silent node is looked at again when it is heard again.
        let left = self.grace.saturating_sub(silence);
        if left.is_zero() {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.name);
            return Ok(Outcome::Done);
        }
        Ok(Outcome::After(left))
    }

    /// Takes the node's pods out of their Services: their kubelet cannot say that they are not ready.
    async fn mark_pods(&self, node: &str) -> Result<(), Error> {
        for pod in self.shared.pods.all() {
            if pod.node != node || !pod.ready {
                continue;
            }
            let condition = json!({
                "type": "Ready", "status": "False", "reason": "NodeNotReady", "lastTransitionTime": now(),
            });
            let patch = json!({ "metadata": { "uid": pod.uid }, "status": { "conditions": [condition] } });
            let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &pod.key.namespace);
            match api.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).trying("mark as not ready pod", &pod.key);
                }
                _ => {}
            }
            let object = pod_reference(&pod);
            let text = "Node is not ready".to_owned();
            self.shared.recorder.record(object, EventKind::Warning, "NodeNotReady", text);
        }
        Ok(())
    }

    fn tell(&self, node: &Node, reason: &'static str, text: String) {
        let object = object_reference::<Node>(&node.metadata);
        self.shared.recorder.record(object, EventKind::Normal, reason, text);
    }
}

/// The reference by which an Event names a pod of the cache.
pub(crate) fn pod_reference(pod: &crate::pods::PodView) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.clone()),
        name: Some(pod.key.name.clone()),
        uid: Some(pod.uid.clone()),
        ..Default::default()
    }
}
