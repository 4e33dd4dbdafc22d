//! Which slices a Service needs: a pure function of the Service, its pods, their nodes and the slices there are.
//!
//! Pods whose named ports have the same numbers share slices, at most [`ENDPOINTS_MAX`] in each. Existing slices are
//! changed as little as possible: an endpoint stays where it is, the gone are taken out, the new fill the slices
//! that are written anyway, then the fullest that have room. Each write is an event for every node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;

use crate::pods::PodView;

/// Most endpoints in one slice, as upstream.
pub(super) const ENDPOINTS_MAX: usize = 100;
/// The label that names the Service of a slice.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who writes a slice.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of it: the name upstream's controller has, which others select on.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label of slices of headless Services.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Make this slice.
    Create(EndpointSlice),
    /// Write this slice over the one of its name.
    Update(EndpointSlice),
    /// Delete the slice of this name.
    Delete(String),
}

/// The addresses of one Service that share ports and family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    family: &'static str,
    /// Name, protocol, number and application protocol of each port.
    ports: Vec<(String, String, Option<i32>, Option<String>)>,
}

/// The plan. `zone` gives the zone of a node, and `None` for a node that does not exist.
pub(super) fn plan<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a PodView>,
    zone: impl Fn(&str) -> Option<Option<String>>,
    slices: &[EndpointSlice],
) -> Vec<Step> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = families(service);
    let mut wanted: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    let publish_all = spec.publish_not_ready_addresses.unwrap_or_default();
    for pod in pods {
        // A pod that has ended keeps its address on paper only.
        if pod.has_ended() || pod.node.is_empty() {
            continue;
        }
        // A pod on a node that is gone is not reachable.
        let Some(zone) = zone(&pod.node) else { continue };
        let ports = ports(&spec.ports.clone().unwrap_or_default(), pod);
        for family in &families {
            let Some(ip) = pod.ips.iter().find(|ip| family_of(ip) == Some(*family)) else { continue };
            let group = Group { family, ports: ports.clone() };
            let endpoint = endpoint(service, pod, ip, zone.clone(), publish_all);
            wanted.entry(group).or_default().insert(pod.uid.clone(), endpoint);
        }
    }
    // A Service without endpoints has an empty slice all the same: it says that somebody has looked.
    for family in &families {
        if !wanted.keys().any(|group| group.family == *family) {
            wanted.insert(Group { family, ports: Vec::new() }, BTreeMap::new());
        }
    }
    let mut steps = Vec::new();
    for (group, endpoints) in &mut wanted {
        let mine: Vec<_> = slices.iter().filter(|slice| group_of(slice).as_ref() == Some(group)).collect();
        steps.extend(fill(service, group, std::mem::take(endpoints), &mine));
    }
    let unused =
        slices.iter().filter(|slice| group_of(slice).is_none_or(|group| !wanted.contains_key(&group)));
    steps.extend(unused.map(|slice| Step::Delete(name(slice))));
    steps
}

/// Fits the endpoints of one group into its slices.
fn fill(
    service: &Service,
    group: &Group,
    mut wanted: BTreeMap<String, Endpoint>,
    slices: &[&EndpointSlice],
) -> Vec<Step> {
    let (labels, owner) = (labels(service), owner_reference(service));
    let mut kept = Vec::new();
    for slice in slices {
        let mut changed = slice.metadata.labels.as_ref() != Some(&labels);
        let mut endpoints = Vec::new();
        for endpoint in &slice.endpoints {
            match wanted.remove(uid(endpoint)) {
                Some(new) => {
                    changed |= new != *endpoint;
                    endpoints.push(new);
                }
                None => changed = true,
            }
        }
        kept.push((*slice, endpoints, changed));
    }
    let mut rest: Vec<_> = wanted.into_values().collect();
    // First the slices that are written anyway, then those with the least room that have enough of it.
    for (_, endpoints, _) in
        kept.iter_mut().filter(|(_, endpoints, changed)| *changed && !endpoints.is_empty())
    {
        take(&mut rest, endpoints);
    }
    if !rest.is_empty() && rest.len() < ENDPOINTS_MAX {
        let fits = |endpoints: &[Endpoint]| endpoints.len() + rest.len() <= ENDPOINTS_MAX;
        let fullest = kept
            .iter_mut()
            .filter(|(_, endpoints, _)| fits(endpoints))
            .max_by_key(|(_, endpoints, _)| endpoints.len());
        if let Some((_, endpoints, changed)) = fullest {
            take(&mut rest, endpoints);
            *changed = true;
        }
    }
    // An emptied slice is used again before a new one is made.
    for (_, endpoints, changed) in kept.iter_mut().filter(|(_, endpoints, _)| endpoints.is_empty()) {
        *changed |= take(&mut rest, endpoints) > 0;
    }
    let mut steps = Vec::new();
    while !rest.is_empty() || (slices.is_empty() && steps.is_empty()) {
        let mut endpoints = Vec::new();
        take(&mut rest, &mut endpoints);
        steps.push(Step::Create(new_slice(service, group, endpoints, labels.clone(), owner.clone())));
    }
    // One empty slice may stay as the placeholder when there is nothing else.
    let all_empty = kept.iter().all(|(_, endpoints, _)| endpoints.is_empty()) && steps.is_empty();
    for (index, (slice, endpoints, changed)) in kept.into_iter().enumerate() {
        if endpoints.is_empty() && !(all_empty && index == 0) {
            steps.push(Step::Delete(name(slice)));
        } else if changed {
            let mut slice = (*slice).clone();
            slice.endpoints = endpoints;
            slice.metadata.labels = Some(labels.clone());
            steps.push(Step::Update(slice));
        }
    }
    steps
}

fn take(from: &mut Vec<Endpoint>, into: &mut Vec<Endpoint>) -> usize {
    let count = from.len().min(ENDPOINTS_MAX.saturating_sub(into.len()));
    into.extend(from.drain(..count));
    count
}

fn endpoint(service: &Service, pod: &PodView, ip: &str, zone: Option<String>, publish_all: bool) -> Endpoint {
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
fn ports(ports: &[ServicePort], pod: &PodView) -> Vec<(String, String, Option<i32>, Option<String>)> {
    let mut found: Vec<_> = ports
        .iter()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let number = match port.target_port.as_ref() {
                None | Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => {
                    let named = |one: &&crate::pods::NamedPort| one.name == *name && one.protocol == protocol;
                    pod.ports.iter().find(named)?.port
                }
            };
            Some((port.name.clone().unwrap_or_default(), protocol, Some(number), port.app_protocol.clone()))
        })
        .collect();
    found.sort();
    found
}

fn group_of(slice: &EndpointSlice) -> Option<Group> {
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

fn new_slice(
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

fn labels(service: &Service) -> BTreeMap<String, String> {
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

fn owner_reference(service: &Service) -> OwnerReference {
    let owner = service.controller_owner_ref(&()).unwrap_or_default();
    OwnerReference { block_owner_deletion: Some(true), ..owner }
}

fn families(service: &Service) -> Vec<&'static str> {
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

fn family_of(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn uid(endpoint: &Endpoint) -> &str {
    endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default()
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_client::ObjectKey;

    use super::*;
    use crate::pods::{NamedPort, Phase};

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "s", "labels": { "team": "t" } },
            "spec": {
                "clusterIP": "10.96.0.1", "selector": { "app": "web" },
                "ports": [{ "name": "http", "port": 80, "targetPort": "web" }]
            }
        }))
        .expect("is a Service")
    }

    fn pod(number: usize) -> PodView {
        PodView {
            key: ObjectKey::new("ns", format!("web-{number}")),
            uid: format!("uid-{number:04}"),
            node: "n".into(),
            phase: Phase::Running,
            ips: vec![format!("10.244.{}.{}", number / 250, number % 250)],
            ready: true,
            ports: vec![NamedPort { name: "web".into(), protocol: "TCP".into(), port: 8080 }],
            ..PodView::default()
        }
    }

    fn run(service: &Service, pods: &[PodView], slices: &[EndpointSlice]) -> Vec<Step> {
        plan(service, pods, |_| Some(Some("zone-a".into())), slices)
    }

    /// The slices after the steps, as the API server would have them.
    fn applied(mut slices: Vec<EndpointSlice>, steps: &[Step]) -> Vec<EndpointSlice> {
        for step in steps {
            match step {
                Step::Create(slice) => {
                    let mut slice = slice.clone();
                    let taken =
                        |number: &usize| slices.iter().any(|slice| name(slice) == format!("web-{number}"));
                    let free = (0..=slices.len())
                        .find(|number| !taken(number))
                        .expect("one more number than slices");
                    slice.metadata.name = Some(format!("web-{free}"));
                    slices.push(slice);
                }
                Step::Update(slice) => {
                    let old = slices.iter_mut().find(|old| name(old) == name(slice)).expect("is there");
                    *old = slice.clone();
                }
                Step::Delete(gone) => slices.retain(|slice| name(slice) != *gone),
            }
        }
        slices
    }

    fn made(pods: &[PodView]) -> Vec<EndpointSlice> {
        applied(Vec::new(), &run(&service(), pods, &[]))
    }

    #[test]
    fn an_endpoint_says_who_where_and_how() {
        let slices = made(&[pod(1)]);
        let [slice] = slices.as_slice() else { panic!("one slice") };
        let expected = json!({
            "addresses": ["10.244.0.1"], "nodeName": "n", "zone": "zone-a",
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": { "kind": "Pod", "namespace": "ns", "name": "web-1", "uid": "uid-0001" },
        });
        assert_eq!(serde_json::to_value(&slice.endpoints[0]).expect("is JSON"), expected);
        let labels = slice.metadata.labels.clone().expect("has labels");
        assert_eq!(labels.get(SERVICE_NAME).map(String::as_str), Some("web"));
        assert_eq!(labels.get(MANAGED_BY).map(String::as_str), Some(MANAGER));
        assert_eq!(labels.get("team").map(String::as_str), Some("t"));
        let port = slice.ports.as_ref().and_then(|ports| ports.first()).expect("has a port");
        assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let pods: Vec<_> = (0..150).map(pod).collect();
        let slices = made(&pods);
        assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 50]);
        assert_eq!(run(&service(), &pods, &slices), []);
    }

    #[test]
    fn one_change_is_one_write() {
        let mut pods: Vec<_> = (0..150).map(pod).collect();
        let slices = made(&pods);
        pods[3].ready = false;
        assert_eq!(run(&service(), &pods, &slices).len(), 1);
        pods[3].ready = true;
        pods.push(pod(150));
        let steps = run(&service(), &pods, &slices);
        assert!(matches!(steps.as_slice(), [Step::Update(slice)] if slice.endpoints.len() == 51));
        // A replacement goes into the slice that loses an endpoint.
        pods.pop();
        pods[3] = pod(200);
        let steps = run(&service(), &pods, &slices);
        assert!(matches!(steps.as_slice(), [Step::Update(slice)] if slice.endpoints.len() == 100));
    }

    #[test]
    fn conditions_follow_readiness_and_termination() {
        // (ready, deleting, publishNotReadyAddresses) → (ready, serving, terminating)
        let table = [
            ((true, false, false), (true, true, false)),
            ((false, false, false), (false, false, false)),
            ((true, true, false), (false, true, true)),
            ((false, true, false), (false, false, true)),
            ((false, false, true), (true, false, false)),
        ];
        for ((ready, deleting, publish), expected) in table {
            let mut service = service();
            service.spec.as_mut().expect("has a spec").publish_not_ready_addresses = Some(publish);
            let slices = applied(Vec::new(), &run(&service, &[PodView { deleting, ready, ..pod(1) }], &[]));
            let conditions = slices[0].endpoints[0].conditions.clone().expect("has conditions");
            let says = |condition: Option<bool>| condition.expect("is said");
            let got = (says(conditions.ready), says(conditions.serving), says(conditions.terminating));
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn pods_that_number_a_named_port_differently_have_slices_of_their_own() {
        let mut other = pod(2);
        other.ports[0].port = 9090;
        let mut unnamed = pod(3);
        unnamed.ports.clear();
        let slices = made(&[pod(1), other, unnamed]);
        let ports = |slice: &EndpointSlice| {
            slice.ports.iter().flatten().filter_map(|port| port.port).collect::<Vec<_>>()
        };
        assert_eq!(slices.iter().map(ports).collect::<Vec<_>>(), [vec![], vec![8080], vec![9090]]);
    }

    #[test]
    fn a_service_without_endpoints_keeps_one_empty_slice() {
        let slices = made(&[]);
        assert_eq!(slices.len(), 1);
        assert_eq!(run(&service(), &[], &slices), []);
        let with_pod = applied(slices.clone(), &run(&service(), &[pod(1)], &slices));
        assert_eq!(with_pod.len(), 1, "the placeholder goes when there is something");
        let empty = applied(with_pod.clone(), &run(&service(), &[], &with_pod));
        assert_eq!(empty.len(), 1);
        assert!(empty[0].endpoints.is_empty());
        assert_eq!(run(&service(), &[], &empty), []);
    }

    #[test]
    fn ended_pods_and_pods_without_address_or_node_are_no_endpoints() {
        let ended = PodView { phase: Phase::Succeeded, ..pod(1) };
        let starting = PodView { ips: Vec::new(), ..pod(2) };
        let unplaced = PodView { node: String::new(), ..pod(3) };
        assert!(made(&[ended, starting, unplaced]).iter().all(|slice| slice.endpoints.is_empty()));
    }

    #[test]
    fn families_have_slices_of_their_own() {
        let mut service = service();
        let both = Some(vec!["IPv4".to_owned(), "IPv6".to_owned()]);
        service.spec.as_mut().expect("has a spec").ip_families = both;
        let mut dual = pod(1);
        dual.ips.push("fd00::1".into());
        let slices = applied(Vec::new(), &run(&service, &[dual], &[]));
        let families =
            slices.iter().map(|slice| (slice.address_type.as_str(), slice.endpoints[0].addresses.clone()));
        let expected = [("IPv4", vec!["10.244.0.1".to_owned()]), ("IPv6", vec!["fd00::1".to_owned()])];
        assert_eq!(families.collect::<Vec<_>>(), expected);
    }
}
