//! What a node's heartbeat says about it: conditions and taints as pure functions.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The taint of a node that says it is not ready.
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node that says nothing.
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Conditions that become unknown with the heartbeat.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Condition, status and the taint that keeps new pods away meanwhile.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
/// The taint of a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A condition of a node.
pub(super) fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// `True`, `False` or `Unknown`; a node that never said is unknown.
pub(super) fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// The conditions to write for a node that has been silent for `silence`, or `None` while that is within `grace`
/// or written already.
pub(super) fn unknown_conditions(
    node: &Node,
    silence: Duration,
    grace: Duration,
    now: &Time,
) -> Option<Vec<NodeCondition>> {
    if silence < grace {
        return None;
    }
    let changed = REPORTED.iter().filter_map(|type_| {
        let (before, reason, message) = match condition(node, type_) {
            Some(before) if before.status == "Unknown" => return None,
            Some(before) => (before.clone(), "NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => {
                let condition = NodeCondition { type_: (*type_).to_owned(), ..NodeCondition::default() };
                (condition, "NodeStatusNeverUpdated", "Kubelet never posted node status.")
            }
        };
        Some(NodeCondition {
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(now.clone()),
            ..before
        })
    });
    let changed: Vec<_> = changed.collect();
    (!changed.is_empty()).then_some(changed)
}

/// The taints the node should have, or `None` if it has them. Taints that are not about health stay as they are.
pub(super) fn taints(node: &Node, now: &Time) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (type_, status, key) in CONDITION_TAINTS {
        let holds = match condition(node, type_) {
            Some(condition) => condition.status == status,
            // A node that has not reported yet is not ready.
            None => type_ == "Ready" && status == "False",
        };
        if holds {
            wanted.push((key, "NoSchedule"));
            if type_ == "Ready" {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if cordoned {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        (CONDITION_TAINTS.iter().any(|(_, _, key)| *key == taint.key) || taint.key == UNSCHEDULABLE)
            && matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut after: Vec<_> = before.iter().filter(|taint| !ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !after.iter().any(|taint| taint.key == key && taint.effect == effect) {
            // The time counts for tolerations that are limited; those are about NoExecute.
            let time_added = (effect == "NoExecute").then(|| now.clone());
            after.push(Taint { key: key.to_owned(), effect: effect.to_owned(), time_added, value: None });
        }
    }
    (after != before).then_some(after)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Time {
        Time(jiff::Timestamp::from_second(1_000_000).expect("is a time"))
    }

    fn node(ready: Option<&str>) -> Node {
        let conditions: Vec<_> = ready
            .map(|status| json!({ "type": "Ready", "status": status, "reason": "KubeletReady" }))
            .into_iter()
            .collect();
        let taints = json!([{ "key": "mine", "effect": "NoSchedule" }]);
        serde_json::from_value(json!({
            "spec": { "taints": taints }, "status": { "conditions": conditions }
        }))
        .expect("is a node")
    }

    fn effects(node: &Node) -> Vec<(String, String)> {
        let after = taints(node, &now()).or_else(|| node.spec.clone().and_then(|spec| spec.taints));
        after.unwrap_or_default().into_iter().map(|taint| (taint.key, taint.effect)).collect()
    }

    #[test]
    fn silence_makes_what_was_reported_unknown_once() {
        let grace = Duration::from_secs(40);
        let mut node = node(Some("True"));
        assert_eq!(unknown_conditions(&node, Duration::from_secs(39), grace, &now()), None);
        let changed = unknown_conditions(&node, grace, grace, &now()).expect("silent for too long");
        assert_eq!(changed.len(), 4);
        assert!(changed.iter().all(|condition| condition.status == "Unknown"));
        let reasons: Vec<_> = changed.iter().filter_map(|condition| condition.reason.as_deref()).collect();
        assert_eq!(reasons[0], "NodeStatusUnknown");
        assert_eq!(reasons[1], "NodeStatusNeverUpdated");
        node.status.as_mut().expect("has a status").conditions = Some(changed);
        assert_eq!(unknown_conditions(&node, grace * 2, grace, &now()), None);
    }

    #[test]
    fn taints_follow_readiness_and_leave_others_alone() {
        let with = |key: &str| {
            vec![
                ("mine".to_owned(), "NoSchedule".to_owned()),
                (key.to_owned(), "NoSchedule".to_owned()),
                (key.to_owned(), "NoExecute".to_owned()),
            ]
        };
        assert_eq!(effects(&node(Some("False"))), with(NOT_READY));
        assert_eq!(effects(&node(Some("Unknown"))), with(UNREACHABLE));
        assert_eq!(effects(&node(None)), with(NOT_READY), "not reported yet");
        assert_eq!(taints(&node(Some("True")), &now()), None);
    }

    #[test]
    fn recovery_takes_the_taints_back_and_a_stable_state_keeps_their_time() {
        let mut node = node(Some("Unknown"));
        let tainted = taints(&node, &now()).expect("unreachable");
        node.spec.as_mut().expect("has a spec").taints = Some(tainted);
        let later = Time(now().0 + jiff::SignedDuration::from_secs(60));
        assert_eq!(taints(&node, &later), None);
        let conditions = node.status.as_mut().and_then(|status| status.conditions.as_mut());
        conditions.expect("has conditions")[0].status = "True".into();
        assert_eq!(effects(&node), [("mine".to_owned(), "NoSchedule".to_owned())]);
    }

    #[test]
    fn a_cordoned_node_is_tainted_until_it_is_not() {
        let mut node = node(Some("True"));
        node.spec.as_mut().expect("has a spec").unschedulable = Some(true);
        assert!(effects(&node).contains(&(UNSCHEDULABLE.to_owned(), "NoSchedule".to_owned())));
    }
}
