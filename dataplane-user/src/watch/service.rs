//! From a Service object to the plan's model. What cannot be served is named, never left out in silence.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use super::unserved::{Unserved, port_number, protocol, usable};
use crate::{
    cidr::{Cidr, CidrError},
    config::ForwardingMode,
    plan::model::{self, ServicePort, protocol_name},
};

/// Says that another implementation serves this Service (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Says how packets from outside get to backends on other nodes and back: `snat`, `dsr` or `dsr-option`.
const FORWARDING_MODE: &str = "weir.dev/forwarding-mode";
/// `sessionAffinity`'s default timeout, from the API's documentation.
const DEFAULT_AFFINITY_S: i32 = 10_800;

/// The mode that the Service asks for; nothing when it does not say.
fn forwarding(object: &Service, unserved: &mut Vec<Unserved>) -> Option<ForwardingMode> {
    let asked = object.metadata.annotations.as_ref()?.get(FORWARDING_MODE)?.parse();
    asked.map_err(|value| unserved.push(Unserved::Forwarding { annotation: FORWARDING_MODE, value })).ok()
}

/// The Service as the plan sees it; nothing when it is not the dataplane's to serve.
pub(super) fn service(object: &Service) -> (Option<model::Service>, Vec<Unserved>) {
    let mut unserved = Vec::new();
    let Some(spec) = &object.spec else { return (None, unserved) };
    let foreign = object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME));
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let headless = spec.cluster_ip.as_deref().is_none_or(|ip| ip.is_empty() || ip == "None");
    if foreign || headless || kind == "ExternalName" {
        return (None, unserved);
    }
    let single: Vec<String> = spec.cluster_ip.iter().cloned().collect();
    let cluster = spec.cluster_ips.as_ref().filter(|ips| !ips.is_empty()).unwrap_or(&single);
    let cluster_ips = addresses("spec.clusterIPs", cluster, None, &mut unserved);
    let external = spec.external_ips.as_deref().unwrap_or_default();
    let external_ips = addresses("spec.externalIPs", external, Some(&cluster_ips), &mut unserved);
    let (mut load_balancer_ips, mut source_ranges) = (Vec::new(), None);
    if kind == "LoadBalancer" {
        let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = ingress.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
        // `Proxy`: the load balancer is an endpoint of its own, and the address is not to be short-circuited (KEP-1860).
        let vips = ingress.iter().filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let vips: Vec<String> = vips.filter_map(|ingress| ingress.ip.clone()).collect();
        let field = "status.loadBalancer.ingress";
        load_balancer_ips = addresses(field, &vips, Some(&cluster_ips), &mut unserved);
        let ranges = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty());
        source_ranges =
            ranges.map(|ranges| ranges.iter().filter_map(|text| range(text, &mut unserved)).collect());
    }
    let forwarding = forwarding(object, &mut unserved);
    let affinity_timeout_s = if spec.session_affinity.as_deref() == Some("ClientIP") {
        let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        client.and_then(|client| client.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_S).max(1) as u32
    } else {
        0
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let ports = ports.iter().filter_map(|port| {
        let protocol = protocol(port.protocol.as_deref(), port.port, &mut unserved)?;
        let node_port =
            port.node_port.filter(|value| *value != 0 && matches!(kind, "NodePort" | "LoadBalancer"));
        Some(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: port_number("spec.ports.port", port.port, &mut unserved)?,
            node_port: node_port.and_then(|value| port_number("spec.ports.nodePort", value, &mut unserved)),
        })
    });
    let ports = distinct(ports.collect(), &mut unserved);
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let asked =
        spec.health_check_node_port.filter(|port| *port != 0 && kind == "LoadBalancer" && external_local);
    let health_check_port =
        asked.and_then(|port| port_number("spec.healthCheckNodePort", port, &mut unserved));
    let service = model::Service {
        cluster_ips,
        external_ips,
        load_balancer_ips,
        source_ranges,
        ports,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        health_check_port,
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        forwarding,
        affinity_timeout_s,
    };
    unserved.sort();
    (Some(service), unserved)
}

/// Addresses that clients talk to; of these families, if any are given.
fn addresses(
    field: &'static str,
    texts: &[String],
    families: Option<&[IpAddr]>,
    unserved: &mut Vec<Unserved>,
) -> Vec<IpAddr> {
    let read = |text: &String| {
        let address: IpAddr = text.parse().map_err(|_| Unserved::Address { field, value: text.clone() })?;
        let served = |families: &[IpAddr]| families.iter().any(|own| own.is_ipv4() == address.is_ipv4());
        if families.is_none_or(served) {
            usable(field, address)
        } else {
            Err(Unserved::Family { field, address })
        }
    };
    texts.iter().filter_map(|text| read(text).map_err(|problem| unserved.push(problem)).ok()).collect()
}

/// Ports that can be told apart. The API server sees to that, but not for objects that are older than its rules.
fn distinct(ports: Vec<ServicePort>, unserved: &mut Vec<Unserved>) -> Vec<ServicePort> {
    let mut kept: Vec<ServicePort> = Vec::with_capacity(ports.len());
    for mut port in ports {
        let before = || kept.iter().filter(|other| other.protocol == port.protocol);
        let mut twice = |field, value: String| unserved.push(Unserved::Twice { field, value });
        let number = |number: u16| format!("{number}/{}", protocol_name(port.protocol));
        if before().any(|other| other.name == port.name) {
            twice("spec.ports.name", port.name.to_string());
        } else if before().any(|other| other.port == port.port) {
            twice("spec.ports.port", number(port.port));
        } else {
            if let Some(taken) =
                port.node_port.filter(|_| before().any(|other| other.node_port == port.node_port))
            {
                twice("spec.ports.nodePort", number(taken));
                port.node_port = None;
            }
            kept.push(port);
        }
    }
    kept
}

/// One of `loadBalancerSourceRanges`. The API admits blanks around it, and host bits within it.
fn range(text: &str, unserved: &mut Vec<Unserved>) -> Option<Cidr> {
    match text.trim().parse() {
        Ok(range) | Err(CidrError::HostBits(_, range)) => Some(range),
        Err(_) => {
            let field = "spec.loadBalancerSourceRanges";
            unserved.push(Unserved::Range { field, value: text.to_owned() });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_dataplane_ebpf::Protocol;

    use super::*;

    fn read(spec: &serde_json::Value) -> (Option<model::Service>, Vec<Unserved>) {
        let object = json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec});
        service(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn foreign_headless_and_external_names_are_not_ours() {
        assert_eq!(read(&json!({"clusterIP": "None", "ports": [{"port": 80}]})), (None, vec![]));
        assert_eq!(read(&json!({"type": "ExternalName", "externalName": "x"})), (None, vec![]));
        let labelled: Service = serde_json::from_value(json!({
            "metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
        }))
        .unwrap();
        assert_eq!(service(&labelled).0, None);
    }

    #[test]
    fn what_is_not_served_is_named_and_the_rest_served() {
        let (service, unserved) = read(&json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": ["nonsense", "192.0.2.7"],
            "loadBalancerSourceRanges": ["10.0.0.0/33"], "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 99, "protocol": "DCCP", "name": "s"}, {"port": 0, "name": "z"}],
        }));
        let service = service.unwrap();
        assert_eq!(
            (service.ports.len(), service.external_ips.len(), service.affinity_timeout_s),
            (1, 1, 10_800)
        );
        assert_eq!(
            unserved,
            [
                Unserved::Protocol { port: 99, protocol: "DCCP".into() },
                Unserved::Address { field: "spec.externalIPs", value: "nonsense".into() },
                Unserved::Port { field: "spec.ports.port", value: 0 },
                Unserved::Range { field: "spec.loadBalancerSourceRanges", value: "10.0.0.0/33".into() },
            ]
        );
    }

    #[test]
    fn an_annotation_says_the_forwarding_mode() {
        let mode = |value: Option<&str>| {
            let annotations = value.map(|value| json!({"weir.dev/forwarding-mode": value}));
            let object = json!({
                "metadata": {"name": "s", "namespace": "n", "annotations": annotations},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            });
            let (service, unserved) = service(&serde_json::from_value(object).unwrap());
            (service.unwrap().forwarding, unserved.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(mode(None), (None, vec![]));
        assert_eq!(mode(Some("snat")), (Some(ForwardingMode::Snat), vec![]));
        assert_eq!(mode(Some("dsr")), (Some(ForwardingMode::Dsr), vec![]));
        assert_eq!(mode(Some("dsr-option")), (Some(ForwardingMode::DsrOption), vec![]));
        let told = "annotation weir.dev/forwarding-mode: `DSR` is none of snat, dsr and dsr-option; the node's own mode is used";
        assert_eq!(mode(Some("DSR")), (None, vec![told.to_owned()]));
    }

    #[test]
    fn a_load_balancer_with_policy_local_has_a_health_check() {
        let port = |kind: &str, policy: &str, port: i32| {
            let spec = json!({
                "type": kind, "clusterIP": "10.96.0.1", "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            });
            let (service, unserved) = read(&spec);
            (service.unwrap().health_check_port, unserved.len())
        };
        assert_eq!(port("LoadBalancer", "Local", 32_000), (Some(32_000), 0));
        assert_eq!(port("LoadBalancer", "Local", 0), (None, 0));
        assert_eq!(port("LoadBalancer", "Local", 70_000), (None, 1));
        assert_eq!(port("LoadBalancer", "Cluster", 32_000), (None, 0));
        assert_eq!(port("NodePort", "Local", 32_000), (None, 0));
    }

    #[test]
    fn source_ranges_are_read_as_the_api_admits_them() {
        let ranges = |texts: serde_json::Value| {
            let object = json!({
                "metadata": {"name": "s", "namespace": "n"},
                "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "loadBalancerSourceRanges": texts},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
            });
            let (service, unserved) = service(&serde_json::from_value(object).unwrap());
            let service = service.unwrap();
            assert_eq!(service.load_balancer_ips.len(), 1);
            let ranges = service.source_ranges;
            let texts = ranges.map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
            (texts, unserved.len())
        };
        let some = |texts: &[&str]| Some(texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(ranges(json!([])), (None, 0), "without any, everyone");
        assert_eq!(
            ranges(json!([" 10.1.2.3/8", "fd00::/8", "10.0.0.0/8"])),
            (some(&["10.0.0.0/8", "fd00::/8"]), 0)
        );
        assert_eq!(ranges(json!(["10.0.0.0/8", "nonsense"])), (some(&["10.0.0.0/8"]), 1));
        assert_eq!(ranges(json!(["nonsense"])), (some(&[]), 1), "a mistake opens nothing");
    }

    #[test]
    fn impossible_combinations_are_named_and_the_rest_served() {
        let (service, unserved) = read(&json!({
            "type": "NodePort", "clusterIP": "10.96.0.1",
            "externalIPs": ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "fd00::7", "192.0.2.7"],
            "ports": [
                {"name": "a", "port": 80, "nodePort": 30080}, {"name": "a", "port": 81}, {"name": "b", "port": 80},
                {"name": "c", "port": 82, "nodePort": 30080}, {"name": "a", "port": 80, "nodePort": 30080, "protocol": "UDP"},
            ],
        }));
        let service = service.unwrap();
        assert_eq!(service.external_ips, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        let ports: Vec<_> =
            service.ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.node_port)).collect();
        assert_eq!(
            ports,
            [
                ("a", Protocol::TCP, 80, Some(30080)),
                ("c", Protocol::TCP, 82, None),
                ("a", Protocol::UDP, 80, Some(30080)),
            ]
        );
        let texts: Vec<String> = unserved.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.externalIPs 0.0.0.0 is the unspecified address, which nobody can send to; give one that clients can reach",
                "spec.externalIPs 127.0.0.1 is a loopback address, which means another machine to each client; give one that clients can reach",
                "spec.externalIPs 169.254.1.1 is a link-local address, which ends at the next router; give one that clients can reach",
                "spec.externalIPs 224.0.0.1 is a multicast address, which no single machine answers from; give one that clients can reach",
                "spec.externalIPs fd00::7: the Service has no address of this family; add the family to spec.ipFamilies",
                "spec.ports.name `a` is there twice; the first is served: give the other another one",
                "spec.ports.nodePort `30080/tcp` is there twice; the first is served: give the other another one",
                "spec.ports.port `80/tcp` is there twice; the first is served: give the other another one",
            ]
        );
    }
}
