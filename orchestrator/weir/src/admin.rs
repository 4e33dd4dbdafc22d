//! The admin server of a role: `/metrics`, `/healthz`, `/readyz`.

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

/// Binds `address` and serves until `shutdown`. `follows`: the process that has the address is about to end, so that it is
/// waited for.
pub(crate) async fn serve(
    address: SocketAddr,
    follows: bool,
    registry: Registry,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> Result<()> {
    match TcpListener::bind(address).await {
        Ok(listener) => accept(listener, registry, readiness, shutdown),
        Err(error) if follows && error.kind() == ErrorKind::AddrInUse => {
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
                loop {
                    sleep(BIND_AGAIN).await;
                    if let Ok(listener) = TcpListener::bind(address).await {
                        return accept(listener, registry, readiness, shutdown);
                    }
                }
            }));
        }
        Err(error) => return Err(error).with_context(|| format!("--metrics-address {address}")),
    }
    Ok(())
}

fn accept(listener: TcpListener, registry: Registry, readiness: Readiness, shutdown: CancellationToken) {
    let registry = Arc::new(registry);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (registry, readiness) = (registry.clone(), readiness.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(&request, &registry, &readiness);
                    async { Ok::<_, Infallible>(answer) }
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

fn answer(request: &Request<Incoming>, registry: &Registry, readiness: &Readiness) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/metrics" => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, registry) {
                Ok(()) => respond(StatusCode::OK, OPENMETRICS, text),
                Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
            }
        }
        "/healthz" => respond(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" if readiness.get() => respond(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" => respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n"),
        _ => respond(StatusCode::NOT_FOUND, "text/plain", "this server has /metrics, /healthz and /readyz\n"),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .body(Full::new(body.into()))
        .expect("a status and one valid header make a response")
}
