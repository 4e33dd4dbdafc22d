//! From API objects to the rules' model, as kube-proxy reads them (`pkg/proxy/serviceport.go`,
//! `pkg/proxy/endpointslicecache.go`). Written apart from Weir's own reading, so that either can be wrong alone.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use weir_tests::rules::{Endpoint, Family, Protocol, ServicePort};

use super::place::NODE_ADDRESSES;

/// Every port of every Service, in each of its families.
pub(crate) fn service_ports(services: &[Service], slices: &[EndpointSlice], node: &str) -> Vec<ServicePort> {
    services.iter().flat_map(|service| of_service(service, slices, node)).collect()
}

fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn in_family(texts: Option<&Vec<String>>, family: Family) -> Vec<IpAddr> {
    let addresses = texts.into_iter().flatten().filter_map(|text| text.parse().ok());
    addresses.filter(|address| family.has(*address)).collect()
}

fn of_service(service: &Service, slices: &[EndpointSlice], node: &str) -> Vec<ServicePort> {
    let spec = service.spec.as_ref().expect("a Service has a spec");
    let labels = service.metadata.labels.clone().unwrap_or_default();
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    if headless
        || spec.type_.as_deref() == Some("ExternalName")
        || labels.contains_key("service.kubernetes.io/service-proxy-name")
    {
        return Vec::new();
    }
    let name = service.metadata.name.clone().expect("a Service has a name");
    let namespace = service.metadata.namespace.clone().expect("a Service has a namespace");
    let is_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let vips: Vec<String> = ingress
        .into_iter()
        .flatten()
        .filter(|ingress| is_balancer && ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.clone())
        .collect();
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let affinity_timeout_s = affinity.then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config.and_then(|client| client.timeout_seconds).unwrap_or(10_800) as u32
    });
    let mut all = Vec::new();
    for cluster_ip in spec.cluster_ips.iter().flatten() {
        let cluster_ip: IpAddr = cluster_ip.parse().expect("a cluster address");
        let family = if cluster_ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let source_ranges: Vec<String> = spec
            .load_balancer_source_ranges
            .iter()
            .flatten()
            .filter(|range| range.contains(':') == (family == Family::V6))
            .cloned()
            .collect();
        // The corpus names single addresses, so that no prefixes need to be compared.
        let node_in_source_ranges = NODE_ADDRESSES
            .iter()
            .any(|address| source_ranges.iter().any(|range| range.split('/').next() == Some(address)));
        for port in spec.ports.iter().flatten() {
            let port_name = port.name.clone().unwrap_or_default();
            let protocol = protocol(port.protocol.as_deref());
            all.push(ServicePort {
                namespace: namespace.clone(),
                name: name.clone(),
                endpoints: endpoints((&namespace, &name), (&port_name, protocol), family, slices, node),
                port_name,
                protocol,
                cluster_ip,
                port: port.port as u16,
                node_port: port.node_port.filter(|port| *port != 0).map(|port| port as u16),
                external_ips: in_family(spec.external_ips.as_ref(), family),
                load_balancer_ips: in_family(Some(&vips), family),
                source_ranges: source_ranges.clone(),
                node_in_source_ranges,
                external_local: is_local(&spec.external_traffic_policy),
                internal_local: is_local(&spec.internal_traffic_policy),
                affinity_timeout_s,
                health_check_node_port: spec.health_check_node_port.map(|port| port as u16),
            });
        }
    }
    all
}

fn endpoints(
    (namespace, service): (&str, &str),
    (port_name, transport): (&str, Protocol),
    family: Family,
    slices: &[EndpointSlice],
    node: &str,
) -> Vec<Endpoint> {
    let mut all = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let of_service =
            labels.and_then(|labels| labels.get("kubernetes.io/service-name")).map(String::as_str);
        if of_service != Some(service) || slice.metadata.namespace.as_deref() != Some(namespace) {
            continue;
        }
        for port in slice.ports.iter().flatten() {
            let named = port.name.as_deref().unwrap_or_default() == port_name;
            let Some(number) = port.port.filter(|_| named && protocol(port.protocol.as_deref()) == transport)
            else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let address: IpAddr = endpoint.addresses[0].parse().expect("an endpoint's address");
                if !family.has(address) {
                    continue;
                }
                let conditions = endpoint.conditions.clone().unwrap_or_default();
                let ready = conditions.ready.unwrap_or(true);
                let endpoint = Endpoint {
                    address: (address, number as u16).into(),
                    local: endpoint.node_name.as_deref() == Some(node),
                    ready,
                    serving: conditions.serving.unwrap_or(ready),
                    terminating: conditions.terminating.unwrap_or(false),
                };
                all.insert(endpoint.address, endpoint);
            }
        }
    }
    all.into_values().collect()
}
