//! Rules for containers.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    names::{config_key, dns1123_subdomain, env_var_name, port_name, port_number, unique_label},
    probe::{lifecycle, probes},
};
use crate::{object, quantity::Quantity};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: &[&str] = &["FallbackToLogsOnError", "File"];
/// Downward API fields that are given as environment variables.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Checks `spec.containers` and returns their names.
pub(super) fn containers<'a>(
    spec: &'a Value,
    list: &Path<'_>,
    volumes: &HashSet<&str>,
    errors: &mut Errors,
) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    let containers = object::list_at(spec, &["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(list, ""));
    }
    let mut host_ports = HashSet::new();
    for (index, one) in containers.iter().enumerate() {
        let path = list.index(index);
        container(one, &path, volumes, &mut names, errors);
        probes(one, &path, errors);
        lifecycle(one, &path, errors);
        unique_host_ports(one, &path, &mut host_ports, errors);
        if object::get(one, &["restartPolicy"]).is_some() {
            errors.push(FieldError::forbidden(
                path.child("restartPolicy"),
                "may not be set for non-init containers",
            ));
        }
    }
    names
}

/// Checks `spec.initContainers`; only those that restart (sidecars) may be probed.
pub(super) fn init_containers<'a>(
    spec: &'a Value,
    list: &Path<'_>,
    volumes: &HashSet<&str>,
    names: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    for (index, one) in object::list_at(spec, &["initContainers"]).iter().enumerate() {
        let path = list.index(index);
        container(one, &path, volumes, names, errors);
        match object::str_at(one, &["restartPolicy"]) {
            "Always" => {
                probes(one, &path, errors);
                lifecycle(one, &path, errors);
            }
            "" => {
                for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                    if object::get(one, &[field]).is_some() {
                        let detail = "may not be set for init containers without restartPolicy=Always";
                        errors.push(FieldError::forbidden(path.child(field), detail));
                    }
                }
            }
            other => errors.push(FieldError::not_supported(path.child("restartPolicy"), other, &["Always"])),
        }
    }
}

fn container<'a>(
    container: &'a Value,
    path: &Path<'_>,
    volumes: &HashSet<&str>,
    names: &mut HashSet<&'a str>,
    errors: &mut Errors,
) {
    unique_label(container, path, names, errors);
    let image = object::str_at(container, &["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(path.child("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(path.child("image"), image, detail));
    }
    for (field, supported) in
        [("imagePullPolicy", PULL_POLICIES), ("terminationMessagePolicy", MESSAGE_POLICIES)]
    {
        match object::str_at(container, &[field]) {
            "" => errors.push(FieldError::required(path.child(field), "")),
            value if supported.contains(&value) => {}
            other => errors.push(FieldError::not_supported(path.child(field), other, supported)),
        }
    }
    ports(container, &path.child("ports"), errors);
    environment(container, path, errors);
    mounts(container, &path.child("volumeMounts"), volumes, errors);
    resources(container, &path.child("resources"), errors);
}

fn ports(container: &Value, list: &Path<'_>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (index, port) in object::list_at(container, &["ports"]).iter().enumerate() {
        let path = list.index(index);
        let name = object::str_at(port, &["name"]);
        if !name.is_empty() {
            for problem in port_name(name) {
                errors.push(FieldError::invalid(path.child("name"), name, problem));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
        }
        let number = object::int_at(port, &["containerPort"]).unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(path.child("containerPort"), ""));
        } else if let Some(problem) = port_number(number) {
            errors.push(FieldError::invalid(path.child("containerPort"), number, problem));
        }
        let host = object::int_at(port, &["hostPort"]).unwrap_or(0);
        if let (true, Some(problem)) = (host != 0, port_number(host)) {
            errors.push(FieldError::invalid(path.child("hostPort"), host, problem));
        }
        let protocol = object::str_at(port, &["protocol"]);
        if protocol.is_empty() {
            errors.push(FieldError::required(path.child("protocol"), ""));
        } else if !PROTOCOLS.contains(&protocol) {
            errors.push(FieldError::not_supported(path.child("protocol"), protocol, PROTOCOLS));
        }
    }
}

fn unique_host_ports(container: &Value, path: &Path<'_>, taken: &mut HashSet<String>, errors: &mut Errors) {
    let list = path.child("ports");
    for (index, port) in object::list_at(container, &["ports"]).iter().enumerate() {
        let host = object::int_at(port, &["hostPort"]).unwrap_or(0);
        let key =
            format!("{}/{}/{host}", object::str_at(port, &["protocol"]), object::str_at(port, &["hostIP"]));
        if host != 0 && !taken.insert(key.clone()) {
            errors.push(FieldError::duplicate(list.index(index).child("hostPort"), key));
        }
    }
}

fn environment(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    let list = path.child("env");
    for (index, variable) in object::list_at(container, &["env"]).iter().enumerate() {
        let path = list.index(index);
        let name = object::str_at(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else {
            for problem in env_var_name(name) {
                errors.push(FieldError::invalid(path.child("name"), name, problem));
            }
        }
        if let Some(source) = object::get(variable, &["valueFrom"]) {
            let path = path.child("valueFrom");
            if !object::str_at(variable, &["value"]).is_empty() {
                errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
            }
            env_source(source, &path, errors);
        }
    }
    let list = path.child("envFrom");
    for (index, source) in object::list_at(container, &["envFrom"]).iter().enumerate() {
        let path = list.index(index);
        let sources = ["configMapRef", "secretRef"].map(|field| (field, object::get(source, &[field])));
        match sources.iter().filter(|(_, source)| source.is_some()).count() {
            0 => errors.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
        for (field, reference) in sources {
            let Some(reference) = reference else { continue };
            required_name(reference, &path.child(field), errors);
        }
    }
}

fn required_name(reference: &Value, path: &Path<'_>, errors: &mut Errors) {
    let name = object::str_at(reference, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    }
    for problem in if name.is_empty() { Vec::new() } else { dns1123_subdomain(name) } {
        errors.push(FieldError::invalid(path.child("name"), name, problem));
    }
}

fn env_source(source: &Value, path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    if let Some(reference) = object::get(source, &["fieldRef"]) {
        count += 1;
        env_field(object::str_at(reference, &["fieldPath"]), &path.child("fieldRef.fieldPath"), errors);
    }
    if let Some(reference) = object::get(source, &["resourceFieldRef"]) {
        count += 1;
        if object::str_at(reference, &["resource"]).is_empty() {
            errors.push(FieldError::required(path.child("resourceFieldRef.resource"), ""));
        }
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        let Some(reference) = object::get(source, &[field]) else { continue };
        count += 1;
        let path = path.child(field);
        required_name(reference, &path, errors);
        let key = object::str_at(reference, &["key"]);
        if key.is_empty() {
            errors.push(FieldError::required(path.child("key"), ""));
        }
        for problem in if key.is_empty() { Vec::new() } else { config_key(key) } {
            errors.push(FieldError::invalid(path.child("key"), key, problem));
        }
    }
    match count {
        0 => {
            let detail =
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.push(FieldError::invalid(path, "", detail));
        }
        1 => {}
        _ => {
            errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            ));
        }
    }
}

fn env_field(field: &str, path: &Path<'_>, errors: &mut Errors) {
    let keyed = |prefix: &str| field.strip_prefix(prefix).is_some_and(|rest| rest.ends_with("']"));
    if field.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !ENV_FIELDS.contains(&field) && !keyed("metadata.labels['") && !keyed("metadata.annotations['")
    {
        errors.push(FieldError::not_supported(path, field, ENV_FIELDS));
    }
}

fn mounts(container: &Value, list: &Path<'_>, volumes: &HashSet<&str>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for (index, mount) in object::list_at(container, &["volumeMounts"]).iter().enumerate() {
        let path = list.index(index);
        let name = object::str_at(mount, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        } else if !volumes.contains(name) {
            errors.push(FieldError::not_found(path.child("name"), name));
        }
        let at = object::str_at(mount, &["mountPath"]);
        if at.is_empty() {
            errors.push(FieldError::required(path.child("mountPath"), ""));
        } else if !paths.insert(at) {
            errors.push(FieldError::invalid(path.child("mountPath"), at, "must be unique"));
        }
        let sub = object::str_at(mount, &["subPath"]);
        if sub.starts_with('/') {
            errors.push(FieldError::invalid(path.child("subPath"), sub, "must be a relative path"));
        }
        if sub.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(path.child("subPath"), sub, "must not contain '..'"));
        }
    }
}

fn resources(container: &Value, path: &Path<'_>, errors: &mut Errors) {
    let amount = |list: &str, resource: &str| {
        let text = object::get(container, &["resources", list, resource])?.as_str()?;
        Some((text.to_owned(), Quantity::parse(text).ok()?))
    };
    for list in ["limits", "requests"] {
        let at = path.child(list);
        for resource in
            object::map_at(container, &["resources", list]).into_iter().flatten().map(|(key, _)| key)
        {
            let standard = matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || resource.starts_with("hugepages-");
            if !standard && !resource.contains('/') {
                let detail = "must be a standard resource type or fully qualified";
                errors.push(FieldError::invalid(at.key(resource), resource.as_str(), detail));
            }
            if let Some((text, _)) = amount(list, resource).filter(|(_, amount)| amount.is_negative()) {
                errors.push(FieldError::invalid(
                    at.key(resource),
                    text,
                    "must be greater than or equal to 0",
                ));
            }
        }
    }
    let requests = path.child("requests");
    for resource in
        object::map_at(container, &["resources", "requests"]).into_iter().flatten().map(|(key, _)| key)
    {
        if let (Some((text, request)), Some((limit_text, limit))) =
            (amount("requests", resource), amount("limits", resource))
            && request > limit
        {
            let detail = format!("must be less than or equal to {resource} limit of {limit_text}");
            errors.push(FieldError::invalid(requests, text, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::defaults;

    fn messages(container: Value) -> Vec<String> {
        let mut pod = json!({"spec": {"containers": [container]}});
        object::set_default(&mut pod["spec"]["containers"][0], &["name"], "web");
        object::set_default(&mut pod["spec"]["containers"][0], &["image"], "nginx");
        defaults::pod(&mut pod);
        let mut errors = Errors::default();
        containers(&pod["spec"], &Path::root("c"), &HashSet::from(["v"]), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_names_its_field() {
        for (container, message) in [
            (json!({"name": ""}), "c[0].name: Required value"),
            (json!({"image": ""}), "c[0].image: Required value"),
            (
                json!({"imagePullPolicy": "Maybe"}),
                r#"c[0].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never""#,
            ),
            (
                json!({"ports": [{"containerPort": 70000}]}),
                "c[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]}),
                r#"c[0].ports[1].hostPort: Duplicate value: "TCP//80""#,
            ),
            (
                json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
                r#"c[0].volumeMounts[0].name: Not found: "x""#,
            ),
            (
                json!({"resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}}),
                r#"c[0].resources.requests: Invalid value: "2Gi": must be less than or equal to memory limit of 1Gi"#,
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
                r#"c[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs""#,
            ),
            (
                json!({"env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
                r#"c[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty"#,
            ),
        ] {
            assert_eq!(messages(container), [message]);
        }
    }

    #[test]
    fn what_is_usual_is_valid() {
        let container = json!({
            "ports": [{"name": "http", "containerPort": 80}],
            "env": [
                {"name": "A", "value": ""},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            ],
            "envFrom": [{"configMapRef": {"name": "c"}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "a/b"}],
            "resources": {"limits": {"cpu": "1", "example.com/gpu": "1"}},
        });
        assert_eq!(messages(container), [""; 0]);
    }

    #[test]
    fn names_are_unique_across_init_containers() {
        let mut spec = json!({"containers": [{"name": "a", "image": "i"}], "initContainers": [{"name": "a", "image": "i", "livenessProbe": {}}]});
        let mut pod = json!({"spec": spec.take()});
        defaults::pod(&mut pod);
        let mut errors = Errors::default();
        let mut names = containers(&pod["spec"], &Path::root("c"), &HashSet::new(), &mut errors);
        init_containers(&pod["spec"], &Path::root("i"), &HashSet::new(), &mut names, &mut errors);
        let fields: Vec<String> = errors.into_vec().into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["i[0].name", "i[0].livenessProbe"]);
    }
}
