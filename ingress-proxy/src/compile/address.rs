//! Where something is reached from outside, as a status says it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use serde::Serialize;

/// An entry of `status.loadBalancer.ingress`, without its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Address {
    /// As the API writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// A name in DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

impl From<&str> for Address {
    /// Whatever is no IP address is a name.
    fn from(text: &str) -> Self {
        let said = Some(text.to_owned());
        match text.parse::<IpAddr>() {
            Ok(_) => Self { ip: said, hostname: None },
            Err(_) => Self { ip: None, hostname: said },
        }
    }
}

impl Address {
    /// Where a Service is reached, by ingress-nginx's rules for `--publish-service`, but that a ClusterIP's external addresses
    /// count as a NodePort's do. Empty while nobody gave it an address.
    pub fn of_service(service: &Service) -> Vec<Self> {
        let Some(spec) = &service.spec else { return Vec::new() };
        let mut addresses = match spec.type_.as_deref() {
            Some("ExternalName") => {
                return spec.external_name.as_deref().map(Self::named).into_iter().collect();
            }
            Some("LoadBalancer") => Self::of_balancer(service),
            _ => Vec::new(),
        };
        for address in spec.external_ips.iter().flatten().map(|ip| Self::at(ip)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // The cluster's own address leads nobody to a load balancer.
        if addresses.is_empty() && spec.type_.as_deref() != Some("LoadBalancer") {
            let cluster_ip = spec.cluster_ip.as_deref().filter(|ip| !["", "None"].contains(ip));
            addresses.extend(cluster_ip.map(Self::at));
        }
        addresses
    }

    fn of_balancer(service: &Service) -> Vec<Self> {
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let entries = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
        let addresses = entries.map(|entry| Self { ip: entry.ip.clone(), hostname: entry.hostname.clone() });
        addresses.filter(|address| *address != Self::default()).collect()
    }

    fn at(ip: &str) -> Self {
        Self { ip: Some(ip.to_owned()), hostname: None }
    }

    fn named(hostname: &str) -> Self {
        Self { ip: None, hostname: Some(hostname.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn published(spec: Value, balancer: Value) -> Value {
        let service = json!({"spec": spec, "status": {"loadBalancer": {"ingress": balancer}}});
        serde_json::to_value(Address::of_service(&serde_json::from_value(service).unwrap())).unwrap()
    }

    #[test]
    fn addresses_and_names_have_their_own_fields() {
        let addresses = ["192.0.2.1", "2001:db8::1", "lb.example"].map(Address::from);
        assert_eq!(
            serde_json::to_value(addresses).unwrap(),
            json!([{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }, { "hostname": "lb.example" }])
        );
    }

    #[test]
    fn a_load_balancer_is_where_it_says_and_at_external_addresses() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"});
        let external = json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1", "192.0.2.9"],
        });
        for (what, spec, balancer, expected) in [
            ("nobody gave it one", &spec, json!([]), json!([])),
            ("an address", &spec, json!([{"ip": "192.0.2.1"}]), json!([{"ip": "192.0.2.1"}])),
            ("a name", &spec, json!([{"hostname": "lb.example"}]), json!([{"hostname": "lb.example"}])),
            (
                "both, with ports",
                &spec,
                json!([{"ip": "192.0.2.1", "hostname": "lb.example", "ipMode": "VIP",
                    "ports": [{"port": 80, "protocol": "TCP"}]}]),
                json!([{"ip": "192.0.2.1", "hostname": "lb.example"}]),
            ),
            ("in order", &spec, json!([{"ip": "::2"}, {"ip": "::1"}]), json!([{"ip": "::2"}, {"ip": "::1"}])),
            ("nothing in an entry", &spec, json!([{}]), json!([])),
            (
                "external ones, each once",
                &external,
                json!([{"ip": "192.0.2.1"}]),
                json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.9"}]),
            ),
            ("external ones alone", &external, json!([]), json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.9"}])),
        ] {
            assert_eq!(published(spec.clone(), balancer), expected, "{what}");
        }
    }

    #[test]
    fn other_services_are_at_external_addresses_or_within_the_cluster() {
        for (spec, expected) in [
            (json!({"type": "NodePort", "clusterIP": "10.96.0.1"}), json!([{"ip": "10.96.0.1"}])),
            (
                json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1", "192.0.2.2"]}),
                json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}]),
            ),
            (json!({"clusterIP": "10.96.0.1"}), json!([{"ip": "10.96.0.1"}])),
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"]}),
                json!([{"ip": "192.0.2.1"}]),
            ),
            (json!({"type": "ClusterIP", "clusterIP": "None"}), json!([])),
            (json!({"type": "ClusterIP"}), json!([])),
            (
                json!({"type": "ExternalName", "externalName": "lb.example", "externalIPs": ["192.0.2.1"]}),
                json!([{"hostname": "lb.example"}]),
            ),
        ] {
            // What is left of a load balancer that it once was is nobody's.
            assert_eq!(published(spec.clone(), json!([{"ip": "203.0.113.1"}])), expected, "{spec}");
        }
        assert_eq!(Address::of_service(&Service::default()), []);
    }
}
