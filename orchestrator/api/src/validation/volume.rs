//! Rules for volumes.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    names::unique_label,
};
use crate::object;

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// The largest file mode.
const MODE_MAX: i64 = 0o777;

/// Checks the volumes and returns their names.
pub(super) fn volumes<'a>(volumes: &'a [Value], list: &Path<'_>, errors: &mut Errors) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = list.index(index);
        unique_label(volume, &path, &mut names, errors);
        source(volume, &path, errors);
    }
    names
}

fn source(volume: &Value, path: &Path<'_>, errors: &mut Errors) {
    let sources: Vec<&String> =
        volume.as_object().into_iter().flat_map(serde_json::Map::keys).filter(|key| *key != "name").collect();
    match sources.as_slice() {
        [] => errors.push(FieldError::required(path, "must specify a volume type")),
        [_] => {}
        [_, extra, ..] => {
            errors.push(FieldError::forbidden(path.child(extra), "may not specify more than 1 volume type"));
        }
    }
    for (kind, name) in [
        ("configMap", "name"),
        ("secret", "secretName"),
        ("hostPath", "path"),
        ("persistentVolumeClaim", "claimName"),
    ] {
        if let Some(source) = object::get(volume, &[kind])
            && object::str_at(source, &[name]).is_empty()
        {
            errors.push(FieldError::required(path.child(kind).child(name), ""));
        }
    }
    let host = path.child("hostPath");
    if object::str_at(volume, &["hostPath", "path"]).split('/').any(|part| part == "..") {
        let bad = object::str_at(volume, &["hostPath", "path"]);
        errors.push(FieldError::invalid(host.child("path"), bad, "must not contain '..'"));
    }
    let host_type = object::str_at(volume, &["hostPath", "type"]);
    if !HOST_PATH_TYPES.contains(&host_type) {
        errors.push(FieldError::not_supported(host.child("type"), host_type, HOST_PATH_TYPES));
    }
    for kind in ["configMap", "secret", "downwardAPI", "projected"] {
        let path = path.child(kind);
        if let Some(mode) = object::int_at(volume, &[kind, "defaultMode"]) {
            file_mode(mode, &path.child("defaultMode"), errors);
        }
        items(object::list_at(volume, &[kind, "items"]), kind, &path.child("items"), errors);
    }
}

fn items(items: &[Value], kind: &str, list: &Path<'_>, errors: &mut Errors) {
    for (index, item) in items.iter().enumerate() {
        let path = list.index(index);
        if kind != "downwardAPI" && object::str_at(item, &["key"]).is_empty() {
            errors.push(FieldError::required(path.child("key"), ""));
        }
        let at = object::str_at(item, &["path"]);
        if at.is_empty() {
            errors.push(FieldError::required(path.child("path"), ""));
        } else if at.starts_with('/') {
            errors.push(FieldError::invalid(path.child("path"), at, "must be a relative path"));
        } else if at.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(path.child("path"), at, "must not contain '..'"));
        }
        if let Some(mode) = object::int_at(item, &["mode"]) {
            file_mode(mode, &path.child("mode"), errors);
        }
    }
}

fn file_mode(mode: i64, path: &Path<'_>, errors: &mut Errors) {
    if !(0..=MODE_MAX).contains(&mode) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode, detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(list: Value) -> Vec<String> {
        let mut errors = Errors::default();
        volumes(list.as_array().expect("a list"), &Path::root("v"), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn volumes_have_one_source_and_distinct_names() {
        assert!(
            messages(
                json!([{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/", "type": ""}}])
            )
            .is_empty()
        );
        for (list, message) in [
            (json!([{"name": "a"}]), "v[0]: Required value: must specify a volume type"),
            (
                json!([{"name": "a", "emptyDir": {}, "secret": {"secretName": "s"}}]),
                "v[0].secret: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!([{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]),
                r#"v[1].name: Duplicate value: "a""#,
            ),
            (json!([{"name": "a", "configMap": {}}]), "v[0].configMap.name: Required value"),
            (
                json!([{"name": "a", "secret": {"secretName": "s", "defaultMode": 512}}]),
                "v[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            ),
            (
                json!([{"name": "a", "configMap": {"name": "c", "items": [{"key": "k", "path": "../k"}]}}]),
                r#"v[0].configMap.items[0].path: Invalid value: "../k": must not contain '..'"#,
            ),
        ] {
            assert_eq!(messages(list), [message]);
        }
    }
}
