//! Rules for deployments and replica sets.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    labels,
    pod::pod_spec,
};
use crate::{object, selector::LabelSelector};

static SPEC: Path<'static> = Path::root("spec");

pub(crate) fn deployment(deployment: &Value, errors: &mut Errors) {
    not_negative(
        deployment,
        &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        errors,
    );
    selector_and_template(deployment, errors);
    strategy(deployment, errors);
    if let Some(deadline) = object::int_at(deployment, &["spec", "progressDeadlineSeconds"]) {
        let ready = object::int_at(deployment, &["spec", "minReadySeconds"]).unwrap_or(0);
        if deadline <= ready {
            let detail = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid(SPEC.child("progressDeadlineSeconds"), deadline, detail));
        }
    }
}

pub(crate) fn replica_set(set: &Value, errors: &mut Errors) {
    not_negative(set, &["replicas", "minReadySeconds"], errors);
    selector_and_template(set, errors);
}

fn not_negative(object: &Value, fields: &[&str], errors: &mut Errors) {
    for field in fields {
        if let Some(number) = object::int_at(object, &["spec", field]).filter(|number| *number < 0) {
            errors.push(FieldError::invalid(SPEC.child(field), number, "must be greater than or equal to 0"));
        }
    }
}

fn selector_and_template(object: &Value, errors: &mut Errors) {
    let path = SPEC.child("selector");
    let selector = object::get(object, &["spec", "selector"]);
    match selector {
        None => errors.push(FieldError::required(path, "")),
        Some(selector) => {
            labels::selector(selector, &path, errors);
            let empty = ["matchLabels", "matchExpressions"].iter().all(|field| {
                object::get(selector, &[field]).is_none_or(|value| {
                    value
                        .as_object()
                        .map_or_else(|| value.as_array().is_none_or(Vec::is_empty), serde_json::Map::is_empty)
                })
            });
            if empty {
                errors.push(FieldError::invalid(path, "{}", "empty selector is invalid for deployment"));
            }
        }
    }
    template(object, selector, errors);
}

fn template(object: &Value, selector: Option<&Value>, errors: &mut Errors) {
    let path = SPEC.child("template");
    let Some(template) = object::get(object, &["spec", "template"]) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let metadata = path.child("metadata");
    let template_labels = object::labels(template);
    if let Some(selector) = LabelSelector::of_object(selector)
        && !selector.is_empty()
        && !selector.matches(template_labels)
    {
        let bad = template_labels.cloned().unwrap_or_default();
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(metadata.child("labels"), Value::Object(bad), detail));
    }
    labels::labels(object::get(template, &["metadata", "labels"]), &metadata.child("labels"), errors);
    labels::annotations(
        object::get(template, &["metadata", "annotations"]),
        &metadata.child("annotations"),
        errors,
    );
    let spec_path = path.child("spec");
    let spec = template.get("spec").unwrap_or(&Value::Null);
    pod_spec(spec, &spec_path, errors);
    match object::str_at(spec, &["restartPolicy"]) {
        "Always" | "" => {}
        other => errors.push(FieldError::not_supported(spec_path.child("restartPolicy"), other, &["Always"])),
    }
    if object::get(spec, &["activeDeadlineSeconds"]).is_some() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(spec_path.child("activeDeadlineSeconds"), detail));
    }
}

fn strategy(deployment: &Value, errors: &mut Errors) {
    let path = SPEC.child("strategy");
    let rolling_path = path.child("rollingUpdate");
    let rolling = object::get(deployment, &["spec", "strategy", "rollingUpdate"]);
    match object::str_at(deployment, &["spec", "strategy", "type"]) {
        "Recreate" if rolling.is_some() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(rolling_path, detail));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let Some(rolling) = rolling else {
                let detail = "this should be defaulted and never be nil";
                errors.push(FieldError::required(rolling_path, detail));
                return;
            };
            let unavailable = amount(rolling, "maxUnavailable", &rolling_path, errors);
            let surge = amount(rolling, "maxSurge", &rolling_path, errors);
            if unavailable == Some(0) && surge == Some(0) {
                let detail = "may not be 0 when `maxSurge` is 0";
                let bad = rolling.get("maxUnavailable").cloned().unwrap_or_default();
                errors.push(FieldError::invalid(rolling_path.child("maxUnavailable"), bad, detail));
            }
            if unavailable.is_some_and(|percent| percent > 100) && rolling["maxUnavailable"].is_string() {
                let bad = rolling["maxUnavailable"].clone();
                errors.push(FieldError::invalid(
                    rolling_path.child("maxUnavailable"),
                    bad,
                    "must not be greater than 100%",
                ));
            }
        }
        other => {
            errors.push(FieldError::not_supported(path.child("type"), other, &["Recreate", "RollingUpdate"]));
        }
    }
}

/// A number of pods or a percentage; the error is reported, the amount returned.
fn amount(rolling: &Value, field: &str, path: &Path<'_>, errors: &mut Errors) -> Option<i64> {
    let value = rolling.get(field)?;
    let amount = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok()),
        _ => None,
    };
    match amount {
        None => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(path.child(field), value.clone(), detail));
        }
        Some(number) if number < 0 => {
            errors.push(FieldError::invalid(path.child(field), number, "must be greater than or equal to 0"));
        }
        Some(_) => {}
    }
    amount
}

/// A selector says which pods are whose: it never changes.
pub(crate) fn workload_update(new: &Value, old: &Value, errors: &mut Errors) {
    let selector = |object| object::get(object, &["spec", "selector"]).cloned().unwrap_or_default();
    if selector(new) != selector(old) {
        errors.push(FieldError::invalid(SPEC.child("selector"), selector(new), "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::defaults;

    fn valid() -> Value {
        json!({"spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "nginx:1"}]},
            },
        }})
    }

    fn messages(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut object = valid();
        change(&mut object);
        defaults::deployment(&mut object);
        let mut errors = Errors::default();
        deployment(&object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_usual_deployment_is_valid() {
        assert_eq!(messages(|_| {}), [""; 0]);
    }

    #[test]
    fn the_selector_is_required_and_matches() {
        assert_eq!(
            messages(|d| drop(object::remove(d, &["spec", "selector"]))),
            ["spec.selector: Required value"]
        );
        assert_eq!(
            messages(|d| object::set(d, &["spec", "template", "metadata", "labels"], json!({"app": "x"}))),
            [
                r#"spec.template.metadata.labels: Invalid value: map[string]string{"app":"x"}: `selector` does not match template `labels`"#
            ]
        );
        assert_eq!(
            messages(|d| object::set(d, &["spec", "selector"], json!({}))),
            [r#"spec.selector: Invalid value: "{}": empty selector is invalid for deployment"#]
        );
    }

    #[test]
    fn numbers_and_strategies_are_checked() {
        assert_eq!(
            messages(|d| object::set(d, &["spec", "replicas"], -1)),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(messages(|d| object::set(d, &["spec", "strategy"], json!({"type": "Sideways"}))).len(), 1);
        let rolling = |value: Value| {
            messages(|d| {
                object::set(
                    d,
                    &["spec", "strategy"],
                    json!({"type": "RollingUpdate", "rollingUpdate": value}),
                );
            })
        };
        assert!(rolling(json!({"maxSurge": 1, "maxUnavailable": 0})).is_empty());
        assert_eq!(
            rolling(json!({"maxSurge": 0, "maxUnavailable": "0%"})),
            [
                r#"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0"#
            ]
        );
        assert_eq!(rolling(json!({"maxSurge": "lots"})).len(), 1);
        assert_eq!(
            messages(|d| object::set(d, &["spec", "template", "spec", "restartPolicy"], "Never")),
            [r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#]
        );
    }

    #[test]
    fn the_selector_never_changes() {
        let mut new = valid();
        object::set(&mut new, &["spec", "selector", "matchLabels", "tier"], "a");
        let mut errors = Errors::default();
        workload_update(&new, &valid(), &mut errors);
        assert!(errors.into_vec()[0].to_string().ends_with("field is immutable"));
    }
}
