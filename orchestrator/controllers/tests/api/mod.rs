//! An API server in memory, of the size that control loops need: lists, watches from a version, optimistic writes,
//! status and binding subresources, finalizers, discovery.
//!
//! It keeps every event for ever, so that a watch is a position in that list. It does no validation and no
//! defaulting: tests give it whole objects.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Group and version, plural, kind, namespaced.
const KINDS: [(&str, &str, &str, bool); 10] = [
    ("v1", "pods", "Pod", true),
    ("v1", "services", "Service", true),
    ("v1", "nodes", "Node", false),
    ("v1", "namespaces", "Namespace", false),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "events", "Event", true),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
];
const LEASES: (&str, &str, &str, bool) = ("coordination.k8s.io/v1", "leases", "Lease", true);

fn kinds() -> impl Iterator<Item = (&'static str, &'static str, &'static str, bool)> {
    KINDS.into_iter().chain([LEASES])
}

type Key = (String, String, String);
type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    /// Plural, namespace, event.
    log: Vec<(String, String, Value)>,
    writes: usize,
}

/// The server; clones are one server.
#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

type Answer = Result<Value, (u16, &'static str, String)>;

impl Api {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0) }
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics")
    }

    /// Requests that changed something, Events left out.
    pub(crate) fn writes(&self) -> usize {
        self.lock().writes
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let state = self.lock();
        state
            .objects
            .iter()
            .filter(|((kind, ..), _)| kind == plural)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Waits until the server is as `holds` says, or panics with the reason after 20 s.
    pub(crate) async fn wait_until(&self, why: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(self) {
                changed.changed().await.expect("the sender lives as long as self");
            }
        };
        let limit = std::time::Duration::from_secs(20);
        assert!(tokio::time::timeout(limit, wait).await.is_ok(), "never came true: {why}");
    }

    async fn serve(&self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let query: BTreeMap<_, _> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let path = parts.uri.path().to_owned();
        if query.get("watch").map(String::as_str) == Some("true") {
            return self.watch(&path, query.get("resourceVersion").map_or("0", String::as_str));
        }
        let strategic = parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/strategic"));
        let answer = self.answer(&parts.method, &path, &body, strategic);
        self.changed.send_modify(|revision| *revision += 1);
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err((code, reason, message)) => {
                let body = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "code": code, "reason": reason, "message": message,
                });
                (code, body)
            }
        };
        Response::builder()
            .status(status)
            .body(Full::new(Bytes::from(body.to_string())).boxed_unsync())
            .expect("is a response")
    }

    fn watch(&self, path: &str, from: &str) -> Reply {
        let from: u64 = from.parse().unwrap_or_default();
        let place = Place::parse(path).expect("watches a kind");
        let position = {
            let state = self.lock();
            let version = |event: &Value| version(&event["object"]);
            state.log.iter().position(|(.., event)| version(event) > from).unwrap_or(state.log.len())
        };
        let events = stream::unfold((self.clone(), self.changed.subscribe(), position), move |at| {
            let place = place.clone();
            async move {
                let (api, mut changed, mut position) = at;
                loop {
                    let next = {
                        let state = api.lock();
                        let rest = &state.log[position..];
                        let found =
                            rest.iter().position(|(plural, namespace, _)| place.covers(plural, namespace));
                        let event = found.map(|index| rest[index].2.clone());
                        position += found.map_or(rest.len(), |index| index + 1);
                        event
                    };
                    if let Some(event) = next {
                        let line = Bytes::from(format!("{event}\n"));
                        return Some((Ok::<_, Infallible>(Frame::data(line)), (api, changed, position)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8], strategic: bool) -> Answer {
        if let Some(document) = discovery(path) {
            return Ok(document);
        }
        let place = Place::parse(path).ok_or((404, "NotFound", format!("no path {path}")))?;
        let body = || serde_json::from_slice::<Value>(body).unwrap_or_default();
        let mut state = self.lock();
        match (method.as_str(), place.name.is_empty()) {
            ("GET", true) => Ok(state.list(&place)),
            ("POST", true) => state.create(&place, body()),
            ("GET", false) => state.get(&place),
            ("POST", false) if place.sub == "binding" => state.bind(&place, &body()),
            ("PUT", false) => state.replace(&place, body()),
            ("PATCH", false) => state.patch(&place, &body(), strategic),
            ("DELETE", false) => state.delete(&place, &body()),
            _ => Err((405, "MethodNotAllowed", format!("{method} {path}"))),
        }
    }
}

#[derive(Clone, Debug)]
struct Place {
    plural: String,
    namespace: String,
    name: String,
    sub: String,
}

impl Place {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let skip = match parts.next()? {
            "api" => 1,
            "apis" => 2,
            _ => return None,
        };
        let mut parts: Vec<_> = parts.skip(skip).map(str::to_owned).collect();
        let mut namespace = String::new();
        if parts.first().map(String::as_str) == Some("namespaces")
            && parts.len() > 2
            && kinds().any(|(_, plural, ..)| plural == parts[2])
        {
            namespace.clone_from(&parts[1]);
            parts.drain(..2);
        }
        let mut parts = parts.into_iter();
        let plural = parts.next()?;
        let mut next = || parts.next().unwrap_or_default();
        Some(Self { plural, namespace, name: next(), sub: next() })
    }

    fn covers(&self, plural: &str, namespace: &str) -> bool {
        self.plural == plural && (self.namespace.is_empty() || self.namespace == namespace)
    }

    fn key(&self) -> Key {
        (self.plural.clone(), self.namespace.clone(), self.name.clone())
    }
}

impl State {
    fn list(&self, place: &Place) -> Value {
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|((plural, namespace, _), _)| place.covers(plural, namespace))
            .map(|(_, object)| object)
            .collect();
        let (version, _, kind, _) = kinds().find(|kind| kind.1 == place.plural).expect("is a kind");
        json!({
            "apiVersion": version, "kind": format!("{kind}List"),
            "metadata": { "resourceVersion": self.revision.to_string() }, "items": items,
        })
    }

    fn get(&self, place: &Place) -> Answer {
        let missing = || (404, "NotFound", format!("{} {:?} not found", place.plural, place.name));
        self.objects.get(&place.key()).cloned().ok_or_else(missing)
    }

    fn create(&mut self, place: &Place, mut object: Value) -> Answer {
        let number = self.revision + 1;
        let meta = &mut object["metadata"];
        if meta["name"].is_null() {
            meta["name"] = format!("{}{number:05}", meta["generateName"].as_str().unwrap_or_default()).into();
        }
        if !place.namespace.is_empty() {
            meta["namespace"] = place.namespace.clone().into();
        }
        meta["uid"] = format!("uid-{number}").into();
        meta["generation"] = 1.into();
        meta["creationTimestamp"] = json!(weir_client::now());
        let (version, _, kind, _) = kinds().find(|kind| kind.1 == place.plural).expect("is a kind");
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        let place = Place { name, ..place.clone() };
        if self.objects.contains_key(&place.key()) {
            return Err((409, "AlreadyExists", format!("{} {:?} already exists", place.plural, place.name)));
        }
        Ok(self.store(&place, object, "ADDED"))
    }

    fn replace(&mut self, place: &Place, object: Value) -> Answer {
        let before = self.get(place)?;
        check(&before, &object)?;
        Ok(self.update(place, &before, object))
    }

    fn patch(&mut self, place: &Place, patch: &Value, strategic: bool) -> Answer {
        let before = self.get(place)?;
        check(&before, patch)?;
        let mut after = before.clone();
        merge(&mut after, patch, strategic);
        // Each endpoint ignores the other's half.
        let kept = if place.sub == "status" { "spec" } else { "status" };
        after[kept] = before[kept].clone();
        Ok(self.update(place, &before, after))
    }

    fn bind(&mut self, place: &Place, binding: &Value) -> Answer {
        let before = self.get(place)?;
        check(&before, binding)?;
        if before["spec"]["nodeName"].is_string() {
            return Err((409, "Conflict", "pod is already assigned to a node".into()));
        }
        let mut after = before.clone();
        after["spec"]["nodeName"] = binding["target"]["name"].clone();
        self.update(place, &before, after);
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
    }

    fn delete(&mut self, place: &Place, options: &Value) -> Answer {
        let before = self.get(place)?;
        check(&before, &json!({ "metadata": options["preconditions"] }))?;
        let mut after = before.clone();
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        let mut finalizers = before["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.extend(finalizer.map(Value::from));
        after["metadata"]["finalizers"] = finalizers.into();
        if after["metadata"]["deletionTimestamp"].is_null() {
            after["metadata"]["deletionTimestamp"] = json!(weir_client::now());
        }
        Ok(self.update(place, &before, after))
    }

    /// Stores a change; an object that is being deleted and that nothing holds goes.
    fn update(&mut self, place: &Place, before: &Value, mut after: Value) -> Value {
        if after == *before {
            return after;
        }
        if after["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
            after["metadata"]["generation"] = (generation + 1).into();
        }
        let held = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
        let deleting = !after["metadata"]["deletionTimestamp"].is_null();
        let gone = deleting && !held(&after["metadata"]["finalizers"]) && !held(&after["spec"]["finalizers"]);
        self.store(place, after, if gone { "DELETED" } else { "MODIFIED" })
    }

    fn store(&mut self, place: &Place, mut object: Value, event: &str) -> Value {
        self.revision += 1;
        self.writes += usize::from(place.plural != "events");
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        if event == "DELETED" {
            self.objects.remove(&place.key());
        } else {
            self.objects.insert(place.key(), object.clone());
        }
        let event = json!({ "type": event, "object": object });
        self.log.push((place.plural.clone(), place.namespace.clone(), event));
        object
    }
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// UID and version in a write must be those of the object.
fn check(object: &Value, write: &Value) -> Result<(), (u16, &'static str, String)> {
    for field in ["uid", "resourceVersion"] {
        let (wanted, is) = (&write["metadata"][field], &object["metadata"][field]);
        if wanted.is_string() && wanted != is {
            return Err((409, "Conflict", format!("{field} is {is}, not {wanted}")));
        }
    }
    Ok(())
}

/// RFC 7386, and of strategic merges what the controllers use: lists by `type` or `uid`, and `$patch: delete`.
fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    match (patch, target) {
        (Value::Object(patch), Value::Object(target)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key.clone()).or_insert(Value::Null), value, strategic);
                }
            }
        }
        (Value::Array(patch), Value::Array(target)) if strategic => {
            for entry in patch {
                let id = if entry["type"].is_null() { "uid" } else { "type" };
                let index = target.iter().position(|one| one[id] == entry[id]);
                match (index, entry["$patch"] == "delete") {
                    (Some(index), true) => drop(target.remove(index)),
                    (Some(index), false) => merge(&mut target[index], entry, strategic),
                    (None, true) => {}
                    (None, false) => target.push(entry.clone()),
                }
            }
        }
        (Value::Object(_), target) => {
            *target = json!({});
            merge(target, patch, strategic);
        }
        (patch, target) => *target = patch.clone(),
    }
}

fn discovery(path: &str) -> Option<Value> {
    let path = path.trim_matches('/');
    let versions: std::collections::BTreeSet<_> =
        kinds().map(|kind| kind.0).filter(|version| version.contains('/')).collect();
    match path {
        "api" => {
            return Some(
                json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
            );
        }
        "apis" => {
            let groups: Vec<_> = versions
                .iter()
                .map(|version| {
                    let (group, number) = version.split_once('/').expect("has a group");
                    let version = json!({ "groupVersion": version, "version": number });
                    json!({ "name": group, "versions": [version], "preferredVersion": version })
                })
                .collect();
            return Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }));
        }
        _ => {}
    }
    let group_version = path.strip_prefix("apis/").or_else(|| path.strip_prefix("api/"))?;
    let resources: Vec<_> = kinds()
        .filter(|kind| kind.0 == group_version)
        .map(|(_, plural, kind, namespaced)| {
            let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
            json!({ "name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs })
        })
        .collect();
    (!resources.is_empty())
        .then(|| json!({ "kind": "APIResourceList", "groupVersion": group_version, "resources": resources }))
}
