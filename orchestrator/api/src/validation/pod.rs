//! Rules for pods and pod templates, but for containers and volumes.

use serde_json::Value;

use super::{
    container::{containers, init_containers},
    error::{Errors, FieldError, Path},
    labels,
    names::{dns1123_label, dns1123_subdomain},
    volume::volumes,
};
use crate::object;

const RESTART_POLICIES: &[&str] = &["Always", "Never", "OnFailure"];
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];
const NODE_OPERATORS: &[&str] = &["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];

pub(crate) fn pod(pod: &Value, errors: &mut Errors) {
    pod_spec(pod.get("spec").unwrap_or(&Value::Null), &Path::root("spec"), errors);
}

/// Holds a pod's spec against the rules; `path` says where it lies.
pub(crate) fn pod_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let volume_names = volumes(object::list_at(spec, &["volumes"]), &path.child("volumes"), errors);
    let mut names = containers(spec, &path.child("containers"), &volume_names, errors);
    init_containers(spec, &path.child("initContainers"), &volume_names, &mut names, errors);
    policies(spec, path, errors);
    labels::labels(object::get(spec, &["nodeSelector"]), &path.child("nodeSelector"), errors);
    referenced_names(spec, path, errors);
    for field in ["terminationGracePeriodSeconds", "activeDeadlineSeconds"] {
        let least = i64::from(field == "activeDeadlineSeconds");
        if let Some(seconds) = object::int_at(spec, &[field]).filter(|seconds| *seconds < least) {
            let detail = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be between 1 and 2147483647, inclusive"
            };
            errors.push(FieldError::invalid(path.child(field), seconds, detail));
        }
    }
    tolerations(spec, &path.child("tolerations"), errors);
    node_affinity(spec, path, errors);
    spread(spec, &path.child("topologySpreadConstraints"), errors);
}

fn policies(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (field, supported) in [("restartPolicy", RESTART_POLICIES), ("dnsPolicy", DNS_POLICIES)] {
        match object::str_at(spec, &[field]) {
            "" => errors.push(FieldError::required(path.child(field), "")),
            value if supported.contains(&value) => {}
            other => errors.push(FieldError::not_supported(path.child(field), other, supported)),
        }
    }
    if object::str_at(spec, &["dnsPolicy"]) == "None"
        && object::list_at(spec, &["dnsConfig", "nameservers"]).is_empty()
    {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(path.child("dnsConfig.nameservers"), detail));
    }
}

fn referenced_names(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 5] = [
        ("serviceAccountName", dns1123_subdomain),
        ("nodeName", dns1123_subdomain),
        ("hostname", dns1123_label),
        ("subdomain", dns1123_label),
        ("runtimeClassName", dns1123_subdomain),
    ];
    for (field, rule) in rules {
        let name = object::str_at(spec, &[field]);
        for problem in if name.is_empty() { Vec::new() } else { rule(name) } {
            errors.push(FieldError::invalid(path.child(field), name, problem));
        }
    }
    if object::bool_at(spec, &["hostPID"]) && object::bool_at(spec, &["shareProcessNamespace"]) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(path.child("shareProcessNamespace"), true, detail));
    }
}

fn tolerations(spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    for (index, toleration) in object::list_at(spec, &["tolerations"]).iter().enumerate() {
        let path = list.index(index);
        let field = |name| object::str_at(toleration, &[name]);
        let (key, operator, effect) = (field("key"), field("operator"), field("effect"));
        for problem in if key.is_empty() { Vec::new() } else { labels::label_key_problems(key) } {
            errors.push(FieldError::invalid(path.child("key"), key, problem));
        }
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(path.child("operator"), operator, detail));
        }
        match operator {
            "" | "Equal" => {
                for problem in labels::label_value_problems(field("value")) {
                    errors.push(FieldError::invalid(path.child("operator"), field("value"), problem));
                }
            }
            "Exists" if !field("value").is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(path.child("operator"), field("value"), detail));
            }
            "Exists" => {}
            other => {
                errors.push(FieldError::not_supported(path.child("operator"), other, &["Equal", "Exists"]));
            }
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.push(FieldError::not_supported(path.child("effect"), effect, EFFECTS));
        }
        if object::get(toleration, &["tolerationSeconds"]).is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(path.child("effect"), effect, detail));
        }
    }
}

fn node_affinity(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(affinity) = object::get(spec, &["affinity", "nodeAffinity"]) else { return };
    let base = path.child("affinity.nodeAffinity");
    let required = base.child("requiredDuringSchedulingIgnoredDuringExecution");
    if let Some(selector) = object::get(affinity, &["requiredDuringSchedulingIgnoredDuringExecution"]) {
        let list = required.child("nodeSelectorTerms");
        let terms = object::list_at(selector, &["nodeSelectorTerms"]);
        if terms.is_empty() {
            errors.push(FieldError::required(list, "must have at least one node selector term"));
        }
        for (index, term) in terms.iter().enumerate() {
            node_selector_term(term, &list.index(index), errors);
        }
    }
    let list = base.child("preferredDuringSchedulingIgnoredDuringExecution");
    let preferred = object::list_at(affinity, &["preferredDuringSchedulingIgnoredDuringExecution"]);
    for (index, preference) in preferred.iter().enumerate() {
        let path = list.index(index);
        let weight = object::int_at(preference, &["weight"]).unwrap_or(0);
        if !(1..=100).contains(&weight) {
            errors.push(FieldError::invalid(path.child("weight"), weight, "must be in the range 1-100"));
        }
        node_selector_term(
            preference.get("preference").unwrap_or(&Value::Null),
            &path.child("preference"),
            errors,
        );
    }
}

fn node_selector_term(term: &Value, path: &Path<'_>, errors: &mut Errors) {
    let list = path.child("matchExpressions");
    for (index, expression) in object::list_at(term, &["matchExpressions"]).iter().enumerate() {
        let path = list.index(index);
        let values = object::list_at(expression, &["values"]).len();
        let at = path.child("values");
        match object::str_at(expression, &["operator"]) {
            "In" | "NotIn" if values == 0 => {
                errors.push(FieldError::required(at, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(at, detail));
            }
            "Gt" | "Lt" if values != 1 => {
                errors.push(FieldError::required(
                    at,
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ));
            }
            operator if NODE_OPERATORS.contains(&operator) => {}
            other => errors.push(FieldError::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = object::str_at(expression, &["key"]);
        for problem in labels::label_key_problems(key) {
            errors.push(FieldError::invalid(path.child("key"), key, problem));
        }
    }
}

fn spread(spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    for (index, constraint) in object::list_at(spec, &["topologySpreadConstraints"]).iter().enumerate() {
        let path = list.index(index);
        let skew = object::int_at(constraint, &["maxSkew"]).unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(path.child("maxSkew"), skew, "must be greater than zero"));
        }
        if object::str_at(constraint, &["topologyKey"]).is_empty() {
            errors.push(FieldError::required(path.child("topologyKey"), "can not be empty"));
        }
        let when = object::str_at(constraint, &["whenUnsatisfiable"]);
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            let supported = &["DoNotSchedule", "ScheduleAnyway"];
            errors.push(FieldError::not_supported(path.child("whenUnsatisfiable"), when, supported));
        }
        if let Some(selector) = object::get(constraint, &["labelSelector"]) {
            labels::selector(selector, &path.child("labelSelector"), errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::defaults;

    fn messages(mut spec: Value) -> Vec<String> {
        object::set_default(&mut spec, &["containers"], json!([{"name": "web", "image": "nginx"}]));
        let mut object = json!({"spec": spec});
        defaults::pod(&mut object);
        let mut errors = Errors::default();
        pod(&object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_usual_pod_is_valid() {
        let spec = json!({
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"operator": "Exists"}, {"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}],
            "serviceAccountName": "default",
        });
        assert_eq!(messages(spec), [""; 0]);
    }

    #[test]
    fn each_rule_names_its_field() {
        for (spec, message) in [
            (json!({"containers": []}), "spec.containers: Required value"),
            (
                json!({"restartPolicy": "Sometimes"}),
                r#"spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure""#,
            ),
            (
                json!({"terminationGracePeriodSeconds": -1}),
                "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                json!({"tolerations": [{"key": "a", "operator": "Like"}]}),
                r#"spec.tolerations[0].operator: Unsupported value: "Like": supported values: "Equal", "Exists""#,
            ),
            (
                json!({"dnsPolicy": "None"}),
                "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            ),
            (
                json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            ),
        ] {
            assert_eq!(messages(spec), [message]);
        }
    }
}
