//! The admin server of a role: `/metrics`, `/healthz`, `/readyz`, and pages of the role's own.

use std::{
    convert::Infallible,
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tokio_util::sync::CancellationToken;

/// Scrapers at a time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 16;
/// A client that has not sent its request by then is let go.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at whether an address is free.
const BIND_AGAIN: Duration = Duration::from_millis(100);
/// The format that `prometheus-client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the role serves; shared with the one who knows.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Pages that a role has besides: what is at a path for a query, if anything is.
#[derive(Clone)]
pub(crate) struct Pages {
    /// Their paths, for who asks for another.
    pub(crate) paths: &'static str,
    pub(crate) answer: Arc<Page>,
}

/// What is at a path for a query.
type Page = dyn Fn(&str, &str) -> Option<Response<String>> + Send + Sync;

impl Default for Pages {
    /// None.
    fn default() -> Self {
        Self { paths: "", answer: Arc::new(|_, _| None) }
    }
}

/// What is served.
pub(crate) struct Served {
    pub(crate) registry: Registry,
    pub(crate) readiness: Readiness,
    pub(crate) pages: Pages,
}

/// Binds `address` and serves until `shutdown`. `follows`: the process that has the address is about to end, so that it is
/// waited for.
pub(crate) async fn serve(
    address: SocketAddr,
    follows: bool,
    served: Served,
    shutdown: CancellationToken,
) -> Result<()> {
    match TcpListener::bind(address).await {
        Ok(listener) => accept(listener, served, shutdown),
        Err(error) if follows && error.kind() == ErrorKind::AddrInUse => {
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
                loop {
                    sleep(BIND_AGAIN).await;
                    if let Ok(listener) = TcpListener::bind(address).await {
                        return accept(listener, served, shutdown);
                    }
                }
            }));
        }
        Err(error) => return Err(error).with_context(|| format!("--metrics-address {address}")),
    }
    Ok(())
}

fn accept(listener: TcpListener, served: Served, shutdown: CancellationToken) {
    let served = Arc::new(served);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let served = served.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let served = served.clone();
                    async move { Ok::<_, Infallible>(answer(request, served).await) }
                });
                // A scraper that goes away is its own business.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_DEADLINE)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(place);
            });
        }
    }));
}

async fn answer(request: Request<Incoming>, served: Arc<Served>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/metrics" => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &served.registry) {
                Ok(()) => respond(StatusCode::OK, OPENMETRICS, text),
                Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
            }
        }
        "/healthz" => respond(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" if served.readiness.get() => respond(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" => respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n"),
        _ => of_role(request, served).await,
    }
}

/// A page of the role's own. It may take a while to make, and what runs here is not to wait for it.
async fn of_role(request: Request<Incoming>, served: Arc<Served>) -> Response<Full<Bytes>> {
    let paths = served.pages.paths;
    let make = move || {
        let uri = request.uri();
        (served.pages.answer)(uri.path(), uri.query().unwrap_or_default())
    };
    match tokio::task::spawn_blocking(make).await {
        Ok(Some(page)) => page.map(|body| Full::new(Bytes::from(body))),
        Ok(None) => {
            let and = if paths.is_empty() { "" } else { ", " };
            let text = format!("this server has /metrics, /healthz, /readyz{and}{paths}\n");
            respond(StatusCode::NOT_FOUND, "text/plain", text)
        }
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .body(Full::new(body.into()))
        .expect("a status and one valid header make a response")
}
