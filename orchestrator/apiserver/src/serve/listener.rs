//! The listener: accepts connections, bounds what each may take, and lets them finish when the server stops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::authn::user_of_certificate;
use crate::error::Error;
use crate::metrics::Counted;
use crate::server::Server;

/// How long a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client has for the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// Requests at the same time on one HTTP/2 connection: client-go keeps every watch of a process on one.
const STREAMS_MAX: u32 = 1000;
/// Streams that a client may open and reset before the connection is closed (CVE-2023-44487).
const RESETS_MAX: usize = 100;
/// How often a silent HTTP/2 connection is asked whether it is still there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(15);
/// How long what was sent may stay unacknowledged before the kernel gives the connection up: what ends a watch whose
/// client is gone without a word.
const UNACKNOWLEDGED_MS: u32 = 60_000;
/// Bytes of a request's head.
const HEAD_BYTES: u32 = 64 << 10;
/// How long the accept loop rests when the system has no descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How long requests in flight have to finish when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// A bound port.
pub(crate) struct Listener {
    socket: TcpListener,
    config: Arc<ServerConfig>,
    connections: Arc<Semaphore>,
}

impl Listener {
    pub(crate) async fn bind(
        address: SocketAddr,
        config: Arc<ServerConfig>,
        max_connections: usize,
    ) -> Result<Listener, Error> {
        let socket = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        Ok(Listener { socket, config, connections: Arc::new(Semaphore::new(max_connections)) })
    }
}

/// Accepts and serves until the server is to stop.
pub(crate) async fn serve(listener: Listener, server: Arc<Server>) {
    let acceptor = TlsAcceptor::from(Arc::clone(&listener.config));
    let connections = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            permit = acquire(&listener.connections, &server) => permit,
            () = server.shutdown.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            () = server.shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
                connections.spawn(async move {
                    serve_connection(stream, acceptor, server).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!("connections that did not finish within {} s are cut", DRAIN.as_secs());
    }
}

async fn acquire(connections: &Arc<Semaphore>, server: &Server) -> OwnedSemaphorePermit {
    if connections.available_permits() == 0 {
        server.metrics.connections_waited.inc();
    }
    Arc::clone(connections).acquire_owned().await.expect("this semaphore is never closed")
}

async fn serve_connection(stream: TcpStream, acceptor: TlsAcceptor, server: Arc<Server>) {
    let _open = Counted::new(&server.metrics.connections);
    if let Err(error) = tune(&stream) {
        tracing::debug!(%error, "a connection could not be tuned");
    }
    let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            server.metrics.handshakes_failed.inc();
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            server.metrics.handshakes_failed.inc();
            tracing::debug!("a TLS handshake took too long");
            return;
        }
    };
    let certificates = tls.get_ref().1.peer_certificates();
    let peer = certificates.and_then(<[_]>::first).and_then(user_of_certificate).map(Arc::new);

    let shutdown = server.shutdown.clone();
    let service = service_fn(move |request| {
        let (server, peer) = (Arc::clone(&server), peer.clone());
        async move { Ok::<_, Infallible>(server.serve(request, peer).await) }
    });
    let builder = builder();
    let connection = builder.serve_connection(TokioIo::new(tls), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "a connection ended early");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE);
    builder
}

fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS)?;
    Ok(())
}
