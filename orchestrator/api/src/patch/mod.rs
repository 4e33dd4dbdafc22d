//! The three kinds of patches: JSON patch, merge patch, strategic merge patch.
//!
//! A patch is applied to what is stored, and its result is then an update like any other: checked by the
//! codec, defaulted, prepared and validated by the caller.

mod strategic;

use serde_json::Value;

use crate::{
    Status,
    codec::{self, Format},
    resource::Kind,
};

/// Media types of patches, for "415 Unsupported Media Type".
pub const MEDIA_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// The most operations of a JSON patch; upstream's limit.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// How a patch is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists merge by key.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// The type of a Content-Type header.
    pub fn of_content_type(header: &str) -> Option<Self> {
        match header.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is wrong.
    #[error("error decoding patch: {0}")]
    Malformed(String),
    /// The patch does not fit the object.
    #[error("the server rejected our request due to an error in our request: {0}")]
    Unappliable(String),
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::Malformed(_) => Self::bad_request(error.to_string()),
            PatchError::Unappliable(_) => {
                Self { code: 422, reason: "Invalid", message: error.to_string(), ..Self::default() }
            }
        }
    }
}

/// Applies the patch in `body` to `current`, which is of `kind`.
///
/// `current` is `{}` when an apply creates the object.
///
/// An apply patch merges strategically too: the fields it names win, lists merge by key, and what it does not
/// name stays. Field ownership is not kept.
pub fn apply(patch_type: PatchType, body: &[u8], current: &Value, kind: Kind) -> Result<Value, PatchError> {
    let format = if patch_type == PatchType::Apply { Format::Yaml } else { Format::Json };
    let patch = codec::parse(format, body).map_err(|error| PatchError::Malformed(error.to_string()))?;
    match patch_type {
        PatchType::Json => json(&patch, current),
        PatchType::Merge => {
            expect_object(&patch)?;
            let mut result = current.clone();
            json_patch::merge(&mut result, &patch);
            Ok(result)
        }
        PatchType::Strategic | PatchType::Apply => {
            expect_object(&patch)?;
            strategic::merge(current, &patch, kind.schema)
        }
    }
}

fn json(patch: &Value, current: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Malformed(error.to_string()))?;
    if operations.0.len() > JSON_PATCH_OPERATIONS_MAX {
        let reason =
            format!("{} operations where {JSON_PATCH_OPERATIONS_MAX} are allowed", operations.0.len());
        return Err(PatchError::Malformed(reason));
    }
    let mut result = current.clone();
    json_patch::patch(&mut result, &operations)
        .map_err(|error| PatchError::Unappliable(error.to_string()))?;
    Ok(result)
}

fn expect_object(patch: &Value) -> Result<(), PatchError> {
    if patch.is_object() {
        Ok(())
    } else {
        Err(PatchError::Malformed("a patch must be an object".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::find;

    fn patched(patch_type: PatchType, patch: &Value) -> Result<Value, PatchError> {
        let current = json!({"metadata": {"name": "c", "finalizers": ["a/b"]}, "data": {"a": "1", "b": "2"}});
        let kind = find("", "v1", "configmaps").expect("served").target();
        apply(patch_type, patch.to_string().as_bytes(), &current, kind)
    }

    #[test]
    fn merge_patches_replace_lists_and_delete_nulls() {
        let patch = json!({"metadata": {"finalizers": ["c/d"]}, "data": {"a": null, "c": "3"}});
        assert_eq!(
            patched(PatchType::Merge, &patch).expect("applies"),
            json!({"metadata": {"name": "c", "finalizers": ["c/d"]}, "data": {"b": "2", "c": "3"}})
        );
        let strategic = patched(PatchType::Strategic, &patch).expect("applies");
        assert_eq!(strategic["metadata"]["finalizers"], json!(["a/b", "c/d"]));
    }

    #[test]
    fn json_patches_apply_as_a_whole_or_not_at_all() {
        let patch = json!([{"op": "test", "path": "/data/a", "value": "1"}, {"op": "replace", "path": "/data/a", "value": "9"}]);
        assert_eq!(patched(PatchType::Json, &patch).expect("applies")["data"]["a"], "9");
        let patch = json!([{"op": "test", "path": "/data/a", "value": "2"}]);
        let status = Status::from(patched(PatchType::Json, &patch).expect_err("the test fails"));
        assert_eq!((status.code, status.reason), (422, "Invalid"));
        let status = Status::from(patched(PatchType::Json, &json!({"op": "add"})).expect_err("no list"));
        assert_eq!((status.code, status.reason), (400, "BadRequest"));
    }

    #[test]
    fn a_json_patch_has_a_limit() {
        let operation = json!({"op": "test", "path": "/data/a", "value": "1"});
        let patch = Value::Array(vec![operation; JSON_PATCH_OPERATIONS_MAX + 1]);
        assert!(matches!(patched(PatchType::Json, &patch), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for patch_type in [PatchType::Merge, PatchType::Strategic, PatchType::Apply] {
            assert!(
                matches!(patched(patch_type, &json!([])), Err(PatchError::Malformed(_))),
                "{patch_type:?}"
            );
        }
        assert_eq!(
            PatchType::of_content_type("application/merge-patch+json; charset=utf-8"),
            Some(PatchType::Merge)
        );
        assert_eq!(PatchType::of_content_type("application/json"), None);
    }
}
