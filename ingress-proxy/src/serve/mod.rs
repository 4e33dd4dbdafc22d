//! Listeners, connections, and the way they end.
//!
//! pingora's own server refuses connections the moment it is told to stop, sleeps a whole grace period, and
//! survives a failed bind as a process that serves nothing. So its accept loop is not used: this module binds,
//! accepts, does the TLS handshake, and hands each connection to pingora's request loop. That gives bind errors
//! that name the address, readiness that means bound, and a drain that ends when nothing is in flight.

mod guard;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::l4::stream::Stream as TcpConnection;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use guard::{Guard, MAX_HEAD_BYTES};

use crate::config::Timeouts;
use crate::metrics::{Metrics, Refusal};
use crate::policy::MAX_TRIES;
use crate::proxy::Proxy;

/// Open client connections. Beyond, new ones are closed at once and counted: memory per connection is bounded,
/// so this bounds the whole.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections that the kernel holds for us while we are busy.
const BACKLOG: u32 = 4_096;
/// Unused connections to endpoints, over all threads (pingora's default of 128 makes a busy proxy reconnect).
const UPSTREAM_POOL: usize = 1_024;
/// How often a request is sent at most, unless its rule says otherwise; what may be sent again is the proxy's decision
/// per error.
pub(crate) const MAX_ATTEMPTS: u8 = 3;
/// Streams that a client may have open on one HTTP/2 connection.
const MAX_H2_STREAMS: u32 = 128;
/// Streams that a client may reset before they were looked at, per HTTP/2 connection: the bound on rapid reset
/// (CVE-2023-44487).
const MAX_H2_PENDING_RESETS: usize = 32;
/// Streams that errors of the client's made us reset: the bound on `MadeYouReset` (CVE-2025-8671).
const MAX_H2_LOCAL_ERROR_RESETS: usize = 64;
/// After `accept()` failed for want of file descriptors, wait for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What an HTTP/2 client says first.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Read at once to tell HTTP/1 from HTTP/2: a typical request head, so that it costs no extra call.
const SNIFF_BYTES: usize = 1_024;

/// A listener could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {}", remedy(source))]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there or choose another address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
        _ => "choose another address",
    }
}

/// Binds a listening socket; must be called inside the runtime that will accept from it.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?; // connections of the last run in TIME_WAIT are no obstacle
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| BindError { address, source })
}

/// Everything a connection needs.
pub(crate) struct Server {
    app: Arc<HttpProxy<Proxy>>,
    tls: Acceptor,
    timeouts: Timeouts,
    metrics: Metrics,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
    /// Turns true when connections should finish what they do and close.
    stopping: watch::Sender<bool>,
    /// Ends the accept loops.
    accepting: CancellationToken,
}

impl Server {
    pub(crate) fn new(proxy: Proxy, tls: ServerConfig, timeouts: Timeouts, workers: usize) -> Self {
        let metrics = proxy.metrics().clone();
        let conf = ServerConf {
            threads: workers,
            upstream_keepalive_pool_size: UPSTREAM_POOL.div_ceil(workers),
            // A backstop: attempts are counted per rule, and an error page is one more.
            max_retries: usize::from(MAX_TRIES) + 1,
            ..ServerConf::default()
        };
        let mut app = HttpProxy::new(proxy, Arc::new(conf));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(timeouts.keepalive);
        app.server_options = Some(options);
        let mut h2 = default_h2_options();
        h2.max_concurrent_streams(MAX_H2_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_pending_accept_reset_streams(MAX_H2_PENDING_RESETS)
            .max_local_error_reset_streams(Some(MAX_H2_LOCAL_ERROR_RESETS));
        app.h2_options = Some(h2);
        app.handle_init_modules();
        Self {
            app: Arc::new(app),
            tls: Acceptor::from_server_config(Arc::new(tls)),
            timeouts,
            metrics,
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            connections: TaskTracker::new(),
            stopping: watch::Sender::new(false),
            accepting: CancellationToken::new(),
        }
    }

    /// Accepts until [`Server::drain`]. What the kernel accepted by then is still served: dropping the
    /// listener would reset those connections.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener, tls: bool) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.accepting.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.spawn(stream, peer, tls),
                Err(error) if is_exhaustion(&error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(_) => {} // the client left before it was looked at
            }
        }
        if let Ok(listener) = listener.into_std() {
            while let Ok((stream, peer)) = listener.accept() {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    self.spawn(stream, peer, tls);
                }
            }
        }
    }

    /// Stops accepting, lets what is in flight end, and returns when nothing is left or `longest` has passed.
    /// Returns how many connections were cut.
    pub(crate) async fn drain(&self, longest: Duration) -> usize {
        self.accepting.cancel();
        self.stopping.send_replace(true);
        self.app.http_cleanup().await; // connections that wait for a next request close now
        self.connections.close();
        let _ = tokio::time::timeout(longest, self.connections.wait()).await;
        self.connections.len()
    }

    /// A task that counts as a connection: the drain waits for it.
    pub(crate) fn track(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: bool,
        runtime: &tokio::runtime::Handle,
    ) {
        self.connections.spawn_on(Arc::clone(self).accept(listener, tls), runtime);
    }

    fn spawn(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, tls: bool) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.metrics.refused(Refusal::TooManyConnections);
            return;
        };
        let server = Arc::clone(self);
        self.connections.spawn(async move {
            let _slot = slot;
            server.metrics.connections.inc();
            server.connection(stream, peer, tls).await;
            server.metrics.connections.dec();
        });
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, tls: bool) {
        let deadline = Instant::now() + self.timeouts.header;
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let guard = if tls {
            let stream = tcp_connection(stream, peer);
            let handshake = timeout_at(deadline, self.tls.tls_handshake(stream)).await;
            match handshake {
                Ok(Ok(stream)) => self.guard(Box::new(stream), Bytes::new(), false, deadline),
                Ok(Err(error)) => {
                    self.metrics.refused(Refusal::HandshakeFailed);
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                    return;
                }
                Err(_) => return self.metrics.refused(Refusal::HandshakeTimeout),
            }
        } else {
            let mut stream = stream;
            match timeout_at(deadline, sniff(&mut stream)).await {
                Ok(Ok((head, _))) if head.is_empty() => return,
                Ok(Ok((head, h2c))) => {
                    self.guard(Box::new(tcp_connection(stream, peer)), head, h2c, deadline)
                }
                Ok(Err(_)) => return,
                Err(_) => return self.metrics.refused(Refusal::HeaderTimeout),
            }
        };
        self.requests(Box::new(guard)).await;
    }

    fn guard(&self, stream: Stream, head: Bytes, h2c: bool, deadline: Instant) -> Guard {
        Guard::new(stream, head, h2c, deadline, self.timeouts.header, self.metrics.clone())
    }

    /// Requests on one connection, until either side has enough.
    async fn requests(&self, stream: Stream) {
        let stopping = self.stopping.subscribe();
        if matches!(stream.selected_alpn_proto(), Some(pingora::protocols::ALPN::H2)) {
            self.app.process_new(stream, &stopping).await;
            return;
        }
        let mut session = ServerSession::new_http1(stream);
        let keepalive = self.timeouts.keepalive.as_secs();
        session.set_keepalive((!*stopping.borrow()).then_some(keepalive));
        session.set_pipelining_enabled(true);
        let mut next = self.app.process_new_http(session, &stopping).await;
        while let Some(reused) = next {
            let (stream, settings) = reused.consume();
            if let Some(guard) = Guard::of(&stream) {
                guard.expect_head();
            }
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            next = self.app.process_new_http(session, &stopping).await;
        }
    }
}

/// Reads until it is clear whether this is HTTP/2 with prior knowledge; what was read is returned, to be read
/// again. pingora waits for 24 bytes without a deadline, which a shorter HTTP/1 request never sends; here the
/// first byte that differs decides, and the caller has a deadline.
async fn sniff(stream: &mut TcpStream) -> io::Result<(Bytes, bool)> {
    let mut head = Vec::with_capacity(SNIFF_BYTES);
    loop {
        let read = stream.read_buf(&mut head).await?;
        let compared = head.len().min(H2_PREFACE.len());
        let alike = head[..compared] == H2_PREFACE[..compared];
        if !alike || compared == H2_PREFACE.len() || read == 0 {
            return Ok((head.into(), alike && compared == H2_PREFACE.len()));
        }
    }
}

/// pingora's stream, told the peer's address so that it need not ask the kernel.
fn tcp_connection(stream: TcpStream, peer: SocketAddr) -> TcpConnection {
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    let _ = digest.peer_addr.set(Some(peer.into()));
    let mut stream = TcpConnection::from(stream);
    stream.set_socket_digest(digest);
    stream
}

fn is_exhaustion(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}
