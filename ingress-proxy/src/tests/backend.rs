//! A backend that says what it got.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Serves HTTP/1, HTTP/2 in cleartext and an echoing upgrade, until dropped.
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    pub(super) requests: Arc<AtomicUsize>,
    /// What it answers requests that do not ask for another status.
    pub(super) status: Arc<AtomicU16>,
    /// Requests for `/held` that have come.
    pub(super) held: Arc<AtomicUsize>,
    /// Until it is cancelled, they wait.
    pub(super) release: CancellationToken,
    _stop: DropGuard,
}

/// A place where nobody listens until the socket is told to. Bound, so that no other test has the port meanwhile.
pub(super) fn nobody() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// What requests for `/held` wait for.
#[derive(Clone)]
struct Held {
    count: Arc<AtomicUsize>,
    release: CancellationToken,
}

impl Backend {
    /// Answers with a JSON document of what it got, and its `name`; a request for `/status/404` gets that status.
    pub(super) async fn start(name: &'static str) -> Self {
        Self::answering(name, 200).await
    }

    /// The same with another status for all that do not ask for one.
    pub(super) async fn answering(name: &'static str, status: u16) -> Self {
        Self::taking(name, status, Duration::ZERO).await
    }

    /// The same, and each answer takes so long.
    pub(super) async fn taking(name: &'static str, status: u16, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let (held, release) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let waits = Held { count: Arc::clone(&held), release: release.clone() };
        let status = Arc::new(AtomicU16::new(status));
        let (counter, stopped, answered) = (Arc::clone(&requests), stop.clone(), Arc::clone(&status));
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (counter, stopped, waits) = (Arc::clone(&counter), stopped.clone(), waits.clone());
                let answered = Arc::clone(&answered);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, Ordering::SeqCst);
                        let answer = answer(name, answered.load(Ordering::SeqCst), waits.clone(), request);
                        async move {
                            tokio::time::sleep(pause).await;
                            answer.await
                        }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = serving => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Self { address, requests, status, held, release, _stop: stop.drop_guard() }
    }

    pub(super) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn answer(
    name: &'static str,
    status: u16,
    held: Held,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.headers().get("upgrade").is_some_and(|value| value == "websocket") {
        tokio::spawn(async move {
            let mut stream = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut buf = [0; 1024];
            while let Ok(read @ 1..) = stream.read(&mut buf).await {
                stream.write_all(&buf[..read]).await.unwrap();
            }
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(Full::default());
        return Ok(response.unwrap());
    }
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/held" {
        held.count.fetch_add(1, Ordering::SeqCst);
        held.release.cancelled().await;
    }
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let headers: serde_json::Map<String, serde_json::Value> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").into()))
        .collect();
    let text = serde_json::json!({
        "name": name,
        "method": parts.method.as_str(),
        "uri": parts.uri.to_string(),
        "version": format!("{:?}", parts.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let wanted = parts.uri.path().strip_prefix("/status/").and_then(|status| status.parse().ok());
    let response = Response::builder().status(wanted.unwrap_or(status));
    Ok(response.body(Full::new(text.to_string().into())).unwrap())
}
