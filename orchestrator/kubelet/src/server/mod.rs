//! The kubelet's own HTTPS server: logs, pods, health. The apiserver is its client.
//!
//! Every client needs a certificate of the cluster's authority. At most [`CONNECTIONS`] are served at once, further
//! ones wait in the listen queue; at most [`LOG_STREAMS`] logs, further ones get 429. The certificate is read again
//! when its file changes, so that rotation needs no restart.

mod query;
mod tls;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};

pub(crate) use self::tls::Tls;
use crate::{
    error::{Error, Result},
    logs::{self, LogOptions},
    metrics::Metrics,
    pods::dispatch::PodTable,
    runtime::{ContainerId, ContainerState, ContainerStatus, Event, Runtime},
};

/// Connections served at once.
const CONNECTIONS: usize = 256;
/// Logs sent at once.
const LOG_STREAMS: usize = 128;
/// Pieces of a log that a slow reader may be behind; the log is read no faster.
const LOG_PIECES: usize = 16;
/// A client has this long for its handshake and for each request's headers.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

type Body = BoxBody<Bytes, Infallible>;

/// The server.
pub(crate) struct Server<R> {
    pub(crate) runtime: Arc<R>,
    pub(crate) pods: PodTable,
    pub(crate) metrics: Metrics,
    log_streams: Arc<Semaphore>,
}

impl<R: Runtime> Server<R> {
    pub(crate) fn new(runtime: Arc<R>, pods: PodTable, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { runtime, pods, metrics, log_streams: Arc::new(Semaphore::new(LOG_STREAMS)) })
    }

    /// Takes the port; so a port in use is known at once.
    pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
        TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
    }

    /// Serves until dropped.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener, tls: Tls) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            while tasks.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (server, acceptor) = (self.clone(), tls.acceptor());
                    tasks.spawn(async move {
                        let _permit = permit;
                        server.serve(stream, acceptor, peer).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    // Out of file descriptors: others must end first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        acceptor: tokio_rustls::TlsAcceptor,
        peer: SocketAddr,
    ) {
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
        };
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(&request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here");
        }
        let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["healthz"] => text(StatusCode::OK, "ok"),
            ["pods"] => self.list_pods(),
            ["containerLogs", namespace, pod, container] => {
                match query::log_options(request.uri().query().unwrap_or("")) {
                    Ok(options) => self.container_log(namespace, pod, container, options).await,
                    Err(problem) => text(StatusCode::BAD_REQUEST, &problem),
                }
            }
            _ => text(StatusCode::NOT_FOUND, "not found; there are /healthz, /pods and /containerLogs"),
        }
    }

    fn list_pods(&self) -> Response<Body> {
        let table = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let items: Vec<&Pod> = table.values().map(|pod| &**pod).collect();
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        let mut response = text(StatusCode::OK, &list.to_string());
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }

    async fn container_log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Response<Body> {
        let Ok(permit) = self.log_streams.clone().try_acquire_owned() else {
            self.metrics.drop_from("log_streams");
            return text(StatusCode::TOO_MANY_REQUESTS, "too many logs are being read; try again later");
        };
        // Before the container is looked at: what ends in between is not missed.
        let events = self.runtime.events();
        let status = match self.find(namespace, pod, container, options.previous).await {
            Ok(status) => status,
            Err((code, problem)) => return text(code, &problem),
        };
        let path: PathBuf = status.spec.log_path.clone();
        let over = status.state == ContainerState::Exited;
        let options = LogOptions { follow: options.follow && !over, ..options };
        let (sink, source) = mpsc::channel(LOG_PIECES);
        let streams = self.metrics.log_streams.clone();
        let ended = Box::pin(exited(events, status.id));
        tokio::spawn(async move {
            let _permit = permit;
            streams.inc();
            logs::send(path, options, ended, sink).await;
            streams.dec();
        });
        let pieces = futures::stream::unfold(source, |mut source| async move {
            source.recv().await.map(|piece| (Ok(Frame::data(piece)), source))
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(pieces)));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        response
    }

    /// The newest container of this name, or the one before it.
    async fn find(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<ContainerStatus, (StatusCode, String)> {
        let uid = {
            let table = self.pods.read().unwrap_or_else(PoisonError::into_inner);
            let found = table.iter().find(|(_, candidate)| {
                let metadata = &candidate.metadata;
                metadata.namespace.as_deref() == Some(namespace) && metadata.name.as_deref() == Some(pod)
            });
            found.map(|(uid, pod)| (uid.clone(), declares(pod, container)))
        };
        let (uid, declared) =
            uid.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{pod}\" is not on this node")))?;
        if !declared {
            let problem = format!("container \"{container}\" is not valid for pod \"{pod}\"");
            return Err((StatusCode::BAD_REQUEST, problem));
        }
        let internal = |error: crate::runtime::Error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        let sandboxes = self.runtime.list_sandboxes().await.map_err(internal)?;
        let mut containers = self.runtime.list_containers().await.map_err(internal)?;
        containers.retain(|status| {
            status.spec.name == container
                && sandboxes.iter().any(|sandbox| sandbox.id == status.sandbox && sandbox.spec.uid == uid)
        });
        containers.sort_by_key(|status| std::cmp::Reverse((status.spec.attempt, status.created_at)));
        containers.into_iter().nth(usize::from(previous)).ok_or_else(|| {
            let problem = if previous {
                format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
            } else {
                format!("container \"{container}\" in pod \"{pod}\" is waiting to start")
            };
            (StatusCode::BAD_REQUEST, problem)
        })
    }
}

/// Yields once the container is over.
fn exited(
    events: impl futures::Stream<Item = Event> + Unpin + Send,
    id: ContainerId,
) -> impl futures::Stream<Item = ()> + Send {
    events.filter_map(move |event| {
        let over = match &event {
            Event::Exited { container, .. } => *container == id,
            // It may have been this one; a reader that asks again loses nothing.
            Event::Lost => true,
            Event::Started { .. } => false,
        };
        std::future::ready(over.then_some(()))
    })
}

fn declares(pod: &Pod, container: &str) -> bool {
    pod.spec.iter().any(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| c.name == container)
    })
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed());
    *response.status_mut() = status;
    response
}
