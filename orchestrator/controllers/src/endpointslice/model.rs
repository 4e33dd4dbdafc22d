//! What one slice says: its ports and family, its endpoints, whose it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;

use crate::pods::{NamedPort, PodView};

/// The label that names the Service of a slice.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who writes a slice.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of it: the name upstream's controller has, which others select on.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label of slices of headless Services.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The addresses of one Service that share ports and family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) family: &'static str,
    /// Name, protocol, number and application protocol of each port.
    pub(super) ports: Vec<(String, String, Option<i32>, Option<String>)>,
}

pub(super) fn endpoint(
    service: &Service,
    pod: &PodView,
    ip: &str,
    zone: Option<String>,
    publish_all: bool,
) -> Endpoint {
    let serving = pod.ready;
    let in_subdomain = pod.subdomain.is_some() && pod.subdomain == service.metadata.name;
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish_all || (serving && !pod.deleting)),
            serving: Some(serving),
            terminating: Some(pod.deleting),
        }),
        hostname: pod.hostname.clone().filter(|hostname| in_subdomain && !hostname.is_empty()),
        node_name: Some(pod.node.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        zone,
        ..Endpoint::default()
    }
}

/// The Service's ports with the numbers this pod has for them. A name the pod does not know is left out.
pub(super) fn ports(
    ports: &[ServicePort],
    pod: &PodView,
) -> Vec<(String, String, Option<i32>, Option<String>)> {
    let mut found: Vec<_> = ports
        .iter()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = match port.target_port.as_ref() {
                None | Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => {
                    let named = |one: &&NamedPort| one.name == *name && one.protocol == protocol;
                    pod.ports.iter().find(named)?.port
                }
            };
            Some((port.name.clone().unwrap_or_default(), protocol, Some(number), port.app_protocol.clone()))
        })
        .collect();
    found.sort();
    found
}

pub(super) fn group_of(slice: &EndpointSlice) -> Option<Group> {
    let family = match slice.address_type.as_str() {
        "IPv4" => "IPv4",
        "IPv6" => "IPv6",
        _ => return None,
    };
    let mut ports: Vec<_> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            (port.name.clone().unwrap_or_default(), protocol, port.port, port.app_protocol.clone())
        })
        .collect();
    ports.sort();
    Some(Group { family, ports })
}

pub(super) fn new_slice(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    labels: BTreeMap<String, String>,
    owner: OwnerReference,
) -> EndpointSlice {
    let ports = group.ports.iter().map(|(name, protocol, port, app_protocol)| EndpointPort {
        name: Some(name.clone()),
        protocol: Some(protocol.clone()),
        port: *port,
        app_protocol: app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: group.family.to_owned(),
        endpoints,
        ports: Some(ports.collect()),
    }
}

pub(super) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    let reserved = BTreeSet::from([HEADLESS, SERVICE_NAME, MANAGED_BY]);
    labels.retain(|key, _| !reserved.contains(key.as_str()));
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

pub(super) fn owner_reference(service: &Service) -> OwnerReference {
    let owner = service.controller_owner_ref(&()).unwrap_or_default();
    OwnerReference { block_owner_deletion: Some(true), ..owner }
}

pub(super) fn families(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let mut known: Vec<_> = families
        .iter()
        .filter_map(|family| ["IPv4", "IPv6"].into_iter().find(|known| known == family))
        .collect();
    if known.is_empty() {
        known.push("IPv4");
    }
    known
}

pub(super) fn family_of(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

pub(super) fn uid(endpoint: &Endpoint) -> &str {
    endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default()
}

pub(super) fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}
