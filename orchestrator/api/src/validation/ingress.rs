//! Rules for ingresses and ingress classes.

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    labels::label_key_problems,
    names::{dns1035_label, dns1123_subdomain, port_name, port_number, wildcard_subdomain},
};
use crate::object;

/// The annotation that chose a class before `ingressClassName` did.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

static SPEC: Path<'static> = Path::root("spec");

pub(crate) fn ingress(ingress: &Value, errors: &mut Errors) {
    let class = object::str_at(ingress, &["spec", "ingressClassName"]);
    for problem in if class.is_empty() { Vec::new() } else { dns1123_subdomain(class) } {
        errors.push(FieldError::invalid(SPEC.child("ingressClassName"), class, problem));
    }
    if !class.is_empty() && object::get(ingress, &["metadata", "annotations", CLASS_ANNOTATION]).is_some() {
        let path = Path::root("metadata.annotations");
        let detail = "can not be set when the class field is also set";
        errors.push(FieldError::invalid(path.key(CLASS_ANNOTATION), class, detail));
    }
    let rules = object::list_at(ingress, &["spec", "rules"]);
    let default = object::get(ingress, &["spec", "defaultBackend"]);
    if rules.is_empty() && default.is_none() {
        errors.push(FieldError::invalid(
            SPEC,
            Value::Array(Vec::new()),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if let Some(default) = default {
        backend(default, &SPEC.child("defaultBackend"), errors);
    }
    let list = SPEC.child("rules");
    for (index, one) in rules.iter().enumerate() {
        rule(one, &list.index(index), errors);
    }
    let list = SPEC.child("tls");
    for (index, one) in object::list_at(ingress, &["spec", "tls"]).iter().enumerate() {
        let path = list.index(index);
        let hosts = path.child("hosts");
        for (index, name) in object::list_at(one, &["hosts"]).iter().filter_map(Value::as_str).enumerate() {
            host(name, &hosts.index(index), errors);
        }
        let secret = object::str_at(one, &["secretName"]);
        for problem in if secret.is_empty() { Vec::new() } else { dns1123_subdomain(secret) } {
            errors.push(FieldError::invalid(path.child("secretName"), secret, problem));
        }
    }
}

fn host(name: &str, path: &Path<'_>, errors: &mut Errors) {
    let problems = if name.contains('*') { wildcard_subdomain(name) } else { dns1123_subdomain(name) };
    for problem in problems {
        errors.push(FieldError::invalid(path, name, problem));
    }
}

fn rule(rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    let name = object::str_at(rule, &["host"]);
    if name.parse::<std::net::IpAddr>().is_ok() {
        errors.push(FieldError::invalid(path.child("host"), name, "must be a DNS name, not an IP address"));
    } else if !name.is_empty() {
        host(name, &path.child("host"), errors);
    }
    let Some(http) = object::get(rule, &["http"]) else { return };
    let list = path.child("http.paths");
    let paths = object::list_at(http, &["paths"]);
    if paths.is_empty() {
        errors.push(FieldError::required(list, ""));
    }
    for (index, one) in paths.iter().enumerate() {
        http_path(one, &list.index(index), errors);
    }
}

fn http_path(path_rule: &Value, path: &Path<'_>, errors: &mut Errors) {
    let text = object::str_at(path_rule, &["path"]);
    let at = path.child("path");
    match object::str_at(path_rule, &["pathType"]) {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(FieldError::invalid(at, text, "must be an absolute path"));
            }
            if !text.is_empty() {
                for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                    if text.contains(sequence) {
                        errors.push(FieldError::invalid(at, text, format!("must not contain '{sequence}'")));
                    }
                }
                for suffix in ["/..", "/."] {
                    if text.ends_with(suffix) {
                        errors.push(FieldError::invalid(at, text, format!("cannot end with '{suffix}'")));
                    }
                }
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(FieldError::invalid(at, text, "must be an absolute path"));
            }
        }
        "" => errors.push(FieldError::required(path.child("pathType"), "pathType must be specified")),
        other => errors.push(FieldError::not_supported(
            path.child("pathType"),
            other,
            &["Exact", "ImplementationSpecific", "Prefix"],
        )),
    }
    backend(path_rule.get("backend").unwrap_or(&Value::Null), &path.child("backend"), errors);
}

fn backend(backend: &Value, path: &Path<'_>, errors: &mut Errors) {
    let resource = object::get(backend, &["resource"]);
    let Some(service) = object::get(backend, &["service"]) else {
        if resource.is_none() {
            errors.push(FieldError::required(path, "resource or service backend is required"));
        }
        return;
    };
    if resource.is_some() {
        errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
    }
    let path = path.child("service");
    let name = object::str_at(service, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    }
    for problem in if name.is_empty() { Vec::new() } else { dns1035_label(name) } {
        errors.push(FieldError::invalid(path.child("name"), name, problem));
    }
    let port = path.child("port");
    let (port_text, number) = (
        object::str_at(service, &["port", "name"]),
        object::int_at(service, &["port", "number"]).unwrap_or(0),
    );
    match (port_text.is_empty(), number) {
        (true, 0) => errors.push(FieldError::required(path, "port name or number is required")),
        (false, 1..) => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
        (false, _) => {
            for problem in port_name(port_text) {
                errors.push(FieldError::invalid(port.child("name"), port_text, problem));
            }
        }
        (true, number) => {
            if let Some(problem) = port_number(number) {
                errors.push(FieldError::invalid(port.child("number"), number, problem));
            }
        }
    }
}

pub(crate) fn ingress_class(class: &Value, errors: &mut Errors) {
    let controller = object::str_at(class, &["spec", "controller"]);
    let path = SPEC.child("controller");
    if controller.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !controller.contains('/') {
        errors.push(FieldError::invalid(
            path,
            controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ));
    } else {
        for problem in label_key_problems(controller) {
            errors.push(FieldError::invalid(path, controller, problem));
        }
    }
    if let Some(parameters) = object::get(class, &["spec", "parameters"]) {
        let path = SPEC.child("parameters");
        for field in ["kind", "name"] {
            if object::str_at(parameters, &[field]).is_empty() {
                errors.push(FieldError::required(path.child(field), ""));
            }
        }
    }
}

pub(crate) fn ingress_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    let controller = |class| object::str_at(class, &["spec", "controller"]).to_owned();
    if controller(new) != controller(old) {
        errors.push(FieldError::invalid(SPEC.child("controller"), controller(new), "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(spec: Value) -> Vec<String> {
        let mut errors = Errors::default();
        ingress(&json!({"spec": spec}), &mut errors);
        errors.into_vec().into_iter().map(|error| error.field).collect()
    }

    fn with_path(path: Value) -> Value {
        json!({"rules": [{"host": "shop.example", "http": {"paths": [path]}}]})
    }

    #[test]
    fn paths_and_backends() {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        let path = |kind: &str, text: &str| {
            fields(with_path(json!({"path": text, "pathType": kind, "backend": backend})))
        };
        for (kind, text) in [
            ("Prefix", "/"),
            ("Exact", "/a"),
            ("ImplementationSpecific", ""),
            ("ImplementationSpecific", "/a.*"),
        ] {
            assert!(path(kind, text).is_empty(), "{kind} {text}");
        }
        for (kind, text) in
            [("Prefix", ""), ("Prefix", "a"), ("Exact", "/a//b"), ("Prefix", "/a/.."), ("Prefix", "/%2f")]
        {
            assert_eq!(path(kind, text), ["spec.rules[0].http.paths[0].path"], "{kind} {text}");
        }
        assert_eq!(path("", "/"), ["spec.rules[0].http.paths[0].pathType"]);
        for (service, field) in [
            (json!({"name": "web"}), "service"),
            (json!({"name": "web", "port": {"number": 70000}}), "service.port.number"),
            (json!({"name": "web", "port": {"number": 80, "name": "http"}}), "service"),
            (json!({"name": "Web", "port": {"name": "http"}}), "service.name"),
        ] {
            let spec = with_path(json!({"path": "/", "pathType": "Prefix", "backend": {"service": service}}));
            assert_eq!(fields(spec), [format!("spec.rules[0].http.paths[0].backend.{field}")]);
        }
    }

    #[test]
    fn hosts_and_emptiness() {
        assert_eq!(fields(json!({})), ["spec"]);
        for (host, good) in [
            ("a.example", true),
            ("*.example", true),
            ("", true),
            ("*", false),
            ("192.0.2.1", false),
            ("A.example", false),
        ] {
            assert_eq!(fields(json!({"rules": [{"host": host}]})).is_empty(), good, "{host}");
        }
        assert_eq!(
            fields(json!({"rules": [{}], "tls": [{"hosts": ["*x"], "secretName": "A"}]})),
            ["spec.tls[0].hosts[0]", "spec.tls[0].secretName"]
        );
    }

    #[test]
    fn classes_name_a_controller() {
        for (controller, count) in [("weir.dev/ingress", 0), ("weir", 1), ("", 1), ("a b/c", 1)] {
            let mut errors = Errors::default();
            ingress_class(&json!({"spec": {"controller": controller}}), &mut errors);
            assert_eq!(errors.into_vec().len(), count, "{controller}");
        }
    }
}
