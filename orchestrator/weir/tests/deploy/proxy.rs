//! An API server's door that lets in what roles allow and nothing else.
//!
//! Weir's own server knows its components by name and has no roles. So this stands before it: it reads each request as
//! an authoriser does (verb, group, resource, namespace, name), asks the shipped roles, and passes on what they allow with an
//! identity that may do everything. What it saw stays for the test to look at.
//!
//! It speaks plain HTTP to everybody, or TLS to those who have a token, as pods do.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::rbac::v1::{self, PolicyRule};
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// Verb, group and resource.
pub(crate) type Action = (String, String, String);

/// What a request asks for. Of a list or watch of one object the name is that object's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked {
    pub(crate) action: Action,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
}

/// The door.
pub(crate) struct Proxy {
    roles: Mutex<Vec<Role>>,
    client: Client,
    /// Those that do not show it are turned away.
    token: Option<String>,
    seen: Mutex<Seen>,
    is_open: watch::Sender<bool>,
}

/// Requests so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) allowed: BTreeSet<Asked>,
    pub(crate) refused: BTreeSet<Asked>,
}

impl Seen {
    /// Whether that was done, to whatever object.
    pub(crate) fn did(&self, verb: &str, group: &str, resource: &str) -> bool {
        let action = (verb.into(), group.into(), resource.into());
        self.allowed.iter().any(|asked| asked.action == action)
    }
}

/// A role that is bound: everywhere, or in its own namespace.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    namespace: Option<String>,
    rules: Vec<PolicyRule>,
}

impl From<v1::ClusterRole> for Role {
    fn from(role: v1::ClusterRole) -> Self {
        Self { namespace: None, rules: role.rules.expect("rules") }
    }
}

impl From<v1::Role> for Role {
    fn from(role: v1::Role) -> Self {
        let namespace = role.metadata.namespace.expect("a Role is in a namespace");
        Self { namespace: Some(namespace), rules: role.rules.expect("rules") }
    }
}

impl Role {
    /// Whether its rules allow it (RBAC: the sum of all rules, `*` for any, all names if none is named).
    fn allows(&self, Asked { action: (verb, group, resource), namespace, name }: &Asked) -> bool {
        let covers = |list: &[String], wanted: &str| list.iter().any(|it| it == "*" || it == wanted);
        let here = self.namespace.is_none() || self.namespace == *namespace;
        here && self.rules.iter().any(|rule| {
            let names = rule.resource_names.as_deref().unwrap_or_default();
            covers(&rule.verbs, verb)
                && covers(rule.api_groups.as_deref().unwrap_or_default(), group)
                && covers(rule.resources.as_deref().unwrap_or_default(), resource)
                && (names.is_empty() || name.as_ref().is_some_and(|name| names.contains(name)))
        })
    }

    /// Its grants one by one: one verb on one resource, and of one name where names are given.
    fn grants(&self) -> Vec<Self> {
        let mut grants = Vec::new();
        for rule in &self.rules {
            let names = rule.resource_names.clone().unwrap_or_default();
            let names: Vec<Option<Vec<String>>> = if names.is_empty() {
                vec![None]
            } else {
                names.into_iter().map(|it| Some(vec![it])).collect()
            };
            for verb in &rule.verbs {
                for resource in rule.resources.iter().flatten() {
                    grants.extend(names.iter().map(|names| {
                        let rule = PolicyRule {
                            verbs: vec![verb.clone()],
                            resources: Some(vec![resource.clone()]),
                            resource_names: names.clone(),
                            ..rule.clone()
                        };
                        Self { namespace: self.namespace.clone(), rules: vec![rule] }
                    }));
                }
            }
        }
        grants
    }
}

/// What a request asks for (Kubernetes API concepts: resource URIs, verbs). A path that is no resource's has itself as
/// its resource.
fn read(method: &Method, path: &str, query: &str) -> Asked {
    let other = || {
        let action = (method.as_str().to_lowercase(), "-".into(), path.to_owned());
        Asked { action, namespace: None, name: None }
    };
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next() {
        Some("api") => "",
        Some("apis") => parts.next().unwrap_or_default(),
        _ => return other(),
    };
    let _version = parts.next();
    let mut rest: Vec<&str> = parts.collect();
    let namespace =
        (rest.first() == Some(&"namespaces")).then(|| rest.get(1)).flatten().map(|it| (*it).to_owned());
    if namespace.is_some() && rest.len() > 2 {
        rest.drain(..2);
    }
    let Some(resource) = rest.first() else { return other() };
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
    let mut selected = query.split('&').filter(|_| ["list", "watch", "deletecollection"].contains(&verb));
    let selected = selected.find_map(|it| it.strip_prefix("fieldSelector=metadata.name%3D"));
    let name = rest.get(1).copied().or(selected).map(str::to_owned);
    Asked { action: (verb.into(), group.into(), resource), namespace, name }
}

impl Proxy {
    /// Opens the door on a free port of the loopback address; returns the port.
    pub(crate) async fn open(roles: Vec<Role>, client: Client) -> (Arc<Self>, u16) {
        Self::open_for(roles, client, None).await
    }

    /// The same over TLS, for those who have this token.
    pub(crate) async fn open_to_pods(
        roles: Vec<Role>,
        client: Client,
        tls: TlsAcceptor,
        token: &str,
    ) -> (Arc<Self>, u16) {
        Self::open_for(roles, client, Some((tls, token.to_owned()))).await
    }

    async fn open_for(
        roles: Vec<Role>,
        client: Client,
        pods: Option<(TlsAcceptor, String)>,
    ) -> (Arc<Self>, u16) {
        let (tls, token) = pods.unzip();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let proxy = Arc::new(Self {
            roles: Mutex::new(roles),
            client,
            token,
            seen: Mutex::default(),
            is_open: watch::Sender::new(true),
        });
        let accepting = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (proxy, tls) = (Arc::clone(&accepting), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => proxy.serve(stream).await,
                        // Who does not trust this server says so and goes.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                proxy.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        (proxy, port)
    }

    /// What was asked for so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("nobody panics with it").clone()
    }

    /// Lets everybody wait, or no more.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.is_open.send_replace(is_open);
    }

    /// Binds one more role.
    pub(crate) fn bind(&self, role: Role) {
        self.roles.lock().expect("nobody panics with it").push(role);
    }

    /// What the roles grant and nobody has asked for.
    pub(crate) fn unused(&self) -> Vec<Role> {
        let grants =
            self.roles.lock().expect("nobody panics with it").iter().flat_map(Role::grants).collect();
        let allowed = self.seen().allowed;
        let mut grants: Vec<Role> = grants;
        grants.retain(|grant| !allowed.iter().any(|asked| grant.allows(asked)));
        grants
    }

    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(move |request| Arc::clone(&self).answer(request));
        // A client that goes is no error here.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    /// Whether a request shows the token, if there has to be one.
    fn is_let_in(&self, request: &Request<Incoming>) -> bool {
        let shown = request.headers().get(http::header::AUTHORIZATION).and_then(|it| it.to_str().ok());
        self.token
            .as_deref()
            .is_none_or(|token| shown.and_then(|it| it.strip_prefix("Bearer ")) == Some(token))
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let mut door = self.is_open.subscribe();
        let _ = door.wait_for(|is_open| *is_open).await;
        drop(door);
        if !self.is_let_in(&request) {
            return Ok(status(StatusCode::UNAUTHORIZED));
        }
        let uri = request.uri();
        let asked = read(request.method(), uri.path(), uri.query().unwrap_or_default());
        let allowed =
            self.roles.lock().expect("nobody panics with it").iter().any(|role| role.allows(&asked));
        {
            let mut seen = self.seen.lock().expect("nobody panics with it");
            let list = if allowed { &mut seen.allowed } else { &mut seen.refused };
            list.insert(asked.clone());
        }
        if !allowed {
            let (verb, _, resource) = asked.action;
            return Ok(refusal(&format!("{resource} is forbidden: nobody may {verb} them")));
        }
        let (mut head, body) = request.into_parts();
        head.headers.remove(http::header::HOST);
        head.headers.remove(http::header::AUTHORIZATION);
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

/// As an API server says it.
fn refusal(message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": "Forbidden", "code": 403, "message": message,
    });
    let mut response = Response::new(Body::from(status.to_string().into_bytes()));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

#[test]
fn requests_are_read_as_an_authoriser_reads_them() {
    let read = |method: Method, path, query| read(&method, path, query);
    let expect =
        |verb: &str, group: &str, resource: &str, namespace: Option<&str>, name: Option<&str>| Asked {
            action: (verb.into(), group.into(), resource.into()),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
        };
    let (a, b) = (Some("a"), Some("b"));
    assert_eq!(
        read(Method::GET, "/api/v1/services", "limit=500"),
        expect("list", "", "services", None, None)
    );
    assert_eq!(
        read(Method::GET, "/api/v1/nodes", "watch=true&x=1"),
        expect("watch", "", "nodes", None, None)
    );
    assert_eq!(read(Method::GET, "/api/v1/namespaces/a/pods/b", ""), expect("get", "", "pods", a, b));
    assert_eq!(read(Method::GET, "/api/v1/namespaces/a", ""), expect("get", "", "namespaces", a, a));
    let events = "/apis/events.k8s.io/v1/namespaces/a/events";
    assert_eq!(read(Method::POST, events, ""), expect("create", "events.k8s.io", "events", a, None));
    assert_eq!(
        read(Method::PATCH, "/api/v1/nodes/b/status", ""),
        expect("patch", "", "nodes/status", None, b)
    );
    assert_eq!(read(Method::GET, "/version", ""), expect("get", "-", "/version", None, None));
    let (secrets, selected) = ("/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name%3Db");
    assert_eq!(read(Method::GET, secrets, selected), expect("list", "", "secrets", a, b));
    let watched = "watch=true&fieldSelector=metadata.name%3Db";
    assert_eq!(read(Method::GET, secrets, watched), expect("watch", "", "secrets", a, b));
    assert_eq!(read(Method::GET, secrets, "fieldSelector=type%3Db").name, None);
}

#[test]
fn a_role_allows_what_it_names_where_it_is() {
    let rule = PolicyRule {
        verbs: vec!["list".into(), "watch".into()],
        api_groups: Some(vec![String::new()]),
        resources: Some(vec!["secrets".into()]),
        resource_names: Some(vec!["b".into(), "c".into()]),
        non_resource_urls: None,
    };
    let role = Role { namespace: Some("a".into()), rules: vec![rule] };
    let asks = |path, query| read(&Method::GET, path, query);
    let (here, there) = ("/api/v1/namespaces/a/secrets", "/api/v1/namespaces/z/secrets");
    assert!(role.allows(&asks(here, "fieldSelector=metadata.name%3Db")));
    assert!(!role.allows(&asks(there, "fieldSelector=metadata.name%3Db")), "another namespace");
    assert!(!role.allows(&asks(here, "fieldSelector=metadata.name%3Dd")), "another name");
    assert!(!role.allows(&asks(here, "")), "all names");
    assert!(!role.allows(&asks("/api/v1/secrets", "")), "all namespaces");
    assert!(!role.allows(&asks("/api/v1/namespaces/a/secrets/b", "")), "another verb");
    assert_eq!(role.grants().len(), 4, "two verbs, two names");
}
