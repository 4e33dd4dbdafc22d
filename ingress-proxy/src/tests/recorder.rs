//! A server that remembers what it was sent, and answers as it is told.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Serves HTTP/1.1 until dropped, but never answers requests for `/held`.
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) method: String,
    pub(super) uri: String,
    pub(super) headers: HeaderMap,
    /// Nothing when it broke off.
    pub(super) body: Option<Bytes>,
}

struct State {
    recorded: Vec<Recorded>,
    status: u16,
    fields: Vec<(&'static str, &'static str)>,
}

impl Recorder {
    /// Answers with 200 and nothing.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { recorded: Vec::new(), status: 200, fields: Vec::new() }));
        let stop = CancellationToken::new();
        let (stopped, shared) = (stop.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (stopped, shared) = (stopped.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                    let serving = hyper::server::conn::http1::Builder::new();
                    tokio::select! {
                        _ = serving.serve_connection(TokioIo::new(stream), service) => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Self { address, state, _stop: stop.drop_guard() }
    }

    /// What it answers from now on.
    pub(super) fn answers(&self, status: u16, fields: &[(&'static str, &'static str)]) {
        let mut state = self.state.lock().unwrap();
        (state.status, state.fields) = (status, fields.to_vec());
    }

    /// What it was sent.
    pub(super) fn recorded(&self) -> Vec<Recorded> {
        self.state.lock().unwrap().recorded.clone()
    }

    /// The last of it.
    pub(super) fn last(&self) -> Recorded {
        self.recorded().pop().expect("a request has come")
    }

    pub(super) fn count(&self) -> usize {
        self.state.lock().unwrap().recorded.len()
    }
}

impl Recorded {
    /// A field; empty if it is not there.
    pub(super) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let (method, uri) = (parts.method.to_string(), parts.uri.to_string());
    let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
    state.lock().unwrap().recorded.push(Recorded { method, uri, headers: parts.headers, body });
    if parts.uri.path() == "/held" {
        std::future::pending::<()>().await;
    }
    let state = state.lock().unwrap();
    let mut response = Response::new(Full::new(Bytes::from_static(b"recorded")));
    *response.status_mut() = state.status.try_into().unwrap();
    for (name, value) in &state.fields {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    Ok(response)
}
