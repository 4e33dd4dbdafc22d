//! Rules for endpoint slices.

use std::{collections::HashSet, net::IpAddr};

use serde_json::Value;

use super::{
    error::{Errors, FieldError, Path},
    names::{dns1123_label, dns1123_subdomain, port_number},
};
use crate::object;

const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;

pub(crate) fn endpoint_slice(slice: &Value, errors: &mut Errors) {
    let address_type = object::str_at(slice, &["addressType"]);
    match address_type {
        "" => errors.push(FieldError::required("addressType", "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.push(FieldError::not_supported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    endpoints(object::list_at(slice, &["endpoints"]), address_type, errors);
    ports(object::list_at(slice, &["ports"]), errors);
}

fn endpoints(endpoints: &[Value], address_type: &str, errors: &mut Errors) {
    let list = Path::root("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(list, endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = list.index(index);
        let addresses = path.child("addresses");
        let values = object::list_at(endpoint, &["addresses"]);
        if values.is_empty() {
            errors.push(FieldError::required(addresses, "must contain at least 1 address"));
        }
        if values.len() > ADDRESSES_MAX {
            errors.push(FieldError::too_many(addresses, values.len(), ADDRESSES_MAX));
        }
        for (index, address) in values.iter().filter_map(Value::as_str).enumerate() {
            for problem in address_problems(address, address_type) {
                errors.push(FieldError::invalid(addresses.index(index), address, problem));
            }
        }
        let hostname = object::str_at(endpoint, &["hostname"]);
        for problem in if hostname.is_empty() { Vec::new() } else { dns1123_label(hostname) } {
            errors.push(FieldError::invalid(path.child("hostname"), hostname, problem));
        }
    }
}

fn address_problems(address: &str, address_type: &str) -> Vec<String> {
    let ip = address.parse::<IpAddr>();
    let problem = match (address_type, ip) {
        ("IPv4", Ok(IpAddr::V4(ip))) => unreachable_endpoint(IpAddr::V4(ip)),
        ("IPv6", Ok(IpAddr::V6(ip))) => unreachable_endpoint(IpAddr::V6(ip)),
        ("IPv4", _) => Some("must be a valid IPv4 address"),
        ("IPv6", _) => Some("must be a valid IPv6 address"),
        ("FQDN", _) => return dns1123_subdomain(address),
        _ => None,
    };
    problem.map(str::to_owned).into_iter().collect()
}

/// Addresses that would lead a node's traffic astray.
fn unreachable_endpoint(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if ip.is_multicast() {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

fn ports(ports: &[Value], errors: &mut Errors) {
    let list = Path::root("ports");
    if ports.len() > PORTS_MAX {
        errors.push(FieldError::too_many(list, ports.len(), PORTS_MAX));
        return;
    }
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = list.index(index);
        let name = object::str_at(port, &["name"]);
        if !name.is_empty() {
            for problem in dns1123_label(name) {
                errors.push(FieldError::invalid(path.child("name"), name, problem));
            }
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        match object::str_at(port, &["protocol"]) {
            "TCP" | "UDP" | "SCTP" => {}
            "" => errors.push(FieldError::required(path.child("protocol"), "")),
            other => {
                errors.push(FieldError::not_supported(
                    path.child("protocol"),
                    other,
                    &["SCTP", "TCP", "UDP"],
                ));
            }
        }
        if let Some(number) = object::int_at(port, &["port"])
            && let Some(problem) = port_number(number)
        {
            errors.push(FieldError::invalid(path.child("port"), number, problem));
        }
    }
}

pub(crate) fn endpoint_slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    let kind = object::str_at(new, &["addressType"]);
    if kind != object::str_at(old, &["addressType"]) {
        errors.push(FieldError::invalid("addressType", kind, "field is immutable"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(slice: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        endpoint_slice(slice, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_of_the_slices_type() {
        let slice = |kind: &str, address: &str| json!({"addressType": kind, "endpoints": [{"addresses": [address]}], "ports": [{"name": "", "protocol": "TCP", "port": 80}]});
        assert!(messages(&slice("IPv4", "10.244.0.5")).is_empty());
        assert!(messages(&slice("IPv6", "fd00::5")).is_empty());
        assert!(messages(&slice("FQDN", "example.com")).is_empty());
        for (kind, address) in [
            ("IPv4", "fd00::5"),
            ("IPv4", "x"),
            ("IPv4", "127.0.0.1"),
            ("IPv6", "::"),
            ("FQDN", "A_b"),
            ("X", "1"),
        ] {
            assert_eq!(messages(&slice(kind, address)).len(), 1, "{kind} {address}");
        }
    }

    #[test]
    fn ports_have_distinct_names() {
        let slice = json!({"addressType": "IPv4", "ports": [
            {"name": "a", "protocol": "TCP", "port": 0}, {"name": "a", "protocol": "tcp", "port": 80}]});
        assert_eq!(
            messages(&slice),
            [
                "ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                r#"ports[1].name: Duplicate value: "a""#,
                r#"ports[1].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP""#,
            ]
        );
    }
}
