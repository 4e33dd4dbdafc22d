//! An object as the cache holds it: the bytes a client reads, and the few fields it selects by.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};
use weir_api::{Resource, object};

/// A cached object. Shared by the cache, its history, and every response that is being sent.
#[derive(Debug)]
pub(crate) struct Object {
    /// `namespace/name`, or the name of an object of the cluster.
    pub(crate) key: Arc<str>,
    /// The revision of its last change.
    pub(crate) revision: u64,
    /// The whole object with its `resourceVersion`: what is sent, without copying.
    pub(crate) json: Bytes,
    /// Name, namespace, labels and the kind's selectable fields, at their usual paths: selectors look here, so that
    /// matching never parses `json`.
    selectable: Value,
}

impl Object {
    /// Makes the cached form of a stored object, whose `resourceVersion` is its revision.
    pub(crate) fn new(row: &Resource, key: Arc<str>, revision: u64, mut value: Value) -> Object {
        object::set(&mut value, &["metadata", "resourceVersion"], revision.to_string());
        let selectable = project(row, &value);
        Object { key, revision, json: value.to_string().into(), selectable }
    }

    /// The same object as of another revision: what is reported of an object that is gone.
    pub(crate) fn at(&self, revision: u64) -> Object {
        let mut value = self.value();
        object::set(&mut value, &["metadata", "resourceVersion"], revision.to_string());
        let (key, selectable) = (Arc::clone(&self.key), self.selectable.clone());
        Object { key, revision, json: value.to_string().into(), selectable }
    }

    /// The object, parsed.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).expect("the cache wrote this JSON itself")
    }

    /// What selectors look at.
    pub(crate) fn selectable(&self) -> &Value {
        &self.selectable
    }
}

fn project(row: &Resource, value: &Value) -> Value {
    let mut selectable = Value::Object(Map::new());
    for path in ["metadata.name", "metadata.namespace", "metadata.labels"].iter().chain(row.selectable) {
        let path: Vec<&str> = path.split('.').collect();
        if let Some(found) = object::get(value, &path) {
            object::set(&mut selectable, &path, found.clone());
        }
    }
    selectable
}
