//! What every cluster has from its first moment: four namespaces, and the `kubernetes` service that leads to this server.

use std::net::IpAddr;

use serde_json::{Value, json};
use weir_api::{Resource, Status, resource};

use crate::error::Error;
use crate::request::ResourcePath;
use crate::storage::{Change, Storage};
use crate::verbs;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// The port of the `kubernetes` service, whatever port the server itself listens on.
const SERVICE_PORT: u16 = 443;

/// Makes what is missing, and corrects where the service leads.
pub(crate) async fn ensure(
    storage: &Storage,
    service: IpAddr,
    endpoint: Option<IpAddr>,
    port: u16,
) -> Result<(), Error> {
    for name in NAMESPACES {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        create(storage, row("", "namespaces"), "", namespace).await?;
    }
    create(storage, row("", "services"), "default", kubernetes_service(service, port)).await?;
    ensure_endpoints(storage, endpoint, port).await
}

fn row(group: &str, plural: &str) -> &'static Resource {
    resource::find(group, "v1", plural).expect("the registry has every kind that the server itself makes")
}

/// Creates an object as a client would; one that is there is left alone.
async fn create(
    storage: &Storage,
    row: &'static Resource,
    namespace: &str,
    value: Value,
) -> Result<(), Error> {
    let name = weir_api::object::name(&value).to_owned();
    // Looked for first: a service that is there has the address that a second one would be refused for.
    if storage.cached(row, namespace, &name).is_some() {
        return Ok(());
    }
    let path = ResourcePath { row, namespace: namespace.to_owned(), name: String::new(), subresource: None };
    match verbs::insert(storage, &path, value, false).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        Err(status) => Err(failed(row, &name, status)),
    }
}

fn failed(row: &Resource, name: &str, status: Status) -> Error {
    Error::Bootstrap { what: format!("{} {name:?}", row.qualified()), status }
}

fn kubernetes_service(address: IpAddr, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        // Without a selector: the endpoints are not pods, and this server writes them itself.
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "clusterIPs": [address.to_string()],
            "ports": [{ "name": "https", "protocol": "TCP", "port": SERVICE_PORT, "targetPort": port }],
        },
    })
}

async fn ensure_endpoints(storage: &Storage, endpoint: Option<IpAddr>, port: u16) -> Result<(), Error> {
    let row = row("discovery.k8s.io", "endpointslices");
    let ready =
        |address: IpAddr| json!({ "addresses": [address.to_string()], "conditions": { "ready": true } });
    let endpoints = Value::from_iter(endpoint.map(ready));
    let ports = json!([{ "name": "https", "protocol": "TCP", "port": port }]);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": if endpoint.is_some_and(|address| address.is_ipv6()) { "IPv6" } else { "IPv4" },
        "endpoints": endpoints.clone(),
        "ports": ports.clone(),
    });
    create(storage, row, "default", slice).await?;
    // It may be another machine's by now, or another port.
    let change = storage.change(row, ("default", "kubernetes"), false, |old| {
        let mut new = old.clone();
        new["endpoints"] = endpoints.clone();
        new["ports"] = ports.clone();
        row.apply_defaults(&mut new);
        Ok(Change::Put(new))
    });
    change.await.map(drop).map_err(|status| failed(row, "kubernetes", status))
}
