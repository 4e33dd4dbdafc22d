//! Everything changes at once, and no client notices: endpoints come and go, a thousand Ingresses too, certificates rotate,
//! and the proxy itself is replaced. In a network namespace, against a real API server.

mod churn;

use std::sync::Arc;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::stream::{self, StreamExt as _};
use kube::api::DeleteParams;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use weir_ingress::{Config, Error, Ingress};
use weir_tests::Namespace;
use weir_tests_apiserver::Apiserver;

use churn::{backend, clients, pair};

/// Longer than anything takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_mins(2);
/// Addresses of endpoints. From the range for measurements (RFC 2544).
const ENDPOINTS: [&str; 4] = ["198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"];
const HOST: &str = "churn.example";
const HTTP: &str = "127.0.0.1:8080";
const HTTPS: &str = "127.0.0.1:8443";
/// Between two changes of the endpoints.
const FLAP: Duration = Duration::from_millis(100);
/// Ingresses that come and go, and how many of them side by side.
const INGRESSES: usize = 1_000;
const SIDE_BY_SIDE: usize = 16;
/// Processes that follow one another.
const UPGRADES: usize = 3;

#[test]
fn nobody_notices_that_everything_changes() {
    let namespace = Namespace::new().unwrap();
    for address in ENDPOINTS {
        namespace.ip(&format!("address add {address}/32 dev lo")).unwrap();
    }
    namespace.inside(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(churn());
    });
}

async fn churn() {
    let directory = tempfile::tempdir().unwrap();
    let api = Arc::new(Apiserver::start(directory.path(), "here").await);
    for address in ENDPOINTS {
        backend::start(address).await;
    }
    let authority = pair::Authority::new();
    for (key, object) in objects(&authority) {
        api.create(key, object).await;
    }
    let config = Config {
        http_address: HTTP.parse().unwrap(),
        https_address: HTTPS.parse().unwrap(),
        access_log: "off".into(),
        workers: 1,
        handover: Some(directory.path().join("handover.sock")),
        drain_timeout: HANGS,
        ..Config::default()
    };
    let mut running = vec![Running::start(&api, &config).await];

    let stop = CancellationToken::new();
    let loads = clients::start(&authority, &stop);
    let held = clients::hold(&stop).await;
    let flapping = tokio::spawn(flap(Arc::clone(&api), stop.clone()));
    let rotating = tokio::spawn(rotate(Arc::clone(&api), authority, stop.clone()));
    let coming_and_going = tokio::spawn(come_and_go(Arc::clone(&api)));
    for _ in 0..UPGRADES {
        sleep(Duration::from_secs(2)).await;
        running.push(Running::start(&api, &config).await);
    }
    timeout(HANGS, coming_and_going).await.expect("the Ingresses come and go").unwrap();
    // What is held was held by the first process all the while.
    assert!(!running[0].ended.is_finished(), "the first process waits for its streams");
    stop.cancel();
    let (flaps, rotations) = (flapping.await.unwrap(), rotating.await.unwrap());
    for (name, load) in loads {
        let outcome = timeout(HANGS, load).await.expect("a load ends").unwrap();
        eprintln!("{name}: {} served", outcome.served);
        assert!(outcome.failed.is_empty(), "{name}: {:?}", outcome.failed);
        assert!(outcome.served > 100, "{name}: {} served", outcome.served);
    }
    for (name, held) in held {
        let turns = timeout(HANGS, held).await.expect("it ends").unwrap();
        eprintln!("{name}: {turns} turns");
        assert!(turns > 50, "{name}: {turns} turns");
    }
    eprintln!("{flaps} changes of endpoints, {rotations} rotations of the certificate");
    assert!(flaps > 20 && rotations > 5, "{flaps} changes of endpoints, {rotations} rotations");
    if let Some(last) = running.last() {
        last.shutdown.cancel();
    }
    for process in running {
        timeout(HANGS, process.ended).await.expect("it ends").unwrap().unwrap();
    }
}

/// A process, as far as it is one: the role from its start to its end.
struct Running {
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Starts one and waits until it serves.
    async fn start(api: &Apiserver, config: &Config) -> Self {
        let client = api.client("ingress").await;
        let role = Ingress::new(config.clone(), client, &mut Registry::default()).unwrap();
        let (ready, when_ready) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(role.run(ready, shutdown.clone()));
        timeout(HANGS, when_ready).await.expect("it becomes ready").expect("it runs");
        Self { shutdown, ended }
    }
}

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

fn data(authority: &pair::Authority) -> Value {
    let (certificate, key) = authority.issue(HOST);
    json!({"tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key)})
}

/// What there is from the start.
fn objects(authority: &pair::Authority) -> Vec<(&'static str, Value)> {
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
async fn flap(api: Arc<Apiserver>, stop: CancellationToken) -> usize {
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
async fn rotate(api: Arc<Apiserver>, authority: pair::Authority, stop: CancellationToken) -> usize {
    let mut turns = 0;
    while !stop.is_cancelled() {
        api.merge("secrets/default/pair", json!({"data": data(&authority)})).await;
        turns += 1;
        sleep(FLAP * 3).await;
    }
    turns
}

/// A thousand Ingresses, created and deleted.
async fn come_and_go(api: Arc<Apiserver>) {
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
