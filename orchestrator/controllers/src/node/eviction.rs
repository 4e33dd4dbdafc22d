//! Evicts pods from nodes with `NoExecute` taints, when their tolerations say.
//!
//! A pod that does not tolerate a taint goes at once, one that tolerates it for a time goes when that is over.
//! Upstream's admission gives every pod 300 s for the two taints of nodes that are not well; a pod that came in without counts as
//! if it had them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio_util::sync::CancellationToken;
use weir_client::{EventKind, ObjectKey, Outcome, Queue, QueueMetrics, is_not_found, now, run_workers};

use super::health::{NOT_READY, UNREACHABLE};
use super::lifecycle::pod_reference;
use crate::error::{Error, Trying};
use crate::pods::PodView;
use crate::shared::{Shared, Watches};

/// Pods judged at once.
const WORKERS: usize = 4;

/// What becomes of a pod on a tainted node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    GoesIn(Duration),
    Goes,
}

/// The controller.
pub(crate) struct Evictions {
    shared: Arc<Shared>,
    queue: Arc<Queue<ObjectKey>>,
    default_s: u32,
}

impl Evictions {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        watches: &mut Watches,
        metrics: &QueueMetrics,
        default_s: u32,
    ) -> Self {
        let queue = Arc::new(Queue::new("taint-eviction", metrics));
        let (wake, nodes) = (queue.clone(), shared.nodes.clone());
        watches.pods.on_change(move |change| {
            let moved = |pod: &Arc<PodView>| {
                change.old.is_none_or(|old| old.node != pod.node || old.tolerations != pod.tolerations)
            };
            if let Some(pod) = change.new.filter(|pod| moved(pod)) {
                let node = nodes.get(&ObjectKey::cluster(&pod.node));
                if node.is_some_and(|node| !no_execute(&node).is_empty()) {
                    wake.add(change.key.clone());
                }
            }
        });
        let (wake, pods) = (queue.clone(), shared.pods.clone());
        watches.nodes.on_change(move |change| {
            let Some(new) = change.new else { return };
            let before = change.old.map(|old| no_execute(old)).unwrap_or_default();
            if no_execute(new) != before {
                let affected = pods.all().into_iter().filter(|pod| pod.node == change.key.name);
                affected.for_each(|pod| wake.add(pod.key.clone()));
            }
        });
        Self { shared: shared.clone(), queue, default_s }
    }

    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let queue = self.queue.clone();
        run_workers(queue, WORKERS, shutdown, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, Error> {
        let Some(pod) = self.shared.pods.get(&key).filter(|pod| pod.is_active()) else {
            return Ok(Outcome::Done);
        };
        let Some(node) = self.shared.nodes.get(&ObjectKey::cluster(&pod.node)) else {
            return Ok(Outcome::Done);
        };
        match verdict(&no_execute(&node), &pod.tolerations, self.default_s, now().0) {
            Verdict::Stays => Ok(Outcome::Done),
            // Looked at again then: the node may be well by that time.
            Verdict::GoesIn(time) => Ok(Outcome::After(time)),
            Verdict::Goes => {
                let uid = Some(pod.uid.clone());
                let params =
                    DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
                let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &key.namespace);
                match api.delete(&key.name, &params).await {
                    Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                    other => other.map(drop).trying("evict pod", &key)?,
                }
                let text = format!("Marking for deletion Pod {key}");
                let reason = "TaintManagerEviction";
                self.shared.recorder.record(pod_reference(&pod), EventKind::Normal, reason, text);
                Ok(Outcome::Done)
            }
        }
    }
}

fn no_execute(node: &k8s_openapi::api::core::v1::Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn verdict(taints: &[Taint], tolerations: &[Toleration], default_s: u32, now: Timestamp) -> Verdict {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let matching: Vec<_> = tolerations.iter().filter(|one| covers(one, taint)).collect();
        let said = tolerations.iter().any(|one| one.key.as_deref() == Some(&taint.key));
        let seconds = if matching.is_empty() {
            let has_default = matches!(taint.key.as_str(), NOT_READY | UNREACHABLE) && !said;
            if !has_default {
                return Verdict::Goes;
            }
            Some(i64::from(default_s))
        } else {
            matching.iter().filter_map(|one| one.toleration_seconds).min()
        };
        let Some(seconds) = seconds else { continue };
        let tainted_for = taint.time_added.as_ref().map(|time| now.duration_since(time.0).as_secs());
        let left = seconds - tainted_for.unwrap_or_default();
        let Ok(left @ 1..) = u64::try_from(left) else { return Verdict::Goes };
        let left = Duration::from_secs(left);
        shortest = Some(shortest.map_or(left, |shortest| shortest.min(left)));
    }
    shortest.map_or(Verdict::Stays, Verdict::GoesIn)
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (toleration.operator.as_deref() == Some("Exists") || text(&toleration.value) == text(&taint.value))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_000).expect("is a time")
    }

    fn taint(key: &str, seconds_ago: i64) -> Taint {
        let time_added = Some(Time(now() - SignedDuration::from_secs(seconds_ago)));
        Taint { key: key.into(), effect: "NoExecute".into(), time_added, value: None }
    }

    fn tolerates(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        }
    }

    fn judge(taints: &[Taint], tolerations: &[Toleration]) -> Verdict {
        verdict(taints, tolerations, 300, now())
    }

    #[test]
    fn a_taint_that_is_not_tolerated_evicts_at_once() {
        assert_eq!(judge(&[taint("k", 0)], &[]), Verdict::Goes);
        assert_eq!(judge(&[taint("k", 0)], &[tolerates("other", None)]), Verdict::Goes);
        assert_eq!(judge(&[], &[]), Verdict::Stays);
    }

    #[test]
    fn a_limited_toleration_counts_from_the_taint() {
        let limited = [tolerates("k", Some(60))];
        assert_eq!(judge(&[taint("k", 20)], &limited), Verdict::GoesIn(Duration::from_secs(40)));
        assert_eq!(judge(&[taint("k", 60)], &limited), Verdict::Goes);
        assert_eq!(judge(&[taint("k", 999)], &[tolerates("k", None)]), Verdict::Stays);
        let several = [tolerates("k", Some(60)), tolerates("l", Some(30))];
        assert_eq!(
            judge(&[taint("k", 0), taint("l", 0)], &several),
            Verdict::GoesIn(Duration::from_secs(30))
        );
    }

    #[test]
    fn pods_that_say_nothing_about_unwell_nodes_have_the_default() {
        assert_eq!(judge(&[taint(UNREACHABLE, 100)], &[]), Verdict::GoesIn(Duration::from_secs(200)));
        assert_eq!(judge(&[taint(NOT_READY, 300)], &[]), Verdict::Goes);
        let said = [tolerates(NOT_READY, Some(5))];
        assert_eq!(judge(&[taint(NOT_READY, 0)], &said), Verdict::GoesIn(Duration::from_secs(5)));
    }
}
