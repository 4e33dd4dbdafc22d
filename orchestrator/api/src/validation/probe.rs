//! Rules for probes and lifecycle hooks.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    names::{port_name, port_number},
};
use crate::object;

const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];

/// Checks a container's probes.
pub(super) fn probes(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = object::get(container, &[name]) else { continue };
        let path = path.child(name);
        handler(probe, &path, errors);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            if let Some(number) = object::int_at(probe, &[field]).filter(|number| *number < 0) {
                errors.push(FieldError::invalid(
                    path.child(field),
                    number,
                    "must be greater than or equal to 0",
                ));
            }
        }
        let successes = object::int_at(probe, &["successThreshold"]).unwrap_or(1);
        if name != "readinessProbe" && successes != 1 {
            errors.push(FieldError::invalid(path.child("successThreshold"), successes, "must be 1"));
        }
        if let Some(grace) = object::int_at(probe, &["terminationGracePeriodSeconds"]) {
            if name == "readinessProbe" {
                let detail = "must not be set for readinessProbes";
                errors.push(FieldError::invalid(path.child("terminationGracePeriodSeconds"), grace, detail));
            } else if grace <= 0 {
                let detail = "must be greater than 0";
                errors.push(FieldError::invalid(path.child("terminationGracePeriodSeconds"), grace, detail));
            }
        }
    }
}

/// Checks a container's lifecycle hooks.
pub(super) fn lifecycle(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (name, field) in [("postStart", "lifecycle.postStart"), ("preStop", "lifecycle.preStop")] {
        if let Some(hook) = object::get(container, &["lifecycle", name]) {
            if object::get(hook, &["sleep"]).is_some() {
                continue;
            }
            handler(hook, &path.child(field), errors);
        }
    }
}

fn handler(probe: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut set = 0;
    for kind in HANDLERS {
        let Some(handler) = object::get(probe, &[kind]) else { continue };
        let path = path.child(kind);
        set += 1;
        if set > 1 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" => {
                if object::list_at(handler, &["command"]).is_empty() {
                    errors.push(FieldError::required(path.child("command"), ""));
                }
            }
            "httpGet" => {
                if object::str_at(handler, &["path"]).is_empty() {
                    errors.push(FieldError::required(path.child("path"), ""));
                }
                let scheme = object::str_at(handler, &["scheme"]);
                if !matches!(scheme, "HTTP" | "HTTPS") {
                    errors.push(FieldError::not_supported(path.child("scheme"), scheme, &["HTTP", "HTTPS"]));
                }
                port(handler, &path, errors);
            }
            _ => port(handler, &path, errors),
        }
    }
    if set == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn port(handler: &Value, path: &Path<'_>, errors: &mut Errors) {
    let path = path.child("port");
    match object::get(handler, &["port"]) {
        Some(Value::Number(number)) => {
            let number = number.as_i64().unwrap_or(0);
            if let Some(problem) = port_number(number) {
                errors.push(FieldError::invalid(path, number, problem));
            }
        }
        Some(Value::String(name)) => {
            for problem in port_name(name) {
                errors.push(FieldError::invalid(path, name.as_str(), problem));
            }
        }
        _ => errors.push(FieldError::required(path, "")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(probe: Value, name: &str) -> Vec<String> {
        let mut errors = Errors::default();
        probes(&json!({ name: probe }), &Path::root("c"), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_probe_has_one_handler_and_sane_numbers() {
        let http = json!({"path": "/", "scheme": "HTTP", "port": "http"});
        assert!(messages(json!({"httpGet": http}), "livenessProbe").is_empty());
        assert_eq!(
            messages(json!({}), "livenessProbe"),
            ["c.livenessProbe: Required value: must specify a handler type"]
        );
        assert_eq!(
            messages(json!({"httpGet": http, "exec": {"command": ["a"]}}), "readinessProbe"),
            ["c.readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type"]
        );
        assert_eq!(
            messages(json!({"tcpSocket": {"port": 0}}), "readinessProbe"),
            ["c.readinessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive"]
        );
        assert_eq!(
            messages(json!({"tcpSocket": {"port": 1}, "successThreshold": 2}), "livenessProbe"),
            ["c.livenessProbe.successThreshold: Invalid value: 2: must be 1"]
        );
    }
}
