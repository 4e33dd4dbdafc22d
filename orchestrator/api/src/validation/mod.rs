//! What makes an object wrong, in upstream's words: one file per kind or close family.
//!
//! A rule pushes a [`FieldError`] and goes on, so that a client learns of everything at once. The types of
//! fields are already right when validation runs (the codec saw to it) and defaults are filled in.

mod config;
mod container;
mod endpoint_slice;
mod error;
mod event;
mod ingress;
pub mod labels;
mod lease;
mod meta;
pub mod names;
mod namespace;
mod node;
mod pod;
mod pod_update;
mod probe;
mod service;
mod volume;
mod workload;

use serde_json::Value;

pub use error::{Errors, FieldError, Path, Reason};
pub use names::NameRule;

use crate::Resource;

pub(crate) use self::{
    config::{config_map, config_map_update, secret, secret_update, service_account},
    endpoint_slice::{endpoint_slice, endpoint_slice_update},
    event::event,
    ingress::{ingress, ingress_class, ingress_class_update},
    lease::lease,
    namespace::namespace,
    node::{node, node_update},
    pod::pod,
    pod_update::{pod_status_update, pod_update},
    service::{service, service_update},
    workload::{deployment, replica_set, workload_update},
};

/// Everything that is wrong with a new object of that row.
pub fn validate_create(row: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::object_meta(row, object, &mut errors);
    (row.strategy.validate)(object, &mut errors);
    errors.into_vec()
}

/// Everything that is wrong with an update, which must be valid in itself and change only what may change.
pub fn validate_update(row: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::object_meta(row, new, &mut errors);
    meta::object_meta_update(new, old, &mut errors);
    if row.strategy.revalidate {
        (row.strategy.validate)(new, &mut errors);
    }
    (row.strategy.validate_update)(new, old, &mut errors);
    errors.into_vec()
}

/// Everything that is wrong with an update of the status.
pub fn validate_status_update(row: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    meta::object_meta_update(new, old, &mut errors);
    (row.strategy.validate_status)(new, old, &mut errors);
    errors.into_vec()
}

/// Rules of a kind that has none of its own.
pub(crate) fn anything(_: &Value, _: &mut Errors) {}

/// Update rules of a kind that has none of its own.
pub(crate) fn any_change(_: &Value, _: &Value, _: &mut Errors) {}
