//! Rules for config maps, secrets and service accounts.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    names::{config_key, dns1123_subdomain},
};
use crate::object;

/// The most bytes that a ConfigMap or Secret may hold; upstream's limit.
const DATA_MAX: usize = 1024 * 1024;

/// Keys that a Secret of a type must have.
const REQUIRED_KEYS: [(&str, &[&str]); 4] = [
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
];

static DATA: Path<'static> = Path::root("data");
static BINARY_DATA: Path<'static> = Path::root("binaryData");

pub(crate) fn config_map(map: &Value, errors: &mut Errors) {
    let mut total = 0;
    for (path, field, other) in [(&DATA, "data", "binaryData"), (&BINARY_DATA, "binaryData", "data")] {
        for (key, value) in object::map_at(map, &[field]).into_iter().flatten() {
            for problem in config_key(key) {
                errors.push(FieldError::invalid(path.key(key), key.as_str(), problem));
            }
            if object::get(map, &[other, key]).is_some() {
                errors.push(FieldError::invalid(
                    path.key(key),
                    key.as_str(),
                    format!("duplicate of key present in {other}"),
                ));
            }
            let text = value.as_str().unwrap_or_default();
            total += if field == "binaryData" { decoded_length(text) } else { text.len() };
        }
    }
    if total > DATA_MAX {
        errors.push(FieldError::too_long("", DATA_MAX));
    }
}

pub(crate) fn config_map_update(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(new, old, &["data", "binaryData"], errors);
}

pub(crate) fn secret(secret: &Value, errors: &mut Errors) {
    let mut total = 0;
    for (key, value) in object::map_at(secret, &["data"]).into_iter().flatten() {
        for problem in config_key(key) {
            errors.push(FieldError::invalid(DATA.key(key), key.as_str(), problem));
        }
        total += decoded_length(value.as_str().unwrap_or_default());
    }
    if total > DATA_MAX {
        errors.push(FieldError::too_long(DATA, DATA_MAX));
    }
    let kind = object::str_at(secret, &["type"]);
    if let Some((_, keys)) = REQUIRED_KEYS.iter().find(|(name, _)| *name == kind) {
        for key in keys.iter().filter(|key| object::get(secret, &["data", key]).is_none()) {
            errors.push(FieldError::required(DATA.key(key), ""));
        }
    }
    match kind {
        "kubernetes.io/dockerconfigjson" => json_key(secret, ".dockerconfigjson", errors),
        "kubernetes.io/dockercfg" => json_key(secret, ".dockercfg", errors),
        "kubernetes.io/basic-auth" => {
            let has = |key| object::get(secret, &["data", key]).is_some();
            if !has("username") && !has("password") {
                errors.push(FieldError::required(DATA.key("username"), ""));
                errors.push(FieldError::required(DATA.key("password"), ""));
            }
        }
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if object::str_at(secret, &["metadata", "annotations", annotation]).is_empty() {
                errors.push(FieldError::required(Path::root("metadata.annotations").key(annotation), ""));
            }
        }
        _ => {}
    }
}

fn json_key(secret: &Value, key: &str, errors: &mut Errors) {
    let Some(text) = object::get(secret, &["data", key]).and_then(Value::as_str) else { return };
    let parsed = STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    if parsed.is_none() {
        errors.push(FieldError::invalid(
            DATA.key(key),
            "<secret contents redacted>",
            "invalid character in JSON",
        ));
    }
}

pub(crate) fn secret_update(new: &Value, old: &Value, errors: &mut Errors) {
    if object::get(new, &["type"]) != object::get(old, &["type"]) {
        errors.push(FieldError::invalid("type", object::str_at(new, &["type"]), "field is immutable"));
    }
    immutable(new, old, &["data"], errors);
}

/// Once immutable, always immutable, and so are the data.
fn immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !object::bool_at(old, &["immutable"]) {
        return;
    }
    if !object::bool_at(new, &["immutable"]) {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if object::get(new, &[field]) != object::get(old, &[field]) {
            errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

pub(crate) fn service_account(account: &Value, errors: &mut Errors) {
    for (list, field) in [("secrets", "name"), ("imagePullSecrets", "name")] {
        let path = Path::root(list);
        for (index, reference) in object::list_at(account, &[list]).iter().enumerate() {
            let name = object::str_at(reference, &[field]);
            for problem in if name.is_empty() { Vec::new() } else { dns1123_subdomain(name) } {
                errors.push(FieldError::invalid(path.index(index).child(field), name, problem));
            }
        }
    }
}

/// The bytes behind base64 text.
fn decoded_length(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|byte| *byte == b'=').count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(rule: fn(&Value, &mut Errors), object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        rule(object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_are_checked_and_unique() {
        assert!(
            messages(config_map, &json!({"data": {"a.conf": "x"}, "binaryData": {"b": "AA=="}})).is_empty()
        );
        let errors = messages(config_map, &json!({"data": {"a b": "x", "c": ""}, "binaryData": {"c": ""}}));
        assert!(
            errors[0].starts_with(r#"data[a b]: Invalid value: "a b": a valid config key must consist of"#)
        );
        assert_eq!(errors.len(), 3, "{errors:?}");
        let big = "x".repeat(DATA_MAX + 1);
        assert_eq!(messages(config_map, &json!({"data": {"a": big}})).len(), 1);
    }

    #[test]
    fn typed_secrets_need_their_keys() {
        assert_eq!(
            messages(secret, &json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            ["data[tls.key]: Required value"]
        );
        assert_eq!(
            messages(
                secret,
                &json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}})
            )
            .len(),
            1
        );
        assert!(messages(secret, &json!({"type": "Opaque"})).is_empty());
    }

    #[test]
    fn immutable_stays_immutable() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        for (new, count) in [
            (json!({"immutable": true, "data": {"a": "1"}}), 0),
            (json!({"immutable": true, "data": {"a": "2"}}), 1),
            (json!({"data": {"a": "1"}}), 1),
        ] {
            let mut errors = Errors::default();
            config_map_update(&new, &old, &mut errors);
            assert_eq!(errors.into_vec().len(), count, "{new}");
        }
        let mut errors = Errors::default();
        secret_update(&json!({"type": "a"}), &json!({"type": "b"}), &mut errors);
        assert_eq!(errors.into_vec()[0].to_string(), r#"type: Invalid value: "a": field is immutable"#);
    }
}
