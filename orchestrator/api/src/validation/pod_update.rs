//! What of a pod may change after it is created: little.

use serde_json::Value;

use super::error::{Errors, FieldError, Path};
use crate::object;

static SPEC: Path<'static> = Path::root("spec");

const RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Images may change, deadlines may come nearer, tolerations may be added, scheduling gates may fall.
pub(crate) fn pod_update(new: &Value, old: &Value, errors: &mut Errors) {
    for list in ["containers", "initContainers"] {
        let count = |pod: &Value| object::list_at(pod, &["spec", list]).len();
        if count(new) != count(old) {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(SPEC.child(list), detail));
            return;
        }
        for (index, container) in object::list_at(new, &["spec", list]).iter().enumerate() {
            if object::str_at(container, &["image"]).trim().is_empty() {
                let path = SPEC.child(list);
                errors.push(FieldError::required(path.index(index).child("image"), ""));
            }
        }
    }
    deadline(new, old, errors);
    tolerations(new, old, errors);
    let gates = |pod: &Value| object::list_at(pod, &["spec", "schedulingGates"]).to_vec();
    let before = gates(old);
    if gates(new).iter().any(|gate| !before.contains(gate)) {
        let detail = "only deletion is allowed, but found new scheduling gates";
        errors.push(FieldError::forbidden(SPEC.child("schedulingGates"), detail));
    }
    let (masked_new, masked_old) = (masked(new, old), masked(old, old));
    if masked_new != masked_old {
        errors.push(FieldError::forbidden(SPEC, format!("{RULE}\n{}", difference(&masked_new, &masked_old))));
    }
}

fn deadline(new: &Value, old: &Value, errors: &mut Errors) {
    let path = SPEC.child("activeDeadlineSeconds");
    let seconds = |pod| object::int_at(pod, &["spec", "activeDeadlineSeconds"]);
    match (seconds(new), seconds(old)) {
        (Some(new), Some(old)) if new > old => {
            let detail = format!("must be less than or equal to previous value {old}");
            errors.push(FieldError::invalid(path, new, detail));
        }
        (Some(new), _) if new < 0 => {
            errors.push(FieldError::invalid(path, new, "must be between 0 and 2147483647, inclusive"));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

/// Those that were there stay, but for how long they tolerate.
fn tolerations(new: &Value, old: &Value, errors: &mut Errors) {
    let stripped = |pod: &Value| -> Vec<Value> {
        let mut list = object::list_at(pod, &["spec", "tolerations"]).to_vec();
        for toleration in &mut list {
            object::remove(toleration, &["tolerationSeconds"]);
        }
        list
    };
    let after = stripped(new);
    if stripped(old).iter().any(|toleration| !after.contains(toleration)) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(SPEC.child("tolerations"), detail));
    }
}

/// The spec with all that may change made equal to the old pod's.
fn masked(pod: &Value, old: &Value) -> Value {
    let mut pod = pod.clone();
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = object::list_at(old, &["spec", list])
            .iter()
            .map(|container| container["image"].clone())
            .collect();
        for (container, image) in object::list_at_mut(&mut pod, &["spec", list]).iter_mut().zip(images) {
            object::set(container, &["image"], image);
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        object::copy(&mut pod, old, &["spec", field]);
    }
    let grace = ["spec", "terminationGracePeriodSeconds"];
    if object::int_at(old, &grace).is_some_and(|seconds| seconds < 0)
        && object::int_at(&pod, &grace) == Some(1)
    {
        object::copy(&mut pod, old, &grace);
    }
    pod.get("spec").cloned().unwrap_or_default()
}

/// Which fields differ, so that the client need not search.
fn difference(new: &Value, old: &Value) -> String {
    let keys = |value: &Value| {
        value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let mut fields = keys(new);
    fields.extend(keys(old));
    fields.sort_unstable();
    fields.dedup();
    fields.retain(|field| new.get(field) != old.get(field));
    format!("changed: {}", fields.iter().map(|field| format!("spec.{field}")).collect::<Vec<_>>().join(", "))
}

/// A pod that is assigned stays assigned, also for those who write its status.
pub(crate) fn pod_status_update(new: &Value, old: &Value, errors: &mut Errors) {
    let nominated = object::str_at(new, &["status", "nominatedNodeName"]);
    if object::str_at(new, &["spec", "nodeName"]) != object::str_at(old, &["spec", "nodeName"]) {
        errors.push(FieldError::forbidden("status.nodeName", "may not be changed directly"));
    }
    for problem in if nominated.is_empty() { Vec::new() } else { super::names::dns1123_subdomain(nominated) }
    {
        errors.push(FieldError::invalid("status.nominatedNodeName", nominated, problem));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn old() -> Value {
        json!({"spec": {"containers": [{"name": "a", "image": "a:1"}], "nodeName": "n", "activeDeadlineSeconds": 10,
               "tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 300}]}})
    }

    fn fields(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut new = old();
        change(&mut new);
        let mut errors = Errors::default();
        pod_update(&new, &old(), &mut errors);
        errors.into_vec().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn images_deadlines_and_tolerations_may_change() {
        assert!(fields(|pod| pod["spec"]["containers"][0]["image"] = json!("a:2")).is_empty());
        assert!(fields(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(5)).is_empty());
        assert!(fields(|pod| pod["spec"]["tolerations"][0]["tolerationSeconds"] = json!(5)).is_empty());
        assert!(fields(|pod| object::set(pod, &["metadata", "labels", "a"], "b")).is_empty());
    }

    #[test]
    fn all_else_may_not() {
        assert_eq!(fields(|pod| pod["spec"]["nodeName"] = json!("m")), ["spec"]);
        assert_eq!(fields(|pod| pod["spec"]["containers"][0]["command"] = json!(["x"])), ["spec"]);
        assert_eq!(fields(|pod| pod["spec"]["containers"] = json!([])), ["spec.containers"]);
        assert_eq!(
            fields(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(11)),
            ["spec.activeDeadlineSeconds"]
        );
        assert_eq!(fields(|pod| pod["spec"]["tolerations"] = json!([])), ["spec.tolerations"]);
        assert_eq!(
            fields(|pod| pod["spec"]["schedulingGates"] = json!([{"name": "g"}])),
            ["spec.schedulingGates"]
        );
        assert_eq!(
            fields(|pod| pod["spec"]["containers"][0]["image"] = json!("")),
            ["spec.containers[0].image"]
        );
    }
}
