//! What a ReplicaSet needs: a pure function of its spec and its pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{Selector, SelectorExt};

use super::ranking::{Ranked, deletion_order};
use crate::claim::{Claim, claim};
use crate::pods::PodView;

/// Pods created or deleted in one go, as upstream; the rest follows when these show in the cache.
const BURST_MAX: usize = 500;

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Create so many pods.
    Create(usize),
    /// Delete these.
    Delete(Vec<Arc<PodView>>),
}

/// The pods of a namespace, sorted by what they are to one ReplicaSet.
#[derive(Clone, Debug, Default)]
pub(super) struct Claimed {
    /// Active pods that count.
    pub pods: Vec<Arc<PodView>>,
    /// Orphans to take over; they are among `pods` too.
    pub adopt: Vec<Arc<PodView>>,
    /// Pods to let go.
    pub release: Vec<Arc<PodView>>,
}

/// Sorts the pods of the ReplicaSet's namespace.
pub(super) fn claimed(replica_set: &ReplicaSet, selector: &Selector, pods: &[Arc<PodView>]) -> Claimed {
    let uid = replica_set.metadata.uid.as_deref().unwrap_or_default();
    let deleting = replica_set.metadata.deletion_timestamp.is_some();
    let mut claimed = Claimed::default();
    // An empty selector would claim everything; the API server does not let one in.
    for pod in pods.iter().filter(|pod| pod.is_active() && !selector.selects_all()) {
        match claim(uid, deleting, selector.matches(&pod.labels), &pod.owners, pod.deleting) {
            Claim::Mine => claimed.pods.push(pod.clone()),
            Claim::Adopt => {
                claimed.adopt.push(pod.clone());
                claimed.pods.push(pod.clone());
            }
            Claim::Release => claimed.release.push(pod.clone()),
            Claim::Other => {}
        }
    }
    claimed
}

/// What to do about the number of pods. `related` are all active pods of `ReplicaSets` with the same
/// owner: a Deployment's old and new pods, which should not crowd one node.
pub(super) fn plan(
    replica_set: &ReplicaSet,
    pods: &[Arc<PodView>],
    related: &[Arc<PodView>],
    now: Timestamp,
) -> Option<Step> {
    if replica_set.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let wanted = wanted(replica_set);
    if pods.len() < wanted {
        return Some(Step::Create((wanted - pods.len()).min(BURST_MAX)));
    }
    let surplus = (pods.len() - wanted).min(BURST_MAX);
    if surplus == 0 {
        return None;
    }
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        *per_node.entry(&pod.node).or_default() += 1;
    }
    let mut order: Vec<_> = pods.iter().collect();
    order.sort_by(|a, b| {
        let rank = |pod: &'_ Arc<PodView>| per_node.get(pod.node.as_str()).copied().unwrap_or_default();
        let (x, y) = (Ranked { pod: a, neighbours: rank(a) }, Ranked { pod: b, neighbours: rank(b) });
        deletion_order(&x, &y, now)
    });
    Some(Step::Delete(order.into_iter().take(surplus).cloned().collect()))
}

/// `spec.replicas`, 1 by default.
pub(super) fn wanted(replica_set: &ReplicaSet) -> usize {
    let replicas = replica_set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or_default()
}

/// The status that the pods amount to. `failure` is what creating or deleting ran into: reason and message.
pub(super) fn status(
    replica_set: &ReplicaSet,
    pods: &[Arc<PodView>],
    failure: Option<(&str, String)>,
    now: &Time,
) -> ReplicaSetStatus {
    let spec = replica_set.spec.clone().unwrap_or_default();
    let template = spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels);
    let template: BTreeMap<_, _> = template.unwrap_or_default();
    let min_ready_seconds = spec.min_ready_seconds.unwrap_or_default();
    let count = |holds: &dyn Fn(&PodView) -> bool| Some(pods.iter().filter(|pod| holds(pod)).count() as i32);
    let labelled = |pod: &PodView| template.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    let before = replica_set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: pods.len() as i32,
        fully_labeled_replicas: count(&labelled),
        ready_replicas: count(&|pod| pod.ready),
        available_replicas: count(&|pod| pod.is_available(min_ready_seconds, now.0)),
        observed_generation: replica_set.metadata.generation,
        conditions: conditions(before.conditions, failure, now),
        terminating_replicas: before.terminating_replicas,
    }
}

fn conditions(
    before: Option<Vec<ReplicaSetCondition>>,
    failure: Option<(&str, String)>,
    now: &Time,
) -> Option<Vec<ReplicaSetCondition>> {
    let (old, mut conditions): (Vec<_>, Vec<_>) =
        before.unwrap_or_default().into_iter().partition(|condition| condition.type_ == "ReplicaFailure");
    if let Some((reason, message)) = failure {
        // The first failure stands until it is over: its message would else change with each attempt.
        let same = old.into_iter().find(|condition| condition.reason.as_deref() == Some(reason));
        conditions.push(same.unwrap_or_else(|| ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(now.clone()),
        }));
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// Whether two statuses say the same: a missing number is zero.
pub(super) fn same_status(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let numbers = |status: &ReplicaSetStatus| {
        let or_zero = Option::unwrap_or_default;
        (
            status.replicas,
            or_zero(status.fully_labeled_replicas),
            or_zero(status.ready_replicas),
            or_zero(status.available_replicas),
            status.observed_generation.unwrap_or_default(),
        )
    };
    let none = Vec::new();
    let conditions = |status: &'_ ReplicaSetStatus| status.conditions.clone().unwrap_or(none.clone());
    numbers(a) == numbers(b) && conditions(a) == conditions(b)
}

/// When the next ready pod becomes available, if one is waiting for `minReadySeconds`.
pub(super) fn next_available(
    replica_set: &ReplicaSet,
    pods: &[Arc<PodView>],
    now: Timestamp,
) -> Option<Duration> {
    let min_ready = replica_set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or_default();
    pods.iter()
        .filter(|pod| pod.ready && !pod.is_available(min_ready, now))
        .filter_map(|pod| {
            let left = i64::from(min_ready) - now.duration_since(pod.ready_since?).as_secs();
            Some(Duration::from_secs(u64::try_from(left).unwrap_or_default().max(1)))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use serde_json::json;
    use weir_client::ObjectKey;

    use super::*;

    fn now() -> Time {
        Time(Timestamp::from_second(1_000_000).expect("is a time"))
    }

    fn replica_set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": { "name": "rs", "namespace": "ns", "uid": "rs-uid", "generation": 4 },
            "spec": {
                "replicas": replicas, "minReadySeconds": 10,
                "selector": { "matchLabels": { "app": "a" } },
                "template": { "metadata": { "labels": { "app": "a", "more": "m" } } }
            }
        }))
        .expect("is a ReplicaSet")
    }

    fn selector(replica_set: &ReplicaSet) -> Selector {
        let spec = replica_set.spec.clone().expect("has a spec");
        spec.selector.try_into().expect("is a selector")
    }

    fn pod(name: &str) -> PodView {
        let owner = OwnerReference { uid: "rs-uid".into(), controller: Some(true), ..Default::default() };
        PodView {
            key: ObjectKey::new("ns", name),
            uid: name.into(),
            labels: BTreeMap::from([("app".into(), "a".into())]),
            owners: vec![owner],
            node: "n".into(),
            phase: crate::pods::Phase::Running,
            ..PodView::default()
        }
    }

    fn pods(all: impl IntoIterator<Item = PodView>) -> Vec<Arc<PodView>> {
        all.into_iter().map(Arc::new).collect()
    }

    #[test]
    fn missing_pods_are_created_and_surplus_ones_deleted_in_bounded_numbers() {
        let two = pods([pod("a"), pod("b")]);
        assert_eq!(plan(&replica_set(5), &two, &two, now().0), Some(Step::Create(3)));
        assert_eq!(plan(&replica_set(2), &two, &two, now().0), None);
        let Some(Step::Delete(gone)) = plan(&replica_set(1), &two, &two, now().0) else {
            panic!("one is too many");
        };
        assert_eq!(gone.len(), 1);
        assert_eq!(plan(&replica_set(1000), &two, &two, now().0), Some(Step::Create(BURST_MAX)));
    }

    #[test]
    fn nothing_is_done_for_a_replica_set_that_is_being_deleted() {
        let mut deleted = replica_set(5);
        deleted.metadata.deletion_timestamp = Some(now());
        assert_eq!(plan(&deleted, &[], &[], now().0), None);
    }

    #[test]
    fn orphans_are_adopted_strangers_released_and_the_ended_ignored() {
        let replica_set = replica_set(1);
        let orphan = PodView { owners: Vec::new(), ..pod("orphan") };
        let stranger = PodView { labels: BTreeMap::new(), ..pod("stranger") };
        let ended = PodView { phase: crate::pods::Phase::Failed, ..pod("ended") };
        let leaving = PodView { deleting: true, ..pod("leaving") };
        let all = pods([pod("mine"), orphan, stranger, ended, leaving]);
        let claimed = claimed(&replica_set, &selector(&replica_set), &all);
        let names = |pods: &[Arc<PodView>]| pods.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>();
        assert_eq!(names(&claimed.pods), ["mine", "orphan"]);
        assert_eq!(names(&claimed.adopt), ["orphan"]);
        assert_eq!(names(&claimed.release), ["stranger"]);
    }

    #[test]
    fn status_counts_labels_readiness_and_availability() {
        let ready = |name: &str, seconds: i64| PodView {
            ready: true,
            ready_since: Some(now().0 - SignedDuration::from_secs(seconds)),
            ..pod(name)
        };
        let full = PodView {
            labels: BTreeMap::from([("app".into(), "a".into()), ("more".into(), "m".into())]),
            ..pod("full")
        };
        let all = pods([ready("old", 10), ready("new", 9), full]);
        let status = status(&replica_set(3), &all, None, &now());
        assert_eq!(status.replicas, 3);
        assert_eq!(status.fully_labeled_replicas, Some(1));
        assert_eq!(status.ready_replicas, Some(2));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(status.observed_generation, Some(4));
        assert_eq!(next_available(&replica_set(3), &all, now().0), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_failure_is_said_once_and_taken_back() {
        let mut replica_set = replica_set(1);
        let first = status(&replica_set, &[], Some(("FailedCreate", "quota".into())), &now());
        assert_eq!(first.conditions.as_ref().map(Vec::len), Some(1));
        replica_set.status = Some(first.clone());
        let again = status(&replica_set, &[], Some(("FailedCreate", "quota, again".into())), &now());
        assert!(same_status(&first, &again));
        assert_eq!(status(&replica_set, &[], None, &now()).conditions, None);
    }
}
