//! The role from end to end: a small apiserver of lists and watches, and `Ingress::run` against it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::cluster::{eventually, in_time, read_all};
use crate::{Config, Ingress};

/// Lists what it was given, streams what it is given later, and keeps what it is sent.
pub(super) struct Api {
    address: SocketAddr,
    lists: Mutex<HashMap<String, Vec<Value>>>,
    changes: broadcast::Sender<(String, Value)>,
    writes: Mutex<Vec<(Method, String, Value)>>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Api {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (changes, _) = broadcast::channel(64);
        let api = Arc::new(Self { address, lists: Mutex::default(), changes, writes: Mutex::default() });
        let serving = Arc::clone(&api);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let api = Arc::clone(&serving);
                let service = service_fn(move |request| Arc::clone(&api).answer(request));
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        api
    }

    /// One with the Ingress `first`, for x.com, in front of this backend, and a client of it.
    pub(super) async fn of(backend: &Backend) -> (Arc<Self>, kube::Client) {
        let api = Self::start().await;
        let class = json!({"metadata": {"name": "weir"}, "spec": {"controller": "weir.dev/ingress"}});
        api.list("/apis/networking.k8s.io/v1/ingressclasses", class);
        api.list(INGRESSES, ingress("first", "x.com", "a"));
        let ports = json!([{"name": "web", "port": 80}]);
        api.list("/api/v1/services", json!({"metadata": meta("a"), "spec": {"ports": ports}}));
        let mut slice_meta = meta("a-1");
        slice_meta["labels"] = json!({"kubernetes.io/service-name": "a"});
        let slice = json!({
            "metadata": slice_meta,
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": backend.address.port()}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}],
        });
        api.list("/apis/discovery.k8s.io/v1/endpointslices", slice);
        let url = format!("http://{}", api.address);
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        (api, client)
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default();
        // One name, one list: the selector of a secret's watch is part of the key.
        let selector = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="));
        let key = format!("{}{}", parts.uri.path(), selector.map_or(String::new(), |s| format!("?{s}")));
        if parts.method != Method::GET {
            let bytes = body.collect().await.unwrap().to_bytes();
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            self.writes.lock().unwrap().push((parts.method, key, value.clone()));
            return Ok(Response::new(full(value.to_string())));
        }
        if query.contains("watch=true") {
            let events = stream::unfold(self.changes.subscribe(), move |mut events| {
                let key = key.clone();
                async move {
                    loop {
                        match events.recv().await {
                            Ok((path, event)) if path == key => return Some((format!("{event}\n"), events)),
                            Ok(_) => {}
                            Err(_) => return None,
                        }
                    }
                }
            });
            let frames = events.map(|line| Ok(Frame::data(Bytes::from(line))));
            return Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(frames))));
        }
        let items = self.lists.lock().unwrap().get(&key).cloned().unwrap_or_default();
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
        Ok(Response::new(full(list.to_string())))
    }

    fn list(&self, path: &str, item: Value) {
        self.lists.lock().unwrap().entry(path.to_owned()).or_default().push(item);
    }

    fn written(&self, wanted: &str) -> Vec<Value> {
        let writes = self.writes.lock().unwrap();
        writes.iter().filter(|(_, path, _)| path == wanted).map(|(_, _, value)| value.clone()).collect()
    }
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed_unsync()
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "n", "uid": name, "resourceVersion": "1"})
}

/// Asked over plain HTTP, although it has TLS; and for what nobody gets.
fn with_annotations(mut meta: Value) -> Value {
    meta["annotations"] = json!({
        "nginx.ingress.kubernetes.io/ssl-redirect": "false",
        "nginx.ingress.kubernetes.io/server-snippet": "return 418;",
    });
    meta
}

fn ingress(name: &str, host: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"name": "web"}}});
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": with_annotations(meta(name)),
        "spec": {
            "ingressClassName": "weir",
            "tls": [{"hosts": [host], "secretName": "pair"}],
            "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
        },
    })
}

const INGRESSES: &str = "/apis/networking.k8s.io/v1/ingresses";
const SECRET: &str = "/api/v1/namespaces/n/secrets?metadata.name%3Dpair";

pub(super) async fn get(address: SocketAddr, host: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

/// A port that is free now.
pub(super) fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_serves_what_the_apiserver_lists_and_follows_what_it_watches() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backend = Backend::start("a").await;
    let (api, client) = Api::of(&backend).await;
    let base64 = base64::engine::general_purpose::STANDARD;
    let bad = json!({"tls.crt": base64.encode("x"), "tls.key": base64.encode("y")});
    api.list(SECRET, json!({"metadata": meta("pair"), "data": bad}));

    let config = Config {
        http_address: free(),
        https_address: free(),
        publish_address: vec!["192.0.2.1".to_owned()],
        access_log: "off".into(),
        workers: 1,
        ..Config::default()
    };
    let http = config.http_address;
    let role = Ingress::new(config.clone(), client.clone(), &mut Registry::default()).unwrap();
    let (ready, when_ready) = oneshot::channel();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(role.run(ready, shutdown.clone()));
    in_time("the role becomes ready", when_ready).await.unwrap();

    let response = get(http, "x.com").await;
    assert!(response.starts_with("HTTP/1.1 200"), "ready means routed: {response}");

    // A second one on the same address is refused with the address.
    let second = Ingress::new(config, client, &mut Registry::default()).unwrap();
    let error = second.run(oneshot::channel().0, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains(&http.to_string()), "{error}");

    api.changes
        .send((INGRESSES.to_owned(), json!({"type": "ADDED", "object": ingress("second", "y.com", "a")})))
        .unwrap();
    eventually("a new route goes live", async || get(http, "y.com").await.starts_with("HTTP/1.1 200")).await;

    // What is wrong is said on the Ingress, and where it can be reached is published.
    let events = "/api/v1/namespaces/n/events";
    let status = "/apis/networking.k8s.io/v1/namespaces/n/ingresses/second/status";
    let told = async || api.written(events).len() >= 4 && !api.written(status).is_empty();
    eventually("Events and a status are written", told).await;
    let written = api.written(events);
    let event = |reason| written.iter().find(|event| event["reason"] == reason).expect(reason);
    assert!(event("RefusedAnnotation")["message"].as_str().unwrap().contains("server-snippet is refused"));
    let event = event("BadSecret");
    assert_eq!(event["involvedObject"]["kind"], "Ingress");
    assert!(event["message"].as_str().unwrap().contains("tls.crt holds no PEM certificate"), "{event}");
    assert_eq!(api.written(status)[0]["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.0.2.1"}]));

    api.changes
        .send((INGRESSES.to_owned(), json!({"type": "DELETED", "object": ingress("second", "y.com", "a")})))
        .unwrap();
    eventually("a deleted route goes", async || get(http, "y.com").await.starts_with("HTTP/1.1 404")).await;
    shutdown.cancel();
    in_time("an idle proxy ends", running).await.unwrap().unwrap();
    assert!(TcpStream::connect(http).await.is_err());
}
