//! `Status` objects: how the apiserver says no, in upstream's words.
//!
//! kubectl prints `reason` and `message`, and client-go branches on `reason` and `code`; both are therefore
//! fixed here, one constructor per reason.

use serde_json::{Map, Value, json};

use crate::{Resource, validation::FieldError};

/// One of the causes in `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason, such as `FieldValueInvalid`.
    pub reason: String,
    /// What is wrong, for people.
    pub message: String,
    /// Path of the field; empty when no field is meant.
    pub field: String,
}

/// A failure, with everything that the client is told about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
    /// Group of the resource that is meant.
    pub group: String,
    /// Plural of the resource, or its kind in `Invalid`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
    /// What in detail is wrong.
    pub causes: Vec<Cause>,
    /// When a retry makes sense, in seconds; 0 says nothing.
    pub retry_after_seconds: u32,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), ..Self::default() }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        group.clone_into(&mut self.group);
        kind.clone_into(&mut self.kind);
        name.clone_into(&mut self.name);
        self
    }

    fn on(code: u16, reason: &'static str, row: &Resource, name: &str, message: String) -> Self {
        Self::new(code, reason, message).about(row.group, row.plural, name)
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no or wrong credentials.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 with upstream's sentence: `pods "x" is forbidden: why`.
    pub fn forbidden(row: &Resource, name: &str, why: &str) -> Self {
        Self::forbidden_for(row.group, row.plural, name, why)
    }

    /// 403 for a path or group that has no row: `User "x" cannot get path "/metrics"` goes into `why`.
    pub fn forbidden_for(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let qualified = qualified(group, plural);
        let message = match (qualified.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{qualified} is forbidden: {why}"),
            (false, false) => format!("{qualified} {name:?} is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(group, plural, name)
    }

    /// 404: the object is not there.
    pub fn not_found(row: &Resource, name: &str) -> Self {
        Self::on(404, "NotFound", row, name, format!("{} {name:?} not found", row.qualified()))
    }

    /// 404 for a path that is not served at all.
    pub fn unknown_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed(row: &Resource, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {:?}", row.qualified());
        Self::on(405, "MethodNotAllowed", row, "", message)
    }

    /// 406: no media type that the client accepts can be made.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: an object of that name is there already.
    pub fn already_exists(row: &Resource, name: &str) -> Self {
        Self::on(409, "AlreadyExists", row, name, format!("{} {name:?} already exists", row.qualified()))
    }

    /// 409 with a reason of its own: `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(row: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", row.qualified());
        Self::on(409, "Conflict", row, name, message)
    }

    /// 409 for a stale `resourceVersion`.
    pub fn stale(row: &Resource, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(row, name, why)
    }

    /// 410: the revision is compacted away. With `list` the client is told how to go on.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 415: the body's media type is not understood.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object breaks rules; each is a cause.
    pub fn invalid(row: &Resource, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_kind(row.group, row.kind, name, errors)
    }

    /// 422 for a body that is no row's, such as a `Scale`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let all = match errors {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {all}", qualified(group, kind));
        let mut status = Self::new(422, "Invalid", message).about(group, kind, name);
        status.causes = errors
            .iter()
            .map(|error| Cause {
                reason: error.reason.cause().to_owned(),
                message: error.body(),
                field: error.field.clone(),
            })
            .collect();
        status
    }

    /// 422 for a patch that cannot be applied.
    pub fn unprocessable(row: &Resource, name: &str, why: &str) -> Self {
        Self::on(422, "Invalid", row, name, why.to_owned())
    }

    /// 429: try again after that many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self { retry_after_seconds, ..Self::new(429, "TooManyRequests", message) }
    }

    /// 500: a bug or a broken store.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {why}"));
        status.causes.push(Cause { reason: String::new(), message: why.to_string(), field: String::new() });
        status
    }

    /// 503: not ready, or shutting down.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_seconds: 1, ..Self::new(503, "ServiceUnavailable", message) }
    }

    /// 504: the wait was longer than its bound.
    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self { retry_after_seconds, ..Self::new(504, "Timeout", message) }
    }

    /// 504 for a `resourceVersion` that the server has not reached in time.
    pub fn too_large_resource_version(wanted: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {wanted}, current: {current}");
        let mut status = Self::timeout(format!("Timeout: {message}"), 1);
        status.causes.push(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        status
    }

    /// Adds the UID of the object to the details.
    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    /// The JSON of the response.
    pub fn to_value(&self) -> Value {
        let mut details = Map::new();
        for (key, value) in
            [("group", &self.group), ("kind", &self.kind), ("name", &self.name), ("uid", &self.uid)]
        {
            if !value.is_empty() {
                details.insert(key.to_owned(), json!(value));
            }
        }
        if !self.causes.is_empty() {
            details.insert("causes".to_owned(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".to_owned(), json!(self.retry_after_seconds));
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut cause = Map::new();
        for (key, value) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !value.is_empty() {
                cause.insert(key.to_owned(), json!(value));
            }
        }
        Value::Object(cause)
    }
}

/// The answer to a DELETE that left nothing behind.
pub fn deleted(row: &Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": row.plural, "uid": uid});
    if !row.group.is_empty() {
        details["group"] = json!(row.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// The answer to a request whose result needs no words, such as a binding.
pub fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resource::find, validation::FieldError};

    #[test]
    fn messages_are_upstreams() {
        let deployments = find("apps", "v1", "deployments").expect("served");
        let pods = find("", "v1", "pods").expect("served");
        let table = [
            (Status::not_found(pods, "web"), 404, r#"pods "web" not found"#),
            (Status::already_exists(deployments, "web"), 409, r#"deployments.apps "web" already exists"#),
            (
                Status::stale(deployments, "web"),
                409,
                r#"Operation cannot be fulfilled on deployments.apps "web": the object has been modified; please apply your changes to the latest version and try again"#,
            ),
            (Status::forbidden(pods, "", "no"), 403, "pods is forbidden: no"),
            (
                Status::invalid(deployments, "web", &[FieldError::required("spec.selector", "")]),
                422,
                r#"Deployment.apps "web" is invalid: spec.selector: Required value"#,
            ),
        ];
        for (status, code, message) in table {
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn invalid_lists_every_cause() {
        let pods = find("", "v1", "pods").expect("served");
        let errors = [
            FieldError::required("spec.containers", ""),
            FieldError::invalid("spec.priority", 7, "too high"),
        ];
        let status = Status::invalid(pods, "web", &errors);
        assert_eq!(
            status.message,
            r#"Pod "web" is invalid: [spec.containers: Required value, spec.priority: Invalid value: 7: too high]"#
        );
        assert_eq!(
            status.to_value()["details"],
            json!({"kind": "Pod", "name": "web", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"},
                {"reason": "FieldValueInvalid", "message": "Invalid value: 7: too high", "field": "spec.priority"},
            ]})
        );
    }
}
