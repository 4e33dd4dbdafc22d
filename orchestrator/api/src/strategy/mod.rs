//! Who may change what: the rules between a client's body and what is stored.
//!
//! A [`Strategy`] is the behaviour of one kind, as functions; the registry's rows point at one each. The
//! apiserver alone sets uid, creationTimestamp and resourceVersion, because only it has a clock, randomness
//! and the store.

pub mod event;
mod kinds;

use serde_json::{Value, json};

use crate::{
    Resource, object,
    validation::{Errors, NameRule},
};

pub(crate) use kinds::{
    CONFIG_MAP, DEPLOYMENT, ENDPOINT_SLICE, EVENT, EVENT_V1, INGRESS, INGRESS_CLASS, LEASE, NAMESPACE, NODE,
    POD, REPLICA_SET, REVIEW, SECRET, SERVICE, SERVICE_ACCOUNT,
};

/// The behaviour of one kind.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Strategy {
    /// The rule for names.
    pub name: NameRule,
    /// Whether the kind has a status that only `/status` writes.
    pub status: bool,
    /// Whether `metadata.generation` counts changes of the wish.
    pub generation: bool,
    /// Whether an update without `resourceVersion` overwrites whatever is there.
    pub unconditional_update: bool,
    /// Whether a PUT or apply of a missing object creates it.
    pub create_on_update: bool,
    /// Whether an update is held against the rules for new objects too.
    pub revalidate: bool,
    /// Fills in what a client left out.
    pub default: fn(&mut Value),
    /// The kind's own part of [`prepare_create`].
    pub prepare_create: fn(&mut Value),
    /// The kind's own part of [`prepare_update`]: new, old.
    pub prepare_update: fn(&mut Value, &Value),
    /// The kind's own part of [`prepare_status_update`]: new, old.
    pub prepare_status: fn(&mut Value, &Value),
    /// The rules for an object in itself.
    pub validate: fn(&Value, &mut Errors),
    /// The rules between new and old.
    pub validate_update: fn(&Value, &Value, &mut Errors),
    /// The rules between new and old status.
    pub validate_status: fn(&Value, &Value, &mut Errors),
}

/// For kinds whose objects need no preparation.
pub(crate) fn unchanged(_: &mut Value) {}

/// For kinds whose updates need no preparation.
pub(crate) fn accepted(_: &mut Value, _: &Value) {}

/// Drops what a client may not set when it creates an object and adds what starts out fixed.
pub fn prepare_create(row: &Resource, new: &mut Value) {
    for field in [
        "uid",
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        object::remove(new, &["metadata", field]);
    }
    if row.strategy.status {
        object::remove(new, &["status"]);
    }
    if row.strategy.generation {
        object::set(new, &["metadata", "generation"], 1);
    }
    (row.strategy.prepare_create)(new);
}

/// What a client may never change in an object's metadata. `resourceVersion` stays as the client sent it: the
/// apiserver compares it.
const FIXED_METADATA: &[&str] = &[
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "generation",
];

/// Carries over what a client may not change, and raises the generation if the wish changed.
pub fn prepare_update(row: &Resource, new: &mut Value, old: &Value) {
    keep_metadata(new, old, FIXED_METADATA);
    if row.strategy.status {
        object::copy(new, old, &["status"]);
    }
    (row.strategy.prepare_update)(new, old);
    if row.strategy.generation && wish_changed(new, old) {
        let generation = object::int_at(old, &["metadata", "generation"]).unwrap_or(0);
        object::set(new, &["metadata", "generation"], generation + 1);
    }
}

/// Makes `new` the old object with the new status: spec and metadata stay, but for `managedFields`, labels
/// and annotations of a kind that lets its status writer set them.
pub fn prepare_status_update(row: &Resource, new: &mut Value, old: &Value) {
    keep_metadata(new, old, FIXED_METADATA);
    let (status, version) = (object::remove(new, &["status"]), object::resource_version(new).to_owned());
    let mut result = old.clone();
    // Node controllers and kubelets write labels and annotations together with the status, as upstream allows.
    for field in ["labels", "annotations"] {
        if matches!(row.kind, "Node" | "Pod") {
            object::copy(&mut result, new, &["metadata", field]);
        }
    }
    if version.is_empty() {
        object::remove(&mut result, &["metadata", "resourceVersion"]);
    } else {
        object::set(&mut result, &["metadata", "resourceVersion"], version);
    }
    match status {
        Some(status) => object::set(&mut result, &["status"], status),
        None => object::set(&mut result, &["status"], json!({})),
    }
    *new = result;
    (row.strategy.prepare_status)(new, old);
}

fn keep_metadata(new: &mut Value, old: &Value, fields: &[&str]) {
    for field in fields {
        object::copy(new, old, &["metadata", field]);
    }
}

/// Whether anything but metadata and status differs.
fn wish_changed(new: &Value, old: &Value) -> bool {
    let is_wish = |key: &str| !matches!(key, "metadata" | "status" | "apiVersion" | "kind");
    let has_other = |one: &Value, other: &Value| {
        one.as_object()
            .into_iter()
            .flatten()
            .any(|(key, value)| is_wish(key) && other.get(key) != Some(value))
    };
    has_other(new, old) || has_other(old, new)
}

#[cfg(test)]
mod tests;
