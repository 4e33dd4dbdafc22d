//! Services as API objects, as the watch hands them to the store.

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::runtime::watcher::Event;
use weir_dataplane::watch::{Change, Store};
use weir_tests::rules;

/// A Service and its slice.
pub(crate) type Objects = (Service, EndpointSlice);

/// The objects that a port of a Service would come from.
pub(crate) fn of(port: &rules::ServicePort) -> Objects {
    let metadata = |name: String| ObjectMeta {
        name: Some(name),
        namespace: Some(port.namespace.clone()),
        uid: Some(format!("00000000-0000-4000-8000-{}", port.name)),
        ..ObjectMeta::default()
    };
    let address = port.cluster_ip.to_string();
    let spec = ServiceSpec {
        type_: Some(if port.node_port.is_some() { "NodePort" } else { "ClusterIP" }.into()),
        cluster_ip: Some(address.clone()),
        cluster_ips: Some(vec![address]),
        ports: Some(vec![ServicePort {
            name: Some(port.port_name.clone()),
            port: i32::from(port.port),
            protocol: Some(port.protocol.name().to_uppercase()),
            node_port: port.node_port.map(i32::from),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    let service = Service { metadata: metadata(port.name.clone()), spec: Some(spec), ..Service::default() };
    let mut of_slice = metadata(format!("{}-1", port.name));
    of_slice.labels = Some([("kubernetes.io/service-name".to_owned(), port.name.clone())].into());
    let endpoint = |endpoint: &rules::Endpoint| Endpoint {
        addresses: vec![endpoint.address.ip().to_string()],
        node_name: Some(if endpoint.local { "here" } else { "elsewhere" }.into()),
        conditions: Some(EndpointConditions {
            ready: Some(endpoint.ready),
            serving: Some(endpoint.serving),
            terminating: Some(endpoint.terminating),
        }),
        ..Endpoint::default()
    };
    let slice = EndpointSlice {
        metadata: of_slice,
        address_type: "IPv4".into(),
        endpoints: port.endpoints.iter().map(endpoint).collect(),
        ports: Some(vec![EndpointPort {
            name: Some(port.port_name.clone()),
            port: port.endpoints.first().map(|endpoint| i32::from(endpoint.address.port())),
            protocol: Some(port.protocol.name().to_uppercase()),
            ..EndpointPort::default()
        }]),
    };
    (service, slice)
}

/// Hands the objects to the store.
pub(crate) fn apply(store: &mut Store, (service, slice): Objects) {
    store.apply(Change::Service(Event::Apply(service)));
    store.apply(Change::Slice(Event::Apply(slice)));
}
