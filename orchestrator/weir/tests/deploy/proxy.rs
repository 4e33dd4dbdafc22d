//! An API server's door that lets in what a `ClusterRole` allows and nothing else.
//!
//! Weir's own server knows its components by name and has no roles. So this stands before it: it reads each request as
//! an authoriser does (verb, group, resource), asks the shipped role, and passes on what it allows with an identity that
//! may do everything. What it saw stays for the test to look at.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::{Client, client::Body};
use tokio::net::TcpListener;

/// Verb, group and resource.
pub(crate) type Action = (String, String, String);

/// The door.
pub(crate) struct Proxy {
    rules: Vec<PolicyRule>,
    client: Client,
    seen: Mutex<Seen>,
}

/// Requests so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) allowed: BTreeSet<Action>,
    pub(crate) refused: BTreeSet<Action>,
}

/// Whether a role's rules allow it (RBAC: the sum of all rules, `*` for any).
fn allows(rules: &[PolicyRule], (verb, group, resource): &Action) -> bool {
    let covers = |list: &[String], wanted: &str| list.iter().any(|it| it == "*" || it == wanted);
    rules.iter().any(|rule| {
        covers(&rule.verbs, verb)
            && covers(rule.api_groups.as_deref().unwrap_or_default(), group)
            && covers(rule.resources.as_deref().unwrap_or_default(), resource)
    })
}

/// What a request asks for (Kubernetes API concepts: resource URIs, verbs). A path that is no resource's has itself as
/// its resource.
fn action(method: &Method, path: &str, query: &str) -> Action {
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next() {
        Some("api") => "",
        Some("apis") => parts.next().unwrap_or_default(),
        _ => return (method.as_str().to_lowercase(), "-".into(), path.to_owned()),
    };
    let _version = parts.next();
    let mut rest: Vec<&str> = parts.collect();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let Some(resource) = rest.first() else {
        return (method.as_str().to_lowercase(), "-".into(), path.to_owned());
    };
    let resource = rest.get(2).map_or_else(|| (*resource).to_owned(), |sub| format!("{resource}/{sub}"));
    let named = rest.len() > 1;
    let watches = query.split('&').any(|it| it == "watch=true" || it == "watch=1" || it == "watch");
    let verb = match method.as_str() {
        "GET" if watches => "watch",
        "GET" if named => "get",
        "GET" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        _ => "deletecollection",
    };
    (verb.into(), group.into(), resource)
}

impl Proxy {
    /// Opens the door on a free port of the loopback address; returns the port.
    pub(crate) async fn open(rules: Vec<PolicyRule>, client: Client) -> (Arc<Self>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let proxy = Arc::new(Self { rules, client, seen: Mutex::default() });
        let accepting = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = Arc::clone(&accepting);
                let service = service_fn(move |request| Arc::clone(&proxy).answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        (proxy, port)
    }

    /// What was asked for so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("nobody panics with it").clone()
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let uri = request.uri();
        let action = action(request.method(), uri.path(), uri.query().unwrap_or_default());
        let allowed = allows(&self.rules, &action);
        {
            let mut seen = self.seen.lock().expect("nobody panics with it");
            let list = if allowed { &mut seen.allowed } else { &mut seen.refused };
            list.insert(action);
        }
        if !allowed {
            return Ok(status(StatusCode::FORBIDDEN));
        }
        let (mut head, body) = request.into_parts();
        head.headers.remove(http::header::HOST);
        let Ok(body) = body.collect().await else { return Ok(status(StatusCode::BAD_REQUEST)) };
        let request = Request::from_parts(head, Body::from(body.to_bytes().to_vec()));
        Ok(self.client.send(request).await.unwrap_or_else(|_| status(StatusCode::BAD_GATEWAY)))
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[test]
fn requests_are_read_as_an_authoriser_reads_them() {
    let read = |method: Method, path, query| action(&method, path, query);
    let expect = |verb: &str, group: &str, resource: &str| (verb.into(), group.into(), resource.into());
    assert_eq!(read(Method::GET, "/api/v1/services", "limit=500"), expect("list", "", "services"));
    assert_eq!(read(Method::GET, "/api/v1/nodes", "watch=true&x=1"), expect("watch", "", "nodes"));
    assert_eq!(read(Method::GET, "/api/v1/namespaces/a/pods/b", ""), expect("get", "", "pods"));
    assert_eq!(read(Method::GET, "/api/v1/namespaces/a", ""), expect("get", "", "namespaces"));
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    assert_eq!(read(Method::POST, events, ""), expect("create", "events.k8s.io", "events"));
    assert_eq!(read(Method::PATCH, "/api/v1/nodes/a/status", ""), expect("patch", "", "nodes/status"));
    assert_eq!(read(Method::GET, "/version", ""), expect("get", "-", "/version"));
}
