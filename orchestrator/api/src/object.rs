//! Reading and writing the fields of an object that is a [`Value`].
//!
//! Rules address fields by their path, as Kubernetes' own documents do; a missing parent reads as a missing
//! field, never as an error, because the codec has already checked the types. Used by every module here and
//! by the apiserver.

use serde_json::{Map, Value};

/// The field at `path`, or `None` when it or a parent is missing or null.
pub fn get<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key)).filter(|value| !value.is_null())
}

/// The string at `path`; the empty string when it is missing, as in Kubernetes' own types.
pub fn str_at<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    get(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at `path`.
pub fn int_at(object: &Value, path: &[&str]) -> Option<i64> {
    get(object, path).and_then(Value::as_i64)
}

/// The boolean at `path`; false when it is missing.
pub fn bool_at(object: &Value, path: &[&str]) -> bool {
    get(object, path).and_then(Value::as_bool).unwrap_or_default()
}

/// The elements of the list at `path`; none when it is missing.
pub fn list_at<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    get(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries of the object or map at `path`.
pub fn map_at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Map<String, Value>> {
    get(object, path).and_then(Value::as_object)
}

/// The field at `path` for writing, if it is there.
pub fn get_mut<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(object, |value, key| value.get_mut(key)).filter(|value| !value.is_null())
}

/// The elements of the list at `path` for writing; none when it is missing.
pub fn list_at_mut<'a>(object: &'a mut Value, path: &[&str]) -> &'a mut [Value] {
    get_mut(object, path).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Writes `value` at `path`, making the parents that are missing. A parent of another type is replaced.
pub fn set(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    let Some((last, parents)) = path.split_last() else {
        *object = value.into();
        return;
    };
    let mut at = object;
    for key in parents {
        at = as_map(at).entry(*key).or_insert_with(|| Value::Object(Map::new()));
    }
    as_map(at).insert((*last).to_owned(), value.into());
}

/// Writes `value` at `path` unless something other than null is there.
pub fn set_default(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    if get(object, path).is_none() {
        set(object, path, value);
    }
}

/// Takes the field at `path` out of the object.
pub fn remove(object: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    get_mut(object, parents)?.as_object_mut()?.remove(*last)
}

/// Makes the field at `path` what it is in `from`: copied, or removed where `from` has none.
pub fn copy(object: &mut Value, from: &Value, path: &[&str]) {
    match get(from, path) {
        Some(value) => set(object, path, value.clone()),
        None => drop(remove(object, path)),
    }
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// `metadata.name`; empty before a `generateName` is filled in.
pub fn name(object: &Value) -> &str {
    str_at(object, &["metadata", "name"])
}

/// `metadata.namespace`; empty for objects of the cluster.
pub fn namespace(object: &Value) -> &str {
    str_at(object, &["metadata", "namespace"])
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    str_at(object, &["metadata", "uid"])
}

/// `metadata.resourceVersion`; empty when a client did not name one.
pub fn resource_version(object: &Value) -> &str {
    str_at(object, &["metadata", "resourceVersion"])
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    map_at(object, &["metadata", "labels"])
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list_at(object, &["metadata", "finalizers"]).iter().filter_map(Value::as_str)
}

/// Whether the object waits for its finalizers.
pub fn is_terminating(object: &Value) -> bool {
    get(object, &["metadata", "deletionTimestamp"]).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_and_null_parents_read_as_missing() {
        let object = json!({"spec": {"replicas": 3, "paused": null}});
        assert_eq!(int_at(&object, &["spec", "replicas"]), Some(3));
        assert_eq!(get(&object, &["spec", "paused"]), None);
        assert_eq!(str_at(&object, &["status", "phase"]), "");
        assert!(list_at(&object, &["spec", "ports"]).is_empty());
    }

    #[test]
    fn set_makes_parents_and_copy_removes() {
        let mut object = json!({});
        set(&mut object, &["spec", "strategy", "type"], "Recreate");
        set_default(&mut object, &["spec", "strategy", "type"], "RollingUpdate");
        assert_eq!(object, json!({"spec": {"strategy": {"type": "Recreate"}}}));
        copy(&mut object, &json!({}), &["spec", "strategy"]);
        assert_eq!(object, json!({"spec": {}}));
    }
}
