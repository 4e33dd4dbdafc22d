//! A rule that an object breaks, and the path of the field that breaks it.

use std::fmt;

use serde_json::Value;

/// Why a field is wrong; decides the first words of the message and the cause's machine-readable reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It must be there.
    Required,
    /// Its value breaks a rule.
    Invalid,
    /// Its value must be unique and is not.
    Duplicate,
    /// It may not be set, or not changed.
    Forbidden,
    /// Its value is none of the allowed ones.
    NotSupported,
    /// It names something that is not there.
    NotFound,
    /// It is longer than allowed.
    TooLong,
    /// It has more elements than allowed.
    TooMany,
    /// Its value has the wrong type.
    TypeInvalid,
}

impl Reason {
    /// The `reason` of a Status cause.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotSupported => "FieldValueNotSupported",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::NotSupported => "Unsupported value",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

/// One broken rule. Displays as upstream: `spec.ports[0].port: Invalid value: 70000: must be …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, `spec.ports[0].port`.
    pub field: String,
    /// Why it is wrong.
    pub reason: Reason,
    /// The rule, for people; may be empty.
    pub detail: String,
    /// The value as the message shows it; empty where the message shows none.
    pub bad_value: String,
}

impl FieldError {
    fn new(field: impl fmt::Display, reason: Reason, bad_value: String, detail: impl Into<String>) -> Self {
        Self { field: field.to_string(), reason, detail: detail.into(), bad_value }
    }

    /// The field must be there.
    pub fn required(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(field, Reason::Required, String::new(), detail)
    }

    /// The value breaks the rule in `detail`.
    pub fn invalid(field: impl fmt::Display, bad: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(field, Reason::Invalid, shown(&bad.into()), detail)
    }

    /// The value was there before.
    pub fn duplicate(field: impl fmt::Display, bad: impl Into<Value>) -> Self {
        Self::new(field, Reason::Duplicate, shown(&bad.into()), "")
    }

    /// The field may not be set or changed.
    pub fn forbidden(field: impl fmt::Display, detail: impl Into<String>) -> Self {
        Self::new(field, Reason::Forbidden, String::new(), detail)
    }

    /// The value is none of `supported`.
    pub fn not_supported(field: impl fmt::Display, bad: impl Into<Value>, supported: &[&str]) -> Self {
        let mut names: Vec<String> = supported.iter().map(|name| format!("{name:?}")).collect();
        names.sort_unstable();
        Self::new(
            field,
            Reason::NotSupported,
            shown(&bad.into()),
            format!("supported values: {}", names.join(", ")),
        )
    }

    /// The value names something that is not there.
    pub fn not_found(field: impl fmt::Display, bad: impl Into<Value>) -> Self {
        Self::new(field, Reason::NotFound, shown(&bad.into()), "")
    }

    /// The value is longer than `limit` bytes.
    pub fn too_long(field: impl fmt::Display, limit: usize) -> Self {
        Self::new(field, Reason::TooLong, String::new(), format!("may not be more than {limit} bytes"))
    }

    /// There are `count` elements where `limit` are allowed.
    pub fn too_many(field: impl fmt::Display, count: usize, limit: usize) -> Self {
        let detail = format!("must have at most {limit} items");
        Self::new(field, Reason::TooMany, count.to_string(), detail)
    }

    /// The message without the field, as in a Status cause.
    pub fn body(&self) -> String {
        let mut body = self.reason.words().to_owned();
        for part in [&self.bad_value, &self.detail] {
            if !part.is_empty() {
                body.push_str(": ");
                body.push_str(part);
            }
        }
        body
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A value as Go prints it, which is what clients are used to: maps of strings as `map[string]string{…}`.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(map) if map.values().all(Value::is_string) => {
            let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
            format!("map[string]string{{{}}}", entries.join(", "))
        }
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

/// The rules broken so far.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// Adds one.
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order found.
    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

/// Where a rule is looking. Cheap to extend: it borrows its parent and becomes a string only in an error.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// A path that starts at `field`, which may itself be dotted.
    pub const fn root(field: &'a str) -> Self {
        Self { parent: None, segment: Segment::Field(field) }
    }

    /// `self.field`; `field` may be dotted.
    #[must_use]
    pub const fn child(&'a self, field: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Field(field) }
    }

    /// `self[index]`.
    #[must_use]
    pub const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), segment: Segment::Index(index) }
    }

    /// `self[key]`, for maps.
    #[must_use]
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Segment::Field(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{key}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_read_as_upstream() {
        let spec = Path::root("spec");
        let ports = spec.child("ports");
        let first = ports.index(0);
        let table = [
            (FieldError::required(spec.child("selector"), ""), "spec.selector: Required value"),
            (
                FieldError::invalid(first.child("port"), 70000, "must be between 1 and 65535, inclusive"),
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                FieldError::not_supported(first.child("protocol"), "tcp", &["TCP", "UDP", "SCTP"]),
                r#"spec.ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#,
            ),
            (
                FieldError::invalid(
                    "spec.template.metadata.labels",
                    json!({"app": "web"}),
                    "`selector` does not match template `labels`",
                ),
                r#"spec.template.metadata.labels: Invalid value: map[string]string{"app":"web"}: `selector` does not match template `labels`"#,
            ),
            (
                FieldError::duplicate(first.child("name"), "http"),
                r#"spec.ports[0].name: Duplicate value: "http""#,
            ),
            (FieldError::forbidden("spec.x", "no"), "spec.x: Forbidden: no"),
        ];
        for (error, message) in table {
            assert_eq!(error.to_string(), message);
        }
    }
}
