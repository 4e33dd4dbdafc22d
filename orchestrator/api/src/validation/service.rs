//! Rules for Services.

use std::{collections::HashSet, net::IpAddr};

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    labels,
    names::{dns1123_label, dns1123_subdomain, port_name, port_number},
};
use crate::object;

static SPEC: Path<'static> = Path::root("spec");

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const POLICIES: &[&str] = &["Cluster", "Local"];
/// A client sticks to its endpoint for a day at most, in seconds.
const AFFINITY_SECONDS_MAX: i64 = 86_400;

pub(crate) fn service(service: &Value, errors: &mut Errors) {
    let kind = object::str_at(service, &["spec", "type"]);
    let headless = object::str_at(service, &["spec", "clusterIP"]) == "None";
    if !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(SPEC.child("type"), kind, TYPES));
    }
    ports(service, kind, headless, errors);
    labels::labels(object::get(service, &["spec", "selector"]), &SPEC.child("selector"), errors);
    by_type(service, kind, headless, errors);
    affinity(service, errors);
    cluster_ips(service, errors);
    let list = SPEC.child("externalIPs");
    for (index, ip) in
        object::list_at(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).enumerate()
    {
        if ip.parse::<IpAddr>().map_or(true, |ip| ip.is_loopback() || ip.is_unspecified()) {
            errors.push(FieldError::invalid(list.index(index), ip, "must be a valid IP address"));
        }
    }
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let policy = object::str_at(service, &["spec", field]);
        if !policy.is_empty() && !POLICIES.contains(&policy) {
            errors.push(FieldError::not_supported(SPEC.child(field), policy, POLICIES));
        }
    }
}

fn by_type(service: &Value, kind: &str, headless: bool, errors: &mut Errors) {
    match kind {
        "ExternalName" => {
            let name = object::str_at(service, &["spec", "externalName"]);
            if name.is_empty() {
                errors.push(FieldError::required(SPEC.child("externalName"), ""));
            }
            let stripped = name.strip_suffix('.').unwrap_or(name);
            for problem in if name.is_empty() { Vec::new() } else { dns1123_subdomain(stripped) } {
                errors.push(FieldError::invalid(SPEC.child("externalName"), name, problem));
            }
            if !object::str_at(service, &["spec", "clusterIP"]).is_empty() {
                let detail = "may not be set when `type` is 'ExternalName'";
                errors.push(FieldError::forbidden(SPEC.child("clusterIPs"), detail));
            }
        }
        "NodePort" | "LoadBalancer" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(SPEC.child("clusterIPs[0]"), "None", detail));
        }
        _ => {}
    }
    let external = matches!(kind, "NodePort" | "LoadBalancer")
        || !object::list_at(service, &["spec", "externalIPs"]).is_empty();
    let policy = object::str_at(service, &["spec", "externalTrafficPolicy"]);
    if !external && !policy.is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(SPEC.child("externalTrafficPolicy"), policy, detail));
    }
}

fn ports(service: &Value, kind: &str, headless: bool, errors: &mut Errors) {
    let list = SPEC.child("ports");
    let ports = object::list_at(service, &["spec", "ports"]);
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(list, ""));
    }
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, one) in ports.iter().enumerate() {
        let path = list.index(index);
        port(one, ports.len() > 1, headless, &path, errors);
        let name = object::str_at(one, &["name"]);
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        let protocol = object::str_at(one, &["protocol"]);
        let number = object::int_at(one, &["port"]).unwrap_or(0);
        if !numbers.insert((protocol, number)) {
            errors.push(FieldError::duplicate(path, one.clone()));
        }
        let node_port = object::int_at(one, &["nodePort"]).unwrap_or(0);
        if node_port != 0 {
            if !matches!(kind, "NodePort" | "LoadBalancer") {
                let detail = format!("may not be used when `type` is '{kind}'");
                errors.push(FieldError::forbidden(path.child("nodePort"), detail));
            } else if !node_ports.insert((protocol, node_port)) {
                errors.push(FieldError::duplicate(path.child("nodePort"), node_port));
            }
        }
    }
}

fn port(port: &Value, named: bool, headless: bool, path: &Path<'_>, errors: &mut Errors) {
    let name = object::str_at(port, &["name"]);
    if named && name.is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    }
    for problem in if name.is_empty() { Vec::new() } else { dns1123_label(name) } {
        errors.push(FieldError::invalid(path.child("name"), name, problem));
    }
    let number = object::int_at(port, &["port"]).unwrap_or(0);
    if let Some(problem) = port_number(number) {
        errors.push(FieldError::invalid(path.child("port"), number, problem));
    }
    let protocol = object::str_at(port, &["protocol"]);
    if protocol.is_empty() {
        errors.push(FieldError::required(path.child("protocol"), ""));
    } else if !PROTOCOLS.contains(&protocol) {
        errors.push(FieldError::not_supported(path.child("protocol"), protocol, PROTOCOLS));
    }
    let target = path.child("targetPort");
    match object::get(port, &["targetPort"]) {
        Some(Value::Number(value)) => {
            let value = value.as_i64().unwrap_or(0);
            if let Some(problem) = port_number(value) {
                errors.push(FieldError::invalid(target, value, problem));
            } else if headless && value != number {
                // Upstream lets old objects be; new ones cannot mean what they say.
                let detail = "must be equal to the value of 'port' when clusterIP = None";
                errors.push(FieldError::invalid(target, value, detail));
            }
        }
        Some(Value::String(value)) => {
            for problem in port_name(value) {
                errors.push(FieldError::invalid(target, value.as_str(), problem));
            }
        }
        _ => {}
    }
}

fn affinity(service: &Value, errors: &mut Errors) {
    let affinity = object::str_at(service, &["spec", "sessionAffinity"]);
    match affinity {
        "None" => {}
        "ClientIP" => {
            let path = ["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
            let seconds = object::int_at(service, &path).unwrap_or(0);
            if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) {
                let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                errors.push(FieldError::invalid(path.join("."), seconds, detail));
            }
        }
        "" => errors.push(FieldError::required(SPEC.child("sessionAffinity"), "")),
        other => errors.push(FieldError::not_supported(
            SPEC.child("sessionAffinity"),
            other,
            &["ClientIP", "None"],
        )),
    }
}

fn cluster_ips(service: &Value, errors: &mut Errors) {
    let list = SPEC.child("clusterIPs");
    let ip = object::str_at(service, &["spec", "clusterIP"]);
    let listed = object::list_at(service, &["spec", "clusterIPs"]);
    for (index, one) in listed.iter().filter_map(Value::as_str).enumerate() {
        if one == "None" && listed.len() > 1 {
            let detail = "'None' must be the first and only value";
            errors.push(FieldError::invalid(list.index(index), one, detail));
        } else if one != "None" && one.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(list.index(index), one, detail));
        }
    }
    match listed.first().and_then(Value::as_str) {
        Some(first) if first != ip => {
            errors.push(FieldError::invalid(list, listed.to_vec(), "first value must match `clusterIP`"));
        }
        None if !ip.is_empty() => errors.push(FieldError::required(list, "")),
        _ => {}
    }
}

/// An address once given stays, unless the service becomes an external name.
pub(crate) fn service_update(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = |service, field| object::str_at(service, &["spec", field]).to_owned();
    if spec(new, "type") == "ExternalName" || spec(old, "type") == "ExternalName" {
        return;
    }
    let (before, after) = (spec(old, "clusterIP"), spec(new, "clusterIP"));
    if !before.is_empty() && before != after {
        let list = SPEC.child("clusterIPs");
        let detail = "may not change once set";
        errors.push(FieldError::invalid(list.index(0), after, detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::defaults;

    fn messages(spec: Value) -> Vec<String> {
        let mut object = json!({"spec": spec});
        defaults::service(&mut object);
        let mut errors = Errors::default();
        service(&object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn usual_services_are_valid() {
        for spec in [
            json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 80, "protocol": "UDP"}]}),
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
            json!({"sessionAffinity": "ClientIP", "ports": [{"port": 80}]}),
        ] {
            assert_eq!(messages(spec.clone()), [""; 0], "{spec}");
        }
    }

    #[test]
    fn each_rule_names_its_field() {
        for (spec, message) in [
            (json!({}), "spec.ports: Required value"),
            (
                json!({"ports": [{"port": 70000, "targetPort": 80}]}),
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"ports": [{"port": 80}, {"name": "a", "port": 81}]}),
                "spec.ports[0].name: Required value",
            ),
            (
                json!({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]}),
                r#"spec.ports[1].name: Duplicate value: "a""#,
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"ports": [{"port": 80, "protocol": "tcp"}]}),
                r#"spec.ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#,
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"clusterIP": "x", "clusterIPs": ["x"], "ports": [{"port": 80}]}),
                r#"spec.clusterIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
            ),
            (
                json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
                r#"spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#,
            ),
        ] {
            assert_eq!(messages(spec), [message]);
        }
    }

    #[test]
    fn an_address_stays() {
        let with = |ip: &str| json!({"spec": {"type": "ClusterIP", "clusterIP": ip}});
        let mut errors = Errors::default();
        service_update(&with("10.96.0.2"), &with("10.96.0.1"), &mut errors);
        assert_eq!(
            errors.into_vec()[0].to_string(),
            r#"spec.clusterIPs[0]: Invalid value: "10.96.0.2": may not change once set"#
        );
    }
}
