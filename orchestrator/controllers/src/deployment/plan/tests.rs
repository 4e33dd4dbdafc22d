//! Tables of rollouts: what is there, what is planned.

use k8s_openapi::api::apps::v1::ReplicaSetStatus;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::revision::new_replica_set;
use super::*;
use crate::deployment::model::{REVISION, REVISION_HISTORY, TEMPLATE_HASH};

fn now() -> Time {
    Time(jiff::Timestamp::from_second(1_000_000).expect("is a time"))
}

fn deployment(image: &str, replicas: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "ns", "uid": "d", "generation": 2 },
        "spec": {
            "replicas": replicas, "revisionHistoryLimit": 1, "progressDeadlineSeconds": 600,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": image }] }
            }
        }
    }))
    .expect("is a Deployment")
}

/// A ReplicaSet as the controller would have made it for this image, with so many pods wanted and available.
fn replica_set(image: &str, revision: i64, size: i32, available: i32) -> ReplicaSet {
    let mut made = new_replica_set(&deployment(image, 3), revision, None);
    made.metadata.uid = Some(image.to_owned());
    made.metadata.generation = Some(1);
    let created = jiff::Timestamp::from_second(1000 + revision).expect("is a time");
    made.metadata.creation_timestamp = Some(Time(created));
    made.spec.as_mut().expect("has a spec").replicas = Some(size);
    made.status = Some(ReplicaSetStatus {
        replicas: size,
        ready_replicas: Some(available),
        available_replicas: Some(available),
        observed_generation: Some(1),
        ..ReplicaSetStatus::default()
    });
    made
}

fn scales(plan: &Plan) -> Vec<(i32, i32)> {
    let scale = |step: &Step| match step {
        Step::Scale { from, to, .. } => Some((*from, *to)),
        _ => None,
    };
    plan.steps.iter().filter_map(scale).collect()
}

fn rolling(deployment: &Deployment, owned: &[ReplicaSet]) -> Plan {
    plan(deployment, owned, |_| false, &now())
}

#[test]
fn a_new_deployment_gets_its_replica_set_at_full_size() {
    let plan = rolling(&deployment("v1", 3), &[]);
    let [Step::Create(made), Step::SetRevision(revision)] = plan.steps.as_slice() else {
        panic!("one ReplicaSet and its number, not {:?}", plan.steps);
    };
    assert_eq!(size(made), 3, "nothing else is there, so the surge is no limit");
    assert_eq!(revision, "1");
    let hash =
        made.metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH)).expect("has a hash");
    assert_eq!(made.metadata.name, Some(format!("web-{hash}")));
    let selector = made.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).expect("selects");
    assert_eq!(selector.get(TEMPLATE_HASH), Some(hash));
    assert_eq!(
        status::condition(&plan.status, "Progressing").and_then(|one| one.reason.as_deref()),
        Some("NewReplicaSetCreated")
    );
}

#[test]
fn a_rolling_update_moves_one_pod_at_a_time_and_never_below_what_is_wanted() {
    let deployment = deployment("v2", 3);
    let (old, new) = (
        |size, available| replica_set("v1", 1, size, available),
        |size, available| replica_set("v2", 2, size, available),
    );
    // (old, new) as (size, available), and what is scaled.
    let table = [
        ((3, 3), (1, 0), vec![], "the new pod must serve before an old one goes"),
        ((3, 3), (1, 1), vec![(3, 2)], "it serves"),
        ((2, 2), (1, 1), vec![(1, 2)], "room for the next"),
        ((2, 1), (2, 2), vec![(2, 1)], "an old pod that does not serve goes"),
        ((0, 0), (3, 3), vec![], "done"),
    ];
    for ((old_size, old_available), (new_size, new_available), expected, why) in table {
        let owned = [old(old_size, old_available), new(new_size, new_available)];
        assert_eq!(scales(&rolling(&deployment, &owned)), expected, "{why}");
    }
}

#[test]
fn the_first_step_of_an_update_makes_the_replica_set_within_the_surge() {
    let plan = rolling(&deployment("v2", 3), &[replica_set("v1", 1, 3, 3)]);
    let Some(Step::Create(made)) = plan.steps.first() else { panic!("the template is new") };
    assert_eq!(size(made), 1);
    assert!(plan.steps.contains(&Step::SetRevision("2".into())));
}

#[test]
fn rolling_back_gives_the_old_replica_set_the_next_number() {
    let owned = [replica_set("v1", 1, 0, 0), replica_set("v2", 2, 3, 3)];
    let plan = rolling(&deployment("v1", 3), &owned);
    let Some(Step::Refresh { annotations, .. }) = plan.steps.first() else {
        panic!("renumbered first, not {:?}", plan.steps);
    };
    assert_eq!(annotations.get(REVISION).map(String::as_str), Some("3"));
    assert_eq!(annotations.get(REVISION_HISTORY).map(String::as_str), Some("1"));
    assert!(plan.steps.contains(&Step::SetRevision("3".into())));
    assert_eq!(scales(&plan), [(0, 1)]);
}

#[test]
fn scaling_during_a_rollout_keeps_the_proportion() {
    // 3 wanted, 1 surge: sizes 3 and 1. Now 9 are wanted, 10 allowed: 7.5 and 2.5, of which the first rounds up.
    let owned = [replica_set("v1", 1, 3, 3), replica_set("v2", 2, 1, 1)];
    let plan = rolling(&deployment("v2", 9), &owned);
    assert_eq!(scales(&plan), [(3, 8), (1, 2)]);
    let down = rolling(&deployment("v2", 1), &owned);
    assert_eq!(scales(&down), [(3, 1), (1, 1)], "sizes add up to 2; the second only learns the new size");
    assert_eq!(scales(&rolling(&deployment("v2", 0), &owned)), [(3, 0), (1, 0)]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut paused = deployment("v2", 5);
    paused.spec.as_mut().expect("has a spec").paused = Some(true);
    let plan = rolling(&paused, &[replica_set("v1", 1, 3, 3)]);
    assert_eq!(scales(&plan), [(3, 5)]);
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::Create(_))));
    let progressing = status::condition(&plan.status, "Progressing").expect("is said");
    assert_eq!(progressing.reason.as_deref(), Some("DeploymentPaused"));
}

#[test]
fn recreate_waits_until_the_last_old_pod_is_gone() {
    let mut deployment = deployment("v2", 3);
    deployment.spec.as_mut().expect("has a spec").strategy =
        serde_json::from_value(json!({ "type": "Recreate" })).ok();
    let first = rolling(&deployment, &[replica_set("v1", 1, 3, 3)]);
    assert_eq!(scales(&first), [(3, 0)]);
    let created = |plan: &Plan| plan.steps.iter().any(|step| matches!(step, Step::Create(_)));
    assert!(!created(&first));
    let waiting = plan(&deployment, &[replica_set("v1", 1, 0, 0)], |_| true, &now());
    assert!(!created(&waiting));
    assert!(created(&rolling(&deployment, &[replica_set("v1", 1, 0, 0)])));
}

#[test]
fn a_complete_rollout_says_so_and_cleans_up() {
    let mut deployment = deployment("v4", 3);
    let old = |image, revision| replica_set(image, revision, 0, 0);
    let owned = [old("v1", 1), old("v2", 2), old("v3", 3), replica_set("v4", 4, 3, 3)];
    deployment.status = Some(rolling(&deployment, &owned).status);
    let plan = rolling(&deployment, &owned);
    let progressing = status::condition(&plan.status, "Progressing").expect("is said");
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(plan.recheck, None);
    let gone = plan.steps.iter().filter_map(|step| match step {
        Step::Delete { name } => Some(name.clone()),
        _ => None,
    });
    assert_eq!(gone.collect::<Vec<_>>(), [name(&owned[0]), name(&owned[1])], "one old ReplicaSet is kept");
}

#[test]
fn a_settled_deployment_needs_nothing() {
    let mut deployment = deployment("v1", 3);
    deployment.metadata.annotations = Some(BTreeMap::from([(REVISION.into(), "1".into())]));
    let owned = [replica_set("v1", 1, 3, 3)];
    deployment.status = Some(rolling(&deployment, &owned).status);
    let plan = rolling(&deployment, &owned);
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    assert!(status::same(&plan.status, deployment.status.as_ref().expect("was set")));
}

#[test]
fn a_rollout_that_does_not_move_times_out() {
    let mut deployment = deployment("v2", 3);
    let owned = [replica_set("v1", 1, 3, 3), replica_set("v2", 2, 1, 0)];
    let start = rolling(&deployment, &owned);
    assert_eq!(start.recheck, Some(Duration::from_secs(601)));
    deployment.status = Some(start.status);
    let later = Time(now().0 + jiff::SignedDuration::from_secs(601));
    let plan = plan(&deployment, &owned, |_| false, &later);
    let progressing = status::condition(&plan.status, "Progressing").expect("is said");
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_deref()),
        ("False", Some("ProgressDeadlineExceeded"))
    );
    assert_eq!(plan.recheck, None);
}

#[test]
fn pods_that_are_about_to_go_do_not_count_as_serving() {
    let mut deployment = deployment("v2", 3);
    let strategy = deployment.spec.as_mut().and_then(|spec| spec.strategy.as_mut()).expect("has a strategy");
    strategy.rolling_update.as_mut().expect("rolls").max_unavailable = Some(IntOrString::Int(1));
    // The old one was scaled to 2, but its status still counts 3.
    let owned = [replica_set("v1", 1, 2, 3), replica_set("v2", 2, 2, 1)];
    assert_eq!(scales(&plan(&deployment, &owned, |_| false, &now())), [(2, 1)]);
}
