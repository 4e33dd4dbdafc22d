//! Plans on values.

use serde_json::json;
use weir_client::ObjectKey;

use super::*;
use crate::endpointslice::model::{MANAGED_BY, MANAGER, SERVICE_NAME};
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
                let free =
                    (0..=slices.len()).find(|number| !taken(number)).expect("one more number than slices");
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
    let ports =
        |slice: &EndpointSlice| slice.ports.iter().flatten().filter_map(|port| port.port).collect::<Vec<_>>();
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
