//! From API objects to the plan's model. What cannot be served is named, never left out in silence.

use std::net::IpAddr;

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use weir_dataplane_ebpf::Protocol;

use crate::{
    cidr::{Cidr, CidrError},
    plan::model::{self, ServicePort, SlicePort},
};

/// Says that another implementation serves this Service (KEP-2447).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// `sessionAffinity`'s default timeout, from the API's documentation.
const DEFAULT_AFFINITY_S: i32 = 10_800;
/// The Node's label that says where it is.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A wish of an object that the dataplane does not fulfil.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unserved {
    /// A protocol without an implementation here.
    #[error("port {port}: protocol {protocol} is not served; TCP and UDP are")]
    Protocol {
        /// The service port.
        port: i32,
        /// Its protocol.
        protocol: String,
    },
    /// An address that is none.
    #[error("{field} `{value}` is not an IP address")]
    Address {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// An address that no client could reach.
    #[error("{field} {address} is {kind}; give one that they can reach")]
    Unreachable {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        address: IpAddr,
        /// What is wrong with it.
        kind: &'static str,
    },
    /// A port number out of range.
    #[error("{field} {value} is not a port; ports are 1 to 65535")]
    Port {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: i32,
    },
    /// A range that is none. The others are served.
    #[error("{field} `{value}` is not a range as in 10.0.0.0/8 or fd00::/8; it admits nobody")]
    Range {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
}

/// What the agent must know of its own Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Ranges that pods of this node get their addresses from.
    pub pod_cidrs: Vec<Cidr>,
    /// The zone that it is in, if it is in one.
    pub zone: Option<Box<str>>,
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let several = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let single = spec.and_then(|spec| spec.pod_cidr.clone());
        let mut pod_cidrs = Vec::new();
        for text in several.into_iter().chain(single) {
            match text.parse::<Cidr>() {
                Ok(range) if !pod_cidrs.contains(&range) => pod_cidrs.push(range),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the Node's podCIDR is not a range"),
            }
        }
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
        // An empty value is what a label without one has.
        Self { pod_cidrs, zone: zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()) }
    }
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
    let parse = |field, texts: &[String], unserved: &mut Vec<Unserved>| -> Vec<IpAddr> {
        let parsed = texts.iter().filter_map(|text| {
            text.parse().map_err(|_| unserved.push(Unserved::Address { field, value: text.clone() })).ok()
        });
        parsed.collect()
    };
    let single: Vec<String> = spec.cluster_ip.iter().cloned().collect();
    let cluster = spec.cluster_ips.as_ref().filter(|ips| !ips.is_empty()).unwrap_or(&single);
    let cluster_ips = parse("spec.clusterIPs", cluster, &mut unserved);
    let external_ips =
        parse("spec.externalIPs", spec.external_ips.as_deref().unwrap_or_default(), &mut unserved);
    let (mut load_balancer_ips, mut source_ranges) = (Vec::new(), None);
    if kind == "LoadBalancer" {
        let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = ingress.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
        // `Proxy`: the load balancer is an endpoint of its own, and the address is not to be short-circuited (KEP-1860).
        let vips = ingress.iter().filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let vips: Vec<String> = vips.filter_map(|ingress| ingress.ip.clone()).collect();
        load_balancer_ips = parse("status.loadBalancer.ingress", &vips, &mut unserved);
        let ranges = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty());
        source_ranges =
            ranges.map(|ranges| ranges.iter().filter_map(|text| range(text, &mut unserved)).collect());
    }
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
    let ports = ports.collect();
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
        affinity_timeout_s,
    };
    unserved.sort();
    (Some(service), unserved)
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

/// Whether clients can reach a service at an address that `field` names.
pub(super) fn usable(field: &'static str, address: IpAddr) -> Result<IpAddr, Unserved> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let kind = if address.is_loopback() {
        "a loopback address, which means another machine to each client"
    } else if link_local {
        "a link-local address, which ends at the next router"
    } else if address.is_multicast() {
        "a multicast address, which no single machine answers from"
    } else if address.is_unspecified() {
        "the unspecified address, which nobody can send to"
    } else {
        return Ok(address);
    };
    Err(Unserved::Unreachable { field, address, kind })
}

/// A port number.
pub(super) fn port_number(field: &'static str, value: i32, unserved: &mut Vec<Unserved>) -> Option<u16> {
    let number = u16::try_from(value).ok().filter(|port| *port > 0);
    if number.is_none() {
        unserved.push(Unserved::Port { field, value });
    }
    number
}

pub(super) fn protocol(text: Option<&str>, port: i32, unserved: &mut Vec<Unserved>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        other => {
            unserved.push(Unserved::Protocol { port, protocol: other.to_owned() });
            None
        }
    }
}

/// The slice as the plan sees it. Wrong entries are left out: the slice's own controller wrote them, and nobody reads
/// Events of slices.
pub(super) fn slice(object: &EndpointSlice, node: &str) -> model::Slice {
    let ports = object.ports.as_deref().unwrap_or_default().iter().filter_map(|port| {
        Some(SlicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol(port.protocol.as_deref(), 0, &mut Vec::new())?,
            port: u16::try_from(port.port?).ok().filter(|port| *port > 0)?,
        })
    });
    let mut zones = Vec::new();
    let endpoints = object.endpoints.iter().filter_map(|endpoint| {
        // More than one address means the same pod (the API's documentation); kube-proxy takes the first, too.
        let address: Option<IpAddr> = endpoint.addresses.first().and_then(|address| address.parse().ok());
        address.filter(|address| !address.is_loopback() && !address.is_unspecified()).map(|address| {
            let conditions = endpoint.conditions.as_ref();
            // Absent means yes, for both; `serving` follows `ready` where it is absent.
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            model::Endpoint {
                address,
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                local: endpoint.node_name.as_deref() == Some(node),
                zones: hints(endpoint, &mut zones),
            }
        })
    });
    let endpoints = endpoints.collect();
    model::Slice { ports: ports.collect(), endpoints, zones }
}

/// Bits of the zones that an endpoint's hints name; `zones` gives each its bit. An endpoint whose hints do not fit has
/// none, and so its service is served without regard to zones.
fn hints(endpoint: &Endpoint, zones: &mut Vec<Box<str>>) -> u64 {
    let named = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let bit = |name: &str| {
        let known = zones.iter().position(|zone| **zone == *name);
        let bit = known.unwrap_or_else(|| {
            zones.push(name.into());
            zones.len() - 1
        });
        (bit < model::Slice::MOST_ZONES).then(|| 1_u64 << bit)
    };
    let bits: Option<Vec<u64>> = named.iter().map(|zone| zone.name.as_str()).map(bit).collect();
    bits.unwrap_or_default().into_iter().fold(0, |all, bit| all | bit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 99, "protocol": "SCTP", "name": "s"}, {"port": 0, "name": "z"}],
        }));
        let service = service.unwrap();
        assert_eq!(
            (service.ports.len(), service.external_ips.len(), service.affinity_timeout_s),
            (1, 1, 10_800)
        );
        assert_eq!(
            unserved,
            [
                Unserved::Protocol { port: 99, protocol: "SCTP".into() },
                Unserved::Address { field: "spec.externalIPs", value: "nonsense".into() },
                Unserved::Port { field: "spec.ports.port", value: 0 },
                Unserved::Range { field: "spec.loadBalancerSourceRanges", value: "10.0.0.0/33".into() },
            ]
        );
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
    fn hints_and_the_zone_they_are_for() {
        let zone = |labels: serde_json::Value| {
            let node: Node = serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap();
            NodeFacts::from(&node).zone
        };
        assert_eq!(zone(json!({"topology.kubernetes.io/zone": "z1"})).as_deref(), Some("z1"));
        assert_eq!(zone(json!({"topology.kubernetes.io/zone": ""})), None);
        assert_eq!(zone(json!({})), None);

        let hinted = |zones: &[String]| {
            let zones: Vec<_> = zones.iter().map(|name| json!({"name": name})).collect();
            json!({"addresses": ["10.244.0.2"], "hints": {"forZones": zones}})
        };
        let read = |endpoints: Vec<serde_json::Value>| {
            let object = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints});
            slice(&serde_json::from_value(object).unwrap(), "here")
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let few = read(vec![
            hinted(&names(&["z1"])),
            hinted(&names(&["z2", "z1"])),
            json!({"addresses": ["10.244.0.3"], "hints": {}}),
            json!({"addresses": ["10.244.0.4"]}),
        ]);
        assert_eq!(few.endpoints.iter().map(|e| e.zones).collect::<Vec<_>>(), [1, 3, 0, 0]);
        assert_eq!(few.zones, ["z1".into(), "z2".into()]);
        let many = (0..=model::Slice::MOST_ZONES).map(|n| hinted(&[format!("z{n}")])).collect();
        let many = read(many);
        assert_eq!(many.endpoints.last().map(|e| e.zones), Some(0), "no hint instead of a wrong one");
        assert!(many.endpoints.iter().rev().skip(1).all(|e| e.zones != 0));
    }

    #[test]
    fn absent_conditions_mean_ready() {
        let object = json!({
            "metadata": {"name": "s-1"}, "addressType": "IPv4", "ports": [{"name": "", "port": 8080}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.244.0.2"], "nodeName": "here"},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["127.0.0.1"]},
                {"addresses": []},
            ],
        });
        let slice = slice(&serde_json::from_value(object).unwrap(), "here");
        assert_eq!(slice.ports.len(), 1, "a port without a number is everyone's and so no one's");
        let states: Vec<_> =
            slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating, e.local)).collect();
        assert_eq!(states, [(true, true, false, true), (false, true, true, false)]);
    }
}
