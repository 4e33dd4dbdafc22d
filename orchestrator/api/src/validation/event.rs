//! Rules for events.

use serde_json::Value;

use super::error::{Errors, FieldError};
use crate::object;

/// An event about something in a namespace lies in that namespace; about anything else, in `default`.
pub(crate) fn event(event: &Value, errors: &mut Errors) {
    let namespace = object::namespace(event);
    let about = object::str_at(event, &["involvedObject", "namespace"]);
    let fits = if about.is_empty() {
        matches!(namespace, "" | "default" | "kube-system")
    } else {
        about == namespace
    };
    if !fits {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_lies_where_its_object_does() {
        for (namespace, about, count) in [("a", "a", 0), ("a", "b", 1), ("default", "", 0), ("a", "", 1)] {
            let mut errors = Errors::default();
            event(
                &json!({"metadata": {"namespace": namespace}, "involvedObject": {"namespace": about}}),
                &mut errors,
            );
            assert_eq!(errors.into_vec().len(), count, "{namespace} {about}");
        }
    }
}
