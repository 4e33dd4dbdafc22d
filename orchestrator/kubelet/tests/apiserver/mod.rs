//! A stand-in for the apiserver: objects in memory behind the API's paths, enough for a kubelet to live on.
//!
//! It lists, watches, creates, merges and deletes, with revisions, field selectors and graceful deletion of pods.
//! It validates nothing, and knows no kinds.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

type Body = BoxBody<Bytes, Infallible>;

#[derive(Default)]
struct State {
    revision: u64,
    /// By `resource/namespace/name`.
    objects: BTreeMap<String, Value>,
    /// (revision, key, type, object)
    log: Vec<(u64, String, &'static str, Value)>,
}

/// The server; clones are the same one.
#[derive(Clone)]
pub(crate) struct Apiserver {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    port: u16,
}

impl Apiserver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = Self { state: Arc::default(), changed: watch::Sender::new(0), port };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let server = accepting.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let server = server.clone();
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    connection.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        server
    }

    pub(crate) fn client(&self) -> kube::Client {
        let url = format!("http://127.0.0.1:{}", self.port).parse().expect("an address");
        kube::Client::try_from(kube::Config::new(url)).expect("a client")
    }

    pub(crate) fn get(&self, key: &str) -> Option<Value> {
        self.state.lock().expect("the state").objects.get(key).cloned()
    }

    pub(crate) fn list(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock().expect("the state");
        state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Stores an object as a client would.
    pub(crate) fn put(&self, key: &str, mut object: Value) {
        let mut state = self.state.lock().expect("the state");
        let parts: Vec<&str> = key.split('/').collect();
        object["metadata"]["name"] = parts[2].into();
        if !parts[1].is_empty() {
            object["metadata"]["namespace"] = parts[1].into();
        }
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", state.revision).into();
        }
        self.store(&mut state, key, object);
    }

    /// Removes an object without asking anybody.
    pub(crate) fn remove(&self, key: &str) {
        let mut state = self.state.lock().expect("the state");
        if let Some(object) = state.objects.remove(key) {
            state.revision += 1;
            let revision = state.revision;
            state.log.push((revision, key.to_owned(), "DELETED", object));
            self.changed.send_replace(revision);
        }
    }

    /// Asks for a pod's end.
    pub(crate) fn delete(&self, key: &str, grace: i64) {
        let mut state = self.state.lock().expect("the state");
        let mut object = state.objects.get(key).cloned().expect("the object");
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.store(&mut state, key, object);
    }

    fn store(&self, state: &mut State, key: &str, mut object: Value) {
        state.revision += 1;
        let revision = state.revision;
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let kind =
            if state.objects.insert(key.to_owned(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        state.log.push((revision, key.to_owned(), kind, object));
        self.changed.send_replace(revision);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let path = if path[0] == "api" { &path[2..] } else { &path[3..] };
        let (namespace, path) = match path {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let query = parts.uri.query().unwrap_or("").replace("%3D", "=").replace("%2F", "/");
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        let resource = path[0];
        let name = path.get(1).copied().or_else(|| body["metadata"]["name"].as_str()).unwrap_or("");
        let key = format!("{resource}/{namespace}/{name}");
        match (parts.method, path.len()) {
            (Method::GET, 1) => {
                let prefix = if namespace.is_empty() {
                    format!("{resource}/")
                } else {
                    format!("{resource}/{namespace}/")
                };
                let selector = parameter("fieldSelector");
                if parameter("watch").as_deref() == Some("true") {
                    let from = parameter("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
                    return self.watch(prefix, selector, from);
                }
                let state = self.state.lock().expect("the state");
                let items: Vec<&Value> = state
                    .objects
                    .iter()
                    .filter(|(key, object)| key.starts_with(&prefix) && selects(selector.as_deref(), object))
                    .map(|(_, object)| object)
                    .collect();
                let list = json!({"kind": "List", "apiVersion": "v1", "items": items,
                    "metadata": {"resourceVersion": state.revision.to_string()}});
                reply(StatusCode::OK, &list)
            }
            (Method::GET, _) => self.get(&key).map_or_else(missing, |object| reply(StatusCode::OK, &object)),
            (Method::POST, 1) if self.get(&key).is_some() => status(StatusCode::CONFLICT, "AlreadyExists"),
            (Method::POST, 1) => {
                self.put(&key, body);
                reply(StatusCode::CREATED, &self.get(&key).expect("what was just stored"))
            }
            (Method::PATCH, _) => {
                let mut state = self.state.lock().expect("the state");
                let Some(mut object) = state.objects.get(&key).cloned() else { return missing() };
                let uid = &body["metadata"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                merge(&mut object, &body);
                self.store(&mut state, &key, object.clone());
                reply(StatusCode::OK, &object)
            }
            (Method::DELETE, _) => match self.get(&key) {
                Some(object) => {
                    self.remove(&key);
                    reply(StatusCode::OK, &object)
                }
                None => missing(),
            },
            _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn watch(&self, prefix: String, selector: Option<String>, from: u64) -> Response<Body> {
        let state = self.state.clone();
        let changed = self.changed.subscribe();
        let lines = futures::stream::unfold((from, changed), move |(seen, mut changed)| {
            let (state, prefix, selector) = (state.clone(), prefix.clone(), selector.clone());
            async move {
                loop {
                    let (lines, revision) = {
                        let state = state.lock().expect("the state");
                        let lines: Vec<String> = state
                            .log
                            .iter()
                            .filter(|(at, key, _, object)| {
                                *at > seen && key.starts_with(&prefix) && selects(selector.as_deref(), object)
                            })
                            .map(|(_, _, kind, object)| {
                                format!("{}\n", json!({"type": kind, "object": object}))
                            })
                            .collect();
                        (lines.concat(), state.revision)
                    };
                    if !lines.is_empty() {
                        return Some((Ok(Frame::data(Bytes::from(lines))), (revision, changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(lines)))
    }
}

fn selects(selector: Option<&str>, object: &Value) -> bool {
    selector.filter(|selector| !selector.is_empty()).is_none_or(|selector| {
        let (path, wanted) = selector.split_once('=').expect("a selector");
        let pointer = format!("/{}", path.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str) == Some(wanted)
    })
}

/// A merge patch, but for conditions, which are merged by type as strategic merge does.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        match (&mut target[name], value) {
            (field, Value::Null) => *field = Value::Null,
            (Value::Array(old), Value::Array(new)) if name == "conditions" => {
                old.retain(|old| !new.iter().any(|new| new["type"] == old["type"]));
                old.extend(new.iter().cloned());
            }
            (field, value) => merge(field, value),
        }
    }
}

fn reply(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed(Full::new(Bytes::from(value.to_string()))));
    *response.status_mut() = status;
    response
}

fn missing() -> Response<Body> {
    status(StatusCode::NOT_FOUND, "NotFound")
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": reason, "code": code.as_u16()});
    reply(code, &status)
}
