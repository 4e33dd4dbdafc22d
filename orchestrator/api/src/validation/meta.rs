//! Rules for `metadata`, the same for all kinds.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    labels::{annotations, label_key_problems, labels},
    names::{NameRule, dns1123_label},
};
use crate::{Resource, object};

static METADATA: Path<'static> = Path::root("metadata");

pub(super) fn object_meta(row: &Resource, object: &Value, errors: &mut Errors) {
    names(row.name_rule(), object, errors);
    namespace(row, object, errors);
    labels(object::get(object, &["metadata", "labels"]), &METADATA.child("labels"), errors);
    annotations(object::get(object, &["metadata", "annotations"]), &METADATA.child("annotations"), errors);
    owners(object, errors);
    let list = METADATA.child("finalizers");
    for finalizer in object::finalizers(object) {
        for problem in label_key_problems(finalizer) {
            errors.push(FieldError::invalid(list, finalizer, problem));
        }
    }
}

fn names(rule: NameRule, object: &Value, errors: &mut Errors) {
    let (name, prefix) = (object::name(object), object::str_at(object, &["metadata", "generateName"]));
    for problem in if prefix.is_empty() { Vec::new() } else { rule.problems(prefix, true) } {
        errors.push(FieldError::invalid(METADATA.child("generateName"), prefix, problem));
    }
    if name.is_empty() {
        if prefix.is_empty() && rule != NameRule::Any {
            let detail = "name or generateName is required";
            errors.push(FieldError::required(METADATA.child("name"), detail));
        }
        return;
    }
    for problem in rule.problems(name, false) {
        errors.push(FieldError::invalid(METADATA.child("name"), name, problem));
    }
}

fn namespace(row: &Resource, object: &Value, errors: &mut Errors) {
    let (path, namespace) = (METADATA.child("namespace"), object::namespace(object));
    match (row.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(path, "")),
        (true, false) => {
            for problem in dns1123_label(namespace) {
                errors.push(FieldError::invalid(path, namespace, problem));
            }
        }
        (false, false) => errors.push(FieldError::forbidden(path, "not allowed on this type")),
        (false, true) => {}
    }
}

fn owners(object: &Value, errors: &mut Errors) {
    let list = METADATA.child("ownerReferences");
    let mut controller: Option<&Value> = None;
    for (index, owner) in object::list_at(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        let path = list.index(index);
        for (field, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            let value = object::str_at(owner, &[field]);
            if value.is_empty() {
                errors.push(FieldError::invalid(path.child(field), value, detail));
            }
        }
        if object::bool_at(owner, &["controller"]) {
            if let Some(first) = controller {
                let name = |owner: &Value| object::str_at(owner, &["kind"]).to_owned();
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    name(first),
                    object::str_at(first, &["name"]),
                    name(owner),
                    object::str_at(owner, &["name"]),
                );
                errors.push(FieldError::invalid(list, Value::from(""), detail));
            }
            controller = Some(owner);
        }
    }
}

/// Names, namespaces and identities never change; a terminating object gets no more finalizers.
pub(super) fn object_meta_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let value = |object| object::get(object, &["metadata", field]).cloned();
        // Deletion is the apiserver's to set, which does so without validation.
        if value(new) != value(old) {
            let bad = value(new).unwrap_or(Value::Null);
            errors.push(FieldError::invalid(METADATA.child(field), bad, "field is immutable"));
        }
    }
    if object::is_terminating(old) {
        let added: Vec<&str> =
            object::finalizers(new).filter(|one| !object::finalizers(old).any(|old| old == *one)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
            );
            errors.push(FieldError::forbidden(METADATA.child("finalizers"), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::find;

    fn messages(row: &Resource, metadata: Value) -> Vec<String> {
        let mut errors = Errors::default();
        object_meta(row, &json!({"metadata": metadata}), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_follow_the_kinds_rule() {
        let (maps, services) =
            (find("", "v1", "configmaps").expect("row"), find("", "v1", "services").expect("row"));
        assert!(messages(maps, json!({"name": "kube-root-ca.crt", "namespace": "a"})).is_empty());
        assert_eq!(messages(services, json!({"name": "1a", "namespace": "a"})).len(), 1);
        assert_eq!(
            messages(maps, json!({"namespace": "a"})),
            ["metadata.name: Required value: name or generateName is required"]
        );
        assert!(messages(maps, json!({"generateName": "a-", "namespace": "a"})).is_empty());
        assert!(messages(maps, json!({"name": "Web", "namespace": "a"}))[0].starts_with(
            r#"metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain must consist of"#
        ));
    }

    #[test]
    fn namespaces_are_for_those_that_live_in_one() {
        let (maps, nodes) =
            (find("", "v1", "configmaps").expect("row"), find("", "v1", "nodes").expect("row"));
        assert_eq!(messages(maps, json!({"name": "a"})), ["metadata.namespace: Required value"]);
        assert_eq!(
            messages(nodes, json!({"name": "a", "namespace": "b"})),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
    }

    #[test]
    fn one_controller_at_most() {
        let maps = find("", "v1", "configmaps").expect("row");
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1", "controller": true});
        let errors =
            messages(maps, json!({"name": "a", "namespace": "b", "ownerReferences": [owner, owner]}));
        assert_eq!(errors.len(), 1);
        assert!(errors[0].contains("Only one reference can have Controller set to true"));
    }

    #[test]
    fn terminating_objects_get_no_finalizers() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["a/b"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a/c"]);
        let mut errors = Errors::default();
        object_meta_update(&new, &old, &mut errors);
        assert_eq!(errors.into_vec().len(), 1);
    }
}
