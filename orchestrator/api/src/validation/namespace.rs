//! Rules for namespaces.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    labels::label_key_problems,
};
use crate::object;

pub(crate) fn namespace(namespace: &Value, errors: &mut Errors) {
    let list = Path::root("spec.finalizers");
    for (index, finalizer) in object::list_at(namespace, &["spec", "finalizers"]).iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        for problem in label_key_problems(name) {
            errors.push(FieldError::invalid(list.index(index), name, problem));
        }
    }
}
