//! Strategic merge patch: Kubernetes' own merge, in which lists merge by a key.
//!
//! Which lists merge, and by which key, is in [`crate::schema`]. The patch may carry directives: `$patch`
//! (`replace`, `delete`, `merge`), `$deleteFromPrimitiveList/<list>`, `$setElementOrder/<list>` and
//! `$retainKeys`. See upstream's `strategicpatch` package.

use serde_json::{Map, Value};

use super::PatchError;
use crate::{
    object,
    schema::{Field, ListMerge, Shape, TypeId, Types, types},
};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges `patch` into a copy of `current`, which is of the type named `schema`.
pub(super) fn merge(current: &Value, patch: &Value, schema: &str) -> Result<Value, PatchError> {
    let types = types();
    let id = types.id(schema);
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::Malformed("a strategic merge patch needs objects".to_owned()));
    };
    Merger { types }.objects(current, patch, id).map(Value::Object)
}

struct Merger {
    types: &'static Types,
}

impl Merger {
    /// `id` is the type of both; without one (maps, free-form objects) lists are atomic.
    fn objects(
        &self,
        current: &Map<String, Value>,
        patch: &Map<String, Value>,
        id: Option<TypeId>,
    ) -> Result<Map<String, Value>, PatchError> {
        match patch.get(PATCH).and_then(Value::as_str) {
            Some("replace") => return Ok(without_directives(patch)),
            Some("delete") => return Ok(Map::new()),
            Some("merge") | None => {}
            Some(other) => return Err(PatchError::Malformed(format!("unknown $patch directive {other:?}"))),
        }
        let mut result = current.clone();
        if let Some(Value::Array(retained)) = patch.get(RETAIN_KEYS) {
            result.retain(|key, _| retained.iter().any(|retained| retained.as_str() == Some(key)));
        }
        for (key, change) in patch {
            if key.starts_with('$') {
                continue;
            }
            let field = id.and_then(|id| self.types.object(id).field(key));
            let merged = match (result.remove(key), change) {
                (_, Value::Null) => continue,
                (Some(Value::Object(old)), Value::Object(change)) => {
                    let deleted = change.get(PATCH).and_then(Value::as_str) == Some("delete");
                    if deleted {
                        continue;
                    }
                    Value::Object(self.objects(&old, change, field.and_then(object_id))?)
                }
                (Some(Value::Array(old)), Value::Array(change)) => {
                    Value::Array(self.lists(&old, change, field, order_of(patch, key), key)?)
                }
                (_, Value::Object(change)) => {
                    if change.get(PATCH).and_then(Value::as_str) == Some("delete") {
                        continue;
                    }
                    Value::Object(self.objects(&Map::new(), change, field.and_then(object_id))?)
                }
                (_, Value::Array(change)) => {
                    Value::Array(self.lists(&[], change, field, order_of(patch, key), key)?)
                }
                (_, scalar) => scalar.clone(),
            };
            result.insert(key.clone(), merged);
        }
        self.list_directives(&mut result, patch, id);
        Ok(result)
    }

    /// Directives for lists that the patch does not carry themselves.
    fn list_directives(
        &self,
        result: &mut Map<String, Value>,
        patch: &Map<String, Value>,
        id: Option<TypeId>,
    ) {
        for (key, directive) in patch {
            if let (Some(name), Value::Array(deleted)) = (key.strip_prefix(DELETE_FROM), directive)
                && let Some(Value::Array(list)) = result.get_mut(name)
            {
                list.retain(|element| !deleted.contains(element));
            }
            if let Some(name) = key.strip_prefix(ELEMENT_ORDER)
                && !patch.contains_key(name)
                && let Some(Value::Array(list)) = result.get_mut(name)
            {
                let field = id.and_then(|id| self.types.object(id).field(name));
                let old = std::mem::take(list);
                *list = ordered(old.clone(), &old, order_of(patch, name), field.map(|field| &field.merge));
            }
        }
    }

    fn lists(
        &self,
        old: &[Value],
        change: &[Value],
        field: Option<&Field>,
        order: Option<&[Value]>,
        name: &str,
    ) -> Result<Vec<Value>, PatchError> {
        let merge = field.map_or(&ListMerge::Atomic, |field| &field.merge);
        match merge {
            ListMerge::Atomic => Ok(change.iter().filter(|one| !is_directive(one)).map(clean).collect()),
            ListMerge::Set => {
                let mut result = old.to_vec();
                for element in change {
                    if !result.contains(element) {
                        result.push(element.clone());
                    }
                }
                Ok(ordered(result, old, order, Some(merge)))
            }
            ListMerge::ByKey(key) => {
                let element_id = field.and_then(|field| match &field.shape {
                    Shape::List(element) => shape_id(element),
                    _ => None,
                });
                let result = self.by_key(old, change, key, element_id, name)?;
                Ok(ordered(result, old, order, Some(merge)))
            }
        }
    }

    fn by_key(
        &self,
        old: &[Value],
        change: &[Value],
        key: &str,
        id: Option<TypeId>,
        name: &str,
    ) -> Result<Vec<Value>, PatchError> {
        let replaces =
            change.iter().any(|one| is_directive(one) && object::str_at(one, &[PATCH]) == "replace");
        if replaces {
            return Ok(change.iter().filter(|one| !is_directive(one)).map(clean).collect());
        }
        let mut result = old.to_vec();
        for element in change {
            let Value::Object(patch) = element else {
                return Err(PatchError::Malformed(format!("an element of {name} is not an object")));
            };
            let Some(identity) = patch.get(key) else {
                let map = Value::Object(patch.clone());
                let reason = format!("map: {map} does not contain declared merge key: {key}");
                return Err(PatchError::Malformed(reason));
            };
            let at = result.iter().position(|old| old.get(key) == Some(identity));
            let directive = patch.get(PATCH).and_then(Value::as_str);
            match (at, directive) {
                // Upstream deletes every element of that key, not only the first.
                (_, Some("delete")) => result.retain(|old| old.get(key) != Some(identity)),
                (Some(at), Some("replace")) => result[at] = Value::Object(without_directives(patch)),
                (Some(at), _) => {
                    let old = result[at].as_object().cloned().unwrap_or_default();
                    result[at] = Value::Object(self.objects(&old, patch, id)?);
                }
                (None, _) => result.push(Value::Object(self.objects(&Map::new(), patch, id)?)),
            }
        }
        Ok(result)
    }
}

fn order_of<'a>(patch: &'a Map<String, Value>, list: &str) -> Option<&'a [Value]> {
    patch.get(&format!("{ELEMENT_ORDER}{list}")).and_then(Value::as_array).map(Vec::as_slice)
}

fn object_id(field: &Field) -> Option<TypeId> {
    shape_id(&field.shape)
}

fn shape_id(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Object(id) => Some(*id),
        _ => None,
    }
}

/// An element that says what to do and is nothing itself: `{"$patch": "replace"}`.
fn is_directive(element: &Value) -> bool {
    element.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(PATCH))
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(k, v)| (k.clone(), clean(v)))
        .collect()
}

/// A value of a patch as it is stored: without directives and nulls.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        other => other.clone(),
    }
}

/// Puts the elements that `order` names into its order; the others, which the client does not know of, keep
/// their place relative to their predecessors in `old`, as upstream's `normalizeElementOrder`.
fn ordered(
    merged: Vec<Value>,
    old: &[Value],
    order: Option<&[Value]>,
    merge: Option<&ListMerge>,
) -> Vec<Value> {
    let Some(order) = order else { return merged };
    let identity = |element: &Value| -> Value {
        match merge {
            Some(ListMerge::ByKey(key)) => element.get(&**key).cloned().unwrap_or(Value::Null),
            _ => element.clone(),
        }
    };
    let place = |element: &Value| order.iter().position(|ordered| identity(ordered) == identity(element));
    let (mut known, unknown): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|one| place(one).is_some());
    known.sort_by_key(|element| place(element));
    let old_place =
        |element: &Value| old.iter().position(|old| identity(old) == identity(element)).unwrap_or(usize::MAX);
    // Both lists are in order now: merge them by where their elements stood before.
    let mut result = Vec::with_capacity(known.len() + unknown.len());
    let mut unknown = unknown.into_iter().peekable();
    for element in known {
        while unknown.peek().is_some_and(|other| old_place(other) < old_place(&element)) {
            result.extend(unknown.next());
        }
        result.push(element);
    }
    result.extend(unknown);
    result
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
    const POD: &str = "io.k8s.api.core.v1.Pod";

    fn containers(list: Value) -> Value {
        json!({"spec": {"containers": list}})
    }

    fn pod(current: Value, patch: Value) -> Value {
        merge(&containers(current), &containers(patch), POD).expect("merges")["spec"]["containers"].clone()
    }

    #[test]
    fn containers_merge_by_name() {
        let current = json!([{"name": "web", "image": "nginx:1", "env": [{"name": "A", "value": "1"}]}, {"name": "log", "image": "log:1"}]);
        let patch = json!([{"name": "web", "image": "nginx:2", "env": [{"name": "B", "value": "2"}]}]);
        assert_eq!(
            pod(current, patch),
            json!([
                {"name": "web", "image": "nginx:2", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                {"name": "log", "image": "log:1"},
            ])
        );
    }

    #[test]
    fn what_kubectl_set_image_sends() {
        let current = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}}}});
        let patch = json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
            "containers": [{"image": "b:2", "name": "b"}],
        }}}});
        assert_eq!(
            merge(&current, &patch, DEPLOYMENT).expect("merges"),
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}]}}}})
        );
    }

    #[test]
    fn directives_delete_and_replace() {
        let current = json!([{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]);
        assert_eq!(
            pod(current.clone(), json!([{"name": "a", "$patch": "delete"}])),
            json!([{"name": "b", "image": "b"}])
        );
        assert_eq!(
            pod(current.clone(), json!([{"name": "c"}, {"$patch": "replace"}])),
            json!([{"name": "c"}])
        );
        assert_eq!(
            pod(current, json!([{"name": "a", "$patch": "replace", "tty": true}])),
            json!([{"name": "a", "tty": true}, {"name": "b", "image": "b"}])
        );
        let replaced = merge(
            &json!({"spec": {"nodeSelector": {"a": "1"}, "nodeName": "x"}}),
            &json!({"spec": {"nodeSelector": {"$patch": "replace", "b": "2"}}}),
            POD,
        );
        assert_eq!(replaced.expect("merges"), json!({"spec": {"nodeSelector": {"b": "2"}, "nodeName": "x"}}));
    }

    #[test]
    fn null_deletes_and_atomic_lists_are_replaced() {
        let current = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}});
        let patch = json!({"metadata": {"labels": {"a": null}}, "spec": {"tolerations": [{"key": "c"}]}});
        assert_eq!(
            merge(&current, &patch, POD).expect("merges"),
            json!({"metadata": {"labels": {"b": "2"}}, "spec": {"tolerations": [{"key": "c"}]}})
        );
    }

    #[test]
    fn primitive_lists_merge_as_sets_and_lose_what_is_listed() {
        let current = json!({"metadata": {"finalizers": ["a", "b"]}});
        let merged = merge(&current, &json!({"metadata": {"finalizers": ["b", "c"]}}), POD).expect("merges");
        assert_eq!(merged["metadata"]["finalizers"], json!(["a", "b", "c"]));
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b"]}});
        let merged = merge(&current, &patch, POD).expect("merges");
        assert_eq!(merged["metadata"]["finalizers"], json!(["b"]));
    }

    #[test]
    fn retain_keys_drops_the_rest() {
        let current =
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let merged = merge(&current, &patch, DEPLOYMENT).expect("merges");
        assert_eq!(merged["spec"]["strategy"], json!({"type": "Recreate"}));
        let volumes = |list: Value| json!({"spec": {"volumes": list}});
        let current = volumes(json!([{"name": "v", "emptyDir": {}}]));
        let patch =
            volumes(json!([{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]));
        assert_eq!(
            merge(&current, &patch, POD).expect("merges"),
            volumes(json!([{"name": "v", "secret": {"secretName": "s"}}]))
        );
    }

    #[test]
    fn element_order_keeps_what_the_client_does_not_know() {
        let order = |list: &[&str]| list.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let current = json!({"spec": {"containers": order(&["a", "server", "b"])}});
        let patch = json!({"spec": {"$setElementOrder/containers": order(&["b", "a", "c"]), "containers": order(&["c"])}});
        let merged = merge(&current, &patch, POD).expect("merges");
        let names: Vec<_> = merged["spec"]["containers"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|c| c["name"].clone())
            .collect();
        assert_eq!(names, ["server", "b", "a", "c"]);
    }

    #[test]
    fn an_element_without_its_key_is_an_error() {
        let error =
            merge(&containers(json!([])), &containers(json!([{"image": "a"}])), POD).expect_err("no name");
        assert!(error.to_string().contains("does not contain declared merge key: name"), "{error}");
        let ports = json!({"spec": {"ports": [{"nodePort": 1}]}});
        assert!(merge(&json!({}), &ports, "io.k8s.api.core.v1.Service").is_err());
    }
}
