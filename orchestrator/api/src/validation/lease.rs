//! Rules for leases.

use serde_json::Value;

use super::error::{Errors, FieldError};
use crate::object;

pub(crate) fn lease(lease: &Value, errors: &mut Errors) {
    if let Some(seconds) = object::int_at(lease, &["spec", "leaseDurationSeconds"])
        && seconds <= 0
    {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(count) = object::int_at(lease, &["spec", "leaseTransitions"])
        && count < 0
    {
        errors.push(FieldError::invalid(
            "spec.leaseTransitions",
            count,
            "must be greater than or equal to 0",
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_lasts() {
        for (spec, count) in [
            (json!({"leaseDurationSeconds": 40, "leaseTransitions": 0}), 0),
            (json!({"leaseDurationSeconds": 0}), 1),
            (json!({"leaseTransitions": -1}), 1),
            (json!({}), 0),
        ] {
            let mut errors = Errors::default();
            lease(&json!({"spec": spec}), &mut errors);
            assert_eq!(errors.into_vec().len(), count);
        }
    }
}
