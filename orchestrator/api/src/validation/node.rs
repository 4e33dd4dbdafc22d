//! Rules for nodes.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    labels::{label_key_problems, label_value_problems},
};
use crate::{object, quantity::Quantity};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(crate) fn node(node: &Value, errors: &mut Errors) {
    taints(object::list_at(node, &["spec", "taints"]), errors);
    pod_cidrs(node, errors);
    let status = Path::root("status");
    for list in ["capacity", "allocatable"] {
        for (resource, amount) in object::map_at(node, &["status", list]).into_iter().flatten() {
            let amount = amount.as_str().unwrap_or_default();
            if Quantity::parse(amount).is_ok_and(Quantity::is_negative) {
                let path = status.child(list);
                errors.push(FieldError::invalid(
                    path.key(resource),
                    amount,
                    "must be greater than or equal to 0",
                ));
            }
        }
    }
}

fn taints(taints: &[Value], errors: &mut Errors) {
    let list = Path::root("spec.taints");
    let mut seen = Vec::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = list.index(index);
        let field = |name| object::str_at(taint, &[name]);
        for problem in label_key_problems(field("key")) {
            errors.push(FieldError::invalid(path.child("key"), field("key"), problem));
        }
        for problem in label_value_problems(field("value")) {
            errors.push(FieldError::invalid(path.child("value"), field("value"), problem));
        }
        match field("effect") {
            "" => errors.push(FieldError::required(path.child("effect"), "")),
            effect if EFFECTS.contains(&effect) => {}
            other => errors.push(FieldError::not_supported(path.child("effect"), other, EFFECTS)),
        }
        let identity = (field("key"), field("effect"));
        if seen.contains(&identity) {
            errors.push(FieldError::duplicate(path, taint.clone()));
        }
        seen.push(identity);
    }
}

fn pod_cidrs(node: &Value, errors: &mut Errors) {
    let list = Path::root("spec.podCIDRs");
    for (index, cidr) in
        object::list_at(node, &["spec", "podCIDRs"]).iter().filter_map(Value::as_str).enumerate()
    {
        if !is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(list.index(index), cidr, detail));
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(length)) = (address.parse::<std::net::IpAddr>(), length.parse::<u8>()) else {
        return false;
    };
    length <= if address.is_ipv4() { 32 } else { 128 }
}

/// A node's pod range is given once.
pub(crate) fn node_update(new: &Value, old: &Value, errors: &mut Errors) {
    let before = object::list_at(old, &["spec", "podCIDRs"]);
    if !before.is_empty() && before != object::list_at(new, &["spec", "podCIDRs"]) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", detail));
    }
    let provider = object::str_at(old, &["spec", "providerID"]);
    if !provider.is_empty() && provider != object::str_at(new, &["spec", "providerID"]) {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn taints_are_checked() {
        let mut errors = Errors::default();
        let taints = json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "Go"}, {"key": "c"}]);
        node(&json!({"spec": {"taints": taints, "podCIDRs": ["10.0.0.0/24", "x"]}}), &mut errors);
        let fields: Vec<String> = errors.into_vec().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            ["spec.taints[1]", "spec.taints[2].effect", "spec.taints[3].effect", "spec.podCIDRs[1]"]
        );
    }

    #[test]
    fn a_pod_range_is_given_once() {
        let with = |cidrs: Value| json!({"spec": {"podCIDRs": cidrs}});
        for (new, old, count) in [
            (with(json!(["10.0.0.0/24"])), json!({}), 0),
            (with(json!(["10.0.1.0/24"])), with(json!(["10.0.0.0/24"])), 1),
        ] {
            let mut errors = Errors::default();
            node_update(&new, &old, &mut errors);
            assert_eq!(errors.into_vec().len(), count);
        }
    }
}
