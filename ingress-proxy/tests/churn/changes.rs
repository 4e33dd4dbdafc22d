//! What changes, and what there is from the start.

use std::sync::Arc;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::stream::{self, StreamExt as _};
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weir_tests::{Authority, Pair};
use weir_tests_apiserver::Apiserver;

use super::{ENDPOINTS, HOST, backend};

/// Between two changes of the endpoints.
const FLAP: Duration = Duration::from_millis(100);
/// Ingresses that come and go, and how many of them side by side.
const INGRESSES: usize = 1_000;
const SIDE_BY_SIDE: usize = 16;

fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {"labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": backend::PORT, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn ingress(host: &str, paths: &[(&str, &str)]) -> Value {
    let paths: Vec<Value> = paths
        .iter()
        .map(|(path, service)| {
            let backend = json!({"service": {"name": service, "port": {"name": "http"}}});
            json!({"path": path, "pathType": "Prefix", "backend": backend})
        })
        .collect();
    json!({"spec": {"ingressClassName": "weir", "rules": [{"host": host, "http": {"paths": paths}}]}})
}

fn data(authority: &Authority) -> Value {
    let Pair { chain, key } = authority.issue(HOST);
    json!({"tls.crt": STANDARD.encode(chain), "tls.key": STANDARD.encode(key)})
}

/// What there is from the start.
pub(super) fn objects(authority: &Authority) -> Vec<(&'static str, Value)> {
    let mut first = ingress(HOST, &[("/", "web"), ("/grpc", "grpc")]);
    first["spec"]["tls"] = json!([{"hosts": [HOST], "secretName": "pair"}]);
    // It is asked both ways.
    first["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/ssl-redirect": "false"});
    let grpc = json!({"name": "http", "port": 80, "appProtocol": "kubernetes.io/h2c"});
    vec![
        ("ingressclasses//weir", json!({"spec": {"controller": weir_ingress::compile::CONTROLLER}})),
        ("secrets/default/pair", json!({"type": "kubernetes.io/tls", "data": data(authority)})),
        ("services/default/web", json!({"spec": {"ports": [{"name": "http", "port": 80}]}})),
        ("services/default/grpc", json!({"spec": {"ports": [grpc]}})),
        ("endpointslices/default/web-1", slice("web", &ENDPOINTS)),
        ("endpointslices/default/grpc-1", slice("grpc", &ENDPOINTS)),
        ("ingresses/default/first", first),
    ]
}

/// Half of the endpoints at a time, always others. Returns how often they changed.
pub(super) async fn flap(api: Arc<Apiserver>, stop: CancellationToken) -> usize {
    let mut turns = 0;
    while !stop.is_cancelled() {
        let first = turns % ENDPOINTS.len();
        let half = [ENDPOINTS[first], ENDPOINTS[(first + 1) % ENDPOINTS.len()]];
        for service in ["web", "grpc"] {
            let endpoints = slice(service, &half)["endpoints"].take();
            api.merge(&format!("endpointslices/default/{service}-1"), json!({"endpoints": endpoints})).await;
        }
        turns += 1;
        sleep(FLAP).await;
    }
    turns
}

/// One certificate after the other. Returns how many.
pub(super) async fn rotate(api: Arc<Apiserver>, authority: Authority, stop: CancellationToken) -> usize {
    let mut turns = 0;
    while !stop.is_cancelled() {
        api.merge("secrets/default/pair", json!({"data": data(&authority)})).await;
        turns += 1;
        sleep(FLAP * 3).await;
    }
    turns
}

/// A thousand Ingresses, created and deleted.
pub(super) async fn come_and_go(api: Arc<Apiserver>) {
    let each = |number: usize| {
        let api = Arc::clone(&api);
        async move {
            let key = format!("ingresses/default/many-{number}");
            let host = format!("{number}.many.example");
            api.create(&key, ingress(&host, &[("/", "web"), ("/a", "grpc")])).await;
            sleep(FLAP).await;
            api.delete(&key, &DeleteParams::default()).await;
        }
    };
    stream::iter((0..INGRESSES).map(each)).buffer_unordered(SIDE_BY_SIDE).collect::<()>().await;
}
