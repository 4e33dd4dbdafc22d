//! Labels, annotations, and the selectors of specs.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    names::{dns1123_subdomain, too_long},
};
use crate::object;

/// All annotations of an object together, in bytes; upstream's limit.
const ANNOTATIONS_MAX: usize = 256 * 1024;

const NAME_MAX: usize = 63;

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// What is wrong with a key of labels or annotations: `[prefix/]name`.
pub fn label_key_problems(key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = match key.split_once('/') {
        Some((_, rest)) if rest.contains('/') => {
            problems.push(format!("a qualified name {NAME_RULE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"));
            return problems;
        }
        Some(("", name)) => {
            problems.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            problems.extend(
                dns1123_subdomain(prefix).into_iter().map(|problem| format!("prefix part {problem}")),
            );
            name
        }
        None => key,
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > NAME_MAX {
        problems.push(format!("name part {}", too_long(NAME_MAX)));
    }
    if !is_name(name) {
        problems.push(format!("name part {NAME_RULE}"));
    }
    problems
}

const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// What is wrong with a label's value.
pub fn label_value_problems(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > NAME_MAX {
        problems.push(too_long(NAME_MAX));
    }
    if !value.is_empty() && !is_name(value) {
        problems.push("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".to_owned());
    }
    problems
}

/// Holds a map of labels against the rules.
pub(super) fn labels(map: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    for (key, value) in map.and_then(Value::as_object).into_iter().flatten() {
        for problem in label_key_problems(key) {
            errors.push(FieldError::invalid(path, key.as_str(), problem));
        }
        for problem in label_value_problems(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value.clone(), problem));
        }
    }
}

/// Holds annotations against the rules. Their keys may be upper case, their values anything.
pub(super) fn annotations(map: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    let mut total = 0;
    for (key, value) in map.and_then(Value::as_object).into_iter().flatten() {
        for problem in label_key_problems(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), problem));
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
}

/// Holds a `LabelSelector` object against the rules.
pub(super) fn selector(selector: &Value, path: &Path<'_>, errors: &mut Errors) {
    labels(object::get(selector, &["matchLabels"]), &path.child("matchLabels"), errors);
    let list = path.child("matchExpressions");
    for (index, expression) in object::list_at(selector, &["matchExpressions"]).iter().enumerate() {
        let path = list.index(index);
        let values = object::list_at(expression, &["values"]);
        match object::str_at(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(path.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(path.child("values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = object::str_at(expression, &["key"]);
        for problem in label_key_problems(key) {
            errors.push(FieldError::invalid(path.child("key"), key, problem));
        }
        for (index, value) in values.iter().enumerate() {
            for problem in label_value_problems(value.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(path.child("values").index(index), value.clone(), problem));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_values() {
        for good in ["app", "app.kubernetes.io/name", "a_b.c-d", "1"] {
            assert!(label_key_problems(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "Ex.com/a", "-a", "a b", &"a".repeat(64)] {
            assert!(!label_key_problems(bad).is_empty(), "{bad}");
        }
        assert!(label_value_problems("").is_empty() && label_value_problems("v1.2_x").is_empty());
        assert!(!label_value_problems("a b").is_empty() && !label_value_problems("-a").is_empty());
    }

    #[test]
    fn selectors_need_values_where_they_compare() {
        let mut errors = Errors::default();
        let value = json!({"matchLabels": {"a b": "x"}, "matchExpressions": [
            {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]}, {"key": "a", "operator": "Like"}]});
        selector(&value, &Path::root("spec.selector"), &mut errors);
        let fields: Vec<String> = errors.into_vec().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "spec.selector.matchLabels",
                "spec.selector.matchExpressions[0].values",
                "spec.selector.matchExpressions[1].values",
                "spec.selector.matchExpressions[2].operator",
            ]
        );
    }
}
