//! Removes pods that nobody else will: those of nodes that are no more, those deleted before they had a node, and
//! the oldest of those that have ended once there are too many.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_client::{ObjectKey, Outcome, Queue, QueueMetrics, is_not_found, now, run_workers};

use crate::error::{Error, Trying};
use crate::pods::PodView;
use crate::shared::{Shared, Watches};

/// Pods looked at at once.
const WORKERS: usize = 2;
/// How long a node must be missing before its pods are lost: it may only be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    NodeGone,
    NeverPlaced,
    TooManyEnded,
}

/// The controller.
pub(crate) struct PodGc {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    ended_max: usize,
}

impl PodGc {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        watches: &mut Watches,
        metrics: &QueueMetrics,
        ended_max: usize,
    ) -> Self {
        let queue = Arc::new(Queue::new("pod-garbage", metrics));
        let (wake, nodes) = (queue.clone(), shared.nodes.clone());
        watches.pods.on_change(move |change| {
            let Some(pod) = change.new else { return };
            let newly_ended = pod.has_ended() && change.old.is_none_or(|old| !old.has_ended());
            if newly_ended || (pod.node.is_empty() && pod.deleting) {
                wake.add(change.key.clone());
            } else if !pod.node.is_empty() && nodes.get(&ObjectKey::cluster(&pod.node)).is_none() {
                wake.add_after(change.key.clone(), QUARANTINE);
            }
        });
        let (wake, pods) = (queue.clone(), shared.pods.clone());
        watches.nodes.on_change(move |change| {
            if change.new.is_none() {
                let lost = pods.all().into_iter().filter(|pod| pod.node == change.key.name);
                lost.for_each(|pod| wake.add_after(pod.key.clone(), QUARANTINE));
            }
        });
        Self { shared: shared.clone(), queue, ended_max }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(pod) = self.shared.pods.get(&key) else { return Ok(Outcome::Done) };
        let missing = !pod.node.is_empty() && self.is_missing(&pod.node).await?;
        for (pod, reason) in plan(&pod, missing, self.ended_max, || self.shared.pods.all()) {
            self.remove(&pod, reason).await?;
        }
        Ok(Outcome::Done)
    }

    /// Asks the API server too: a cache that lags must not cost a node its pods.
    async fn is_missing(&self, node: &str) -> Result<bool, Error> {
        if self.shared.nodes.get(&ObjectKey::cluster(node)).is_some() {
            return Ok(false);
        }
        let api: Api<Node> = Api::all(self.shared.client.clone());
        let live = api.get_metadata_opt(node).await.trying("look for node", node)?;
        Ok(live.is_none())
    }

    async fn remove(&self, pod: &PodView, reason: Reason) -> Result<(), Error> {
        tracing::info!(pod = %pod.key, ?reason, "removing pod");
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &pod.key.namespace);
        if reason == Reason::NodeGone && !pod.has_ended() {
            // Whoever watches the pod learns that it ended and why, before it is gone.
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": now(),
            });
            let status = json!({ "phase": "Failed", "conditions": [condition] });
            let patch = json!({ "metadata": { "uid": pod.uid }, "status": status });
            match api.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_not_found(&error) => return Err(error).trying("fail pod", &pod.key),
                _ => {}
            }
        }
        let uid = Some(pod.uid.clone());
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions { uid, resource_version: None });
        match api.delete(&pod.key.name, &params).await {
            Err(error) if !is_not_found(&error) => Err(error).trying("remove pod", &pod.key),
            _ => Ok(()),
        }
    }
}

/// What to remove on account of this pod.
fn plan(
    pod: &Arc<PodView>,
    node_missing: bool,
    ended_max: usize,
    all: impl Fn() -> Vec<Arc<PodView>>,
) -> Vec<(Arc<PodView>, Reason)> {
    if node_missing {
        return vec![(pod.clone(), Reason::NodeGone)];
    }
    if pod.node.is_empty() && pod.deleting {
        return vec![(pod.clone(), Reason::NeverPlaced)];
    }
    if !pod.has_ended() {
        return Vec::new();
    }
    let mut ended: Vec<_> = all().into_iter().filter(|pod| pod.has_ended() && !pod.deleting).collect();
    let surplus = ended.len().saturating_sub(ended_max);
    ended.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    ended.into_iter().take(surplus).map(|pod| (pod, Reason::TooManyEnded)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Phase;

    fn pod(name: &str, phase: Phase, created: i64) -> Arc<PodView> {
        Arc::new(PodView {
            key: ObjectKey::new("ns", name),
            node: "n".into(),
            phase,
            created: jiff::Timestamp::from_second(created).ok(),
            ..PodView::default()
        })
    }

    #[test]
    fn only_pods_that_nobody_else_removes_are_removed() {
        let running = pod("a", Phase::Running, 1);
        assert_eq!(plan(&running, false, 0, Vec::new), []);
        assert_eq!(plan(&running, true, 0, Vec::new), [(running.clone(), Reason::NodeGone)]);
        let deleted = PodView { deleting: true, ..PodView::clone(&running) };
        assert_eq!(plan(&Arc::new(deleted.clone()), false, 0, Vec::new), [], "its kubelet does that");
        let unplaced = Arc::new(PodView { node: String::new(), ..deleted });
        assert_eq!(plan(&unplaced, false, 0, Vec::new), [(unplaced.clone(), Reason::NeverPlaced)]);
    }

    #[test]
    fn the_oldest_ended_pods_go_once_there_are_too_many() {
        let (young, old) = (pod("young", Phase::Failed, 9), pod("old", Phase::Succeeded, 1));
        let all = || vec![young.clone(), old.clone(), pod("alive", Phase::Running, 0)];
        assert_eq!(plan(&young, false, 2, all), []);
        assert_eq!(plan(&young, false, 1, all), [(old.clone(), Reason::TooManyEnded)]);
    }
}
