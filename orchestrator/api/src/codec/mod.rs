//! From a request's bytes to a checked object: JSON, YAML and Kubernetes protobuf in, canonical JSON out.
//!
//! Whatever the format, the object ends up as the JSON that Kubernetes' own types would print: nulls gone,
//! quantities canonical, bytes as base64. The schemas ([`crate::schema`]) say which fields there are, so that
//! one mechanism finds wrong types, unknown fields and the meaning of protobuf fields.

mod canonical;
mod duplicates;
mod protobuf;
mod time;
mod wire;

use serde_json::Value;

pub use time::{micro_time, seconds_time};

use crate::{Status, object, resource::Kind};

/// The largest body that is read, in bytes; upstream's limit.
pub const BODY_LIMIT_BYTES: usize = 3 * 1024 * 1024;

/// Media types of request bodies, for "415 Unsupported Media Type".
pub const MEDIA_TYPES: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`, also when a client names no media type.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`: `k8s\0`, then a `runtime.Unknown`.
    Protobuf,
}

impl Format {
    /// The format of a Content-Type header, whose parameters do not matter.
    pub fn of_content_type(header: &str) -> Option<Self> {
        match header.split(';').next().unwrap_or_default().trim() {
            "" | "*/*" | "application/json" => Some(Self::Json),
            "application/yaml" | "application/apply-patch+yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// What happens to fields that the kind does not have or that a body has twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and the client is warned. What upstream does when it is not asked.
    #[default]
    Warn,
    /// They are an error.
    Strict,
}

impl FieldValidation {
    /// The mode that the `fieldValidation` query parameter asks for; `None` when there is no such mode.
    pub fn of_query(value: &str) -> Option<Self> {
        match value {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// A checked body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object, canonical, with `apiVersion` and `kind`.
    pub object: Value,
    /// What to tell the client in `Warning` headers.
    pub warnings: Vec<String>,
}

/// Why a body is not an object of its kind. All are a client's mistake.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not parse.
    #[error("the object provided is unrecognized (must be of type {kind}): {reason}")]
    Syntax {
        /// The kind that was expected.
        kind: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// The body is of another group or version.
    #[error("the API version in the data ({found}) does not match the expected API version ({expected})")]
    ApiVersion {
        /// What the body says.
        found: String,
        /// What the path says.
        expected: String,
    },
    /// The body is of another kind.
    #[error(
        "{found} in version {version:?} cannot be handled as a {expected}: the kind in the data does not match the expected kind"
    )]
    OtherKind {
        /// What the body says.
        found: String,
        /// The body's version.
        version: String,
        /// What the path says.
        expected: &'static str,
    },
    /// A value has the wrong type, or the strict mode found fields that are not there or there twice.
    #[error("{kind} in version {version:?} cannot be handled as a {kind}: {reason}")]
    Content {
        /// The kind.
        kind: &'static str,
        /// Its version.
        version: &'static str,
        /// What is wrong where.
        reason: String,
    },
}

impl From<DecodeError> for Status {
    fn from(error: DecodeError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// Reads a body that should be of `kind`.
///
/// A body without `apiVersion` and `kind` gets those of the path, as upstream does.
pub fn decode(
    format: Format,
    body: &[u8],
    kind: Kind,
    mode: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let syntax = |reason: String| DecodeError::Syntax { kind: kind.kind, reason };
    let (object, duplicates) = match format {
        Format::Json => duplicates::from_json(body).map_err(syntax)?,
        Format::Yaml => duplicates::from_yaml(body).map_err(syntax)?,
        Format::Protobuf => (protobuf::decode(body, kind).map_err(syntax)?, Vec::new()),
    };
    finish(object, kind, mode, &duplicates)
}

/// Checks and canonicalizes an object that is JSON already: the result of a patch.
pub fn check(object: Value, kind: Kind, mode: FieldValidation) -> Result<Decoded, DecodeError> {
    finish(object, kind, mode, &[])
}

/// Reads a body whatever it may be: a patch, in JSON or YAML.
pub fn parse(format: Format, body: &[u8]) -> Result<Value, DecodeError> {
    let syntax = |reason| DecodeError::Syntax { kind: "Patch", reason };
    match format {
        Format::Json => serde_json::from_slice(body).map_err(|error| syntax(error.to_string())),
        Format::Yaml => duplicates::from_yaml(body).map(|(value, _)| value).map_err(syntax),
        Format::Protobuf => Err(syntax("a patch cannot be protobuf".to_owned())),
    }
}

fn finish(
    mut object: Value,
    kind: Kind,
    mode: FieldValidation,
    duplicates: &[String],
) -> Result<Decoded, DecodeError> {
    if !object.is_object() {
        let reason = format!("expected an object, found {}", canonical::type_name(&object));
        return Err(DecodeError::Syntax { kind: kind.kind, reason });
    }
    check_type(&mut object, kind)?;
    let content = |reason| DecodeError::Content { kind: kind.kind, version: kind.version, reason };
    let unknown = canonical::canonicalize(&mut object, kind.schema).map_err(content)?;
    let mut findings: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    findings.extend(duplicates.iter().map(|path| format!("duplicate field {path:?}")));
    match mode {
        FieldValidation::Ignore => Ok(Decoded { object, warnings: Vec::new() }),
        FieldValidation::Warn => Ok(Decoded { object, warnings: findings }),
        FieldValidation::Strict if findings.is_empty() => Ok(Decoded { object, warnings: findings }),
        FieldValidation::Strict => Err(content(format!("strict decoding error: {}", findings.join(", ")))),
    }
}

/// Holds `apiVersion` and `kind` of the body against the path's. `DeleteOptions` come in any version.
fn check_type(object: &mut Value, kind: Kind) -> Result<(), DecodeError> {
    let expected = kind.api_version();
    let found = object::str_at(object, &["apiVersion"]);
    if !found.is_empty() && found != expected && kind.kind != "DeleteOptions" {
        return Err(DecodeError::ApiVersion { found: found.to_owned(), expected });
    }
    let found = object::str_at(object, &["kind"]);
    if !found.is_empty() && found != kind.kind {
        let version = object::str_at(object, &["apiVersion"]).to_owned();
        return Err(DecodeError::OtherKind { found: found.to_owned(), version, expected: kind.kind });
    }
    object::set(object, &["apiVersion"], expected);
    object::set(object, &["kind"], kind.kind);
    Ok(())
}

#[cfg(test)]
mod tests;
