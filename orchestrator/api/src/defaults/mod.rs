//! What the apiserver fills in where a client says nothing: upstream v1.33's `SetDefaults_*`.
//!
//! Defaults are stored with the object and apply to every body that comes in, so that what `kubectl apply`
//! sends and what it reads back differ in nothing that it sent. What upstream's admission adds to new pods
//! alone, templates excepted, is in `admit_pod`, which is part of their creation.

mod network;
mod pod;
mod workload;

use serde_json::{Value, json};

use crate::object;

pub(crate) use {
    network::{endpoint_slice, ingress_class, service},
    pod::{admit_pod, pod, pod_template},
    workload::{deployment, replica_set},
};

/// Label that carries a namespace's name, so that selectors can name namespaces.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The label with the name. A namespace of `generateName` gets it once it has a name.
pub(crate) fn namespace(object: &mut Value) {
    let name = object::name(object).to_owned();
    if !name.is_empty() {
        object::set_default(object, &["metadata", "labels", NAMESPACE_NAME_LABEL], name);
    }
}

/// What is allocatable is what is there, until the kubelet says otherwise.
pub(crate) fn node(object: &mut Value) {
    if let Some(capacity) = object::get(object, &["status", "capacity"]).cloned() {
        object::set_default(object, &["status", "allocatable"], capacity);
    }
}

/// `stringData` goes into `data`, and wins there.
pub(crate) fn secret(object: &mut Value) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    object::set_default(object, &["type"], "Opaque");
    if let Some(Value::Object(texts)) = object::remove(object, &["stringData"]) {
        for (key, text) in texts {
            object::set(object, &["data", &key], STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
}

/// Gives `object` each of `values` that it has not.
pub(crate) fn fill(object: &mut Value, values: Value) {
    let Value::Object(values) = values else { return };
    for (key, value) in values {
        object::set_default(object, &[&key], value);
    }
}

/// Like [`fill`], for numbers of which zero means "not set" in Kubernetes' types.
pub(crate) fn fill_zeros(object: &mut Value, values: &[(&str, i64)]) {
    for (key, value) in values {
        if object::int_at(object, &[key]).unwrap_or(0) == 0 {
            object::set(object, &[key], json!(value));
        }
    }
}

/// Like [`object::set_default`], for texts of which the empty one means "not set".
pub(crate) fn fill_text(object: &mut Value, path: &[&str], value: &str) {
    if object::str_at(object, path).is_empty() {
        object::set(object, path, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_merge_their_string_data() {
        let mut object = json!({"data": {"a": "MQ==", "b": "Mg=="}, "stringData": {"b": "three"}});
        secret(&mut object);
        assert_eq!(object, json!({"type": "Opaque", "data": {"a": "MQ==", "b": "dGhyZWU="}}));
    }

    #[test]
    fn namespaces_are_labelled_with_their_name() {
        let mut object = json!({"metadata": {"name": "shop"}});
        namespace(&mut object);
        assert_eq!(object["metadata"]["labels"][NAMESPACE_NAME_LABEL], "shop");
    }
}
