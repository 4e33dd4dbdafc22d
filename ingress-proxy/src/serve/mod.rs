//! Listeners, connections, and the way they end.
//!
//! Binds, accepts, does the TLS handshake, and hands each connection to who speaks its protocol: [`http1`] or [`http2`]. Bind
//! errors name the address, ready means bound, and a drain ends when nothing is in flight.

mod hello;
mod passthrough;
#[cfg(test)]
mod pieces;
mod proxy_protocol;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{self, in_turns};
use crate::config::Timeouts;
use crate::http1;
use crate::http2;
use crate::live::Door;
use crate::metrics::{Metrics, Refusal};
use crate::policy::is_in;
use crate::proxy::{Ends, Handshake, Proxy};
use crate::rewound::Rewound;
use crate::stream::Stream;
use crate::tls::{ClientAuth, H2};
use crate::wire::Buffer;

/// Open client connections. Beyond, new ones are closed at once and counted: memory per connection is bounded,
/// so this bounds the whole.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections that the kernel holds for us while we are busy.
const BACKLOG: u32 = 4_096;
/// How often connections to endpoints that wait for a request are looked through.
const SWEEP: Duration = Duration::from_secs(5);
/// After `accept()` failed for want of file descriptors, wait for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What an HTTP/2 client says first.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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

/// A listening socket that another process had at this address; likewise.
pub(crate) fn adopt(listener: std::net::TcpListener, address: SocketAddr) -> Result<TcpListener, BindError> {
    let adopted = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    adopted.map_err(|source| BindError { address, source })
}

/// Everything a connection needs.
pub(crate) struct Server {
    proxy: Arc<Proxy>,
    tls: TlsAcceptor,
    timeouts: Timeouts,
    metrics: Metrics,
    /// Connections begin with a PROXY header.
    proxy_protocol: bool,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
    /// The listeners are another process's too: what waits to be accepted is not ours to care for.
    shares_listeners: AtomicBool,
    /// Ends the accept loops; connections finish what they do and close.
    draining: CancellationToken,
}

impl Server {
    pub(crate) fn new(proxy: Proxy, tls: ServerConfig, timeouts: Timeouts, proxy_protocol: bool) -> Self {
        let (metrics, proxy) = (proxy.metrics.clone(), Arc::new(proxy));
        Self {
            proxy,
            tls: TlsAcceptor::from(Arc::new(tls)),
            timeouts,
            metrics,
            proxy_protocol,
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            connections: TaskTracker::new(),
            shares_listeners: AtomicBool::new(false),
            draining: CancellationToken::new(),
        }
    }

    /// What becomes of requests here.
    pub(crate) fn proxy(&self) -> Arc<Proxy> {
        Arc::clone(&self.proxy)
    }

    /// When it takes no new connections any more.
    pub(crate) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Accepts until [`Server::drain`]. What the kernel accepted by then is still served: dropping the
    /// listener would reset those connections.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener, tls: bool) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.draining.cancelled() => break,
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
        if self.shares_listeners.load(Ordering::Relaxed) {
            return;
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

    /// Another process accepts from the same listeners.
    pub(crate) fn leave_listeners(&self) {
        self.shares_listeners.store(true, Ordering::Relaxed);
    }

    /// Stops accepting, lets what is in flight end, and returns when nothing is left or `longest` has passed.
    /// Returns how many connections were cut.
    pub(crate) async fn drain(&self, longest: Duration) -> usize {
        self.draining.cancel();
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

    /// Closes connections to endpoints that waited too long, until the proxy drains.
    pub(crate) async fn sweep(self: Arc<Self>) {
        while tokio::time::timeout(SWEEP, self.draining.cancelled()).await.is_err() {
            self.proxy.sweep();
        }
    }

    fn spawn(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, tls: bool) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.metrics.refused(Refusal::TooManyConnections);
            return;
        };
        let server = Arc::clone(self);
        self.connections.spawn(in_turns(async move {
            let _slot = slot;
            server.metrics.connections.inc();
            server.connection(stream, peer, tls).await;
            server.metrics.connections.dec();
        }));
    }

    async fn connection(&self, mut stream: TcpStream, peer: SocketAddr, tls: bool) {
        let deadline = clock::now() + self.timeouts.header;
        let Ok(destination) = stream.set_nodelay(true).and_then(|()| stream.local_addr()) else { return };
        let mut ends = Ends { source: peer, destination };
        let mut input = Buffer::default();
        if self.proxy_protocol {
            match self.client_behind(&mut stream, &mut input, peer, deadline).await {
                Ok(told) => ends = told.unwrap_or(ends),
                Err(refusal) => return self.metrics.refused(refusal),
            }
        }
        if tls {
            return self.tls_connection(stream, input, ends, deadline).await;
        }
        match timeout_at(deadline, sniff(&mut stream, &mut input)).await {
            Ok(Ok(_)) if input.is_empty() => {}
            Ok(Ok(is_h2)) => self.requests(Stream::Plain(stream), input, ends, None, is_h2, deadline).await,
            Ok(Err(_)) => {}
            Err(_) => self.metrics.refused(Refusal::HeaderTimeout),
        }
    }

    /// For whom the load balancer at the other end speaks, if not for itself.
    async fn client_behind(
        &self,
        stream: &mut TcpStream,
        input: &mut Buffer,
        peer: SocketAddr,
        deadline: Instant,
    ) -> Result<Option<Ends>, Refusal> {
        // Anybody else could be anybody.
        if !is_in(&self.proxy.trusted, peer.ip().to_canonical()) {
            return Err(Refusal::UntrustedProxy);
        }
        match timeout_at(deadline, proxy_protocol::read(stream, input)).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "no PROXY header");
                Err(Refusal::ProxyHeader)
            }
            Err(_) => Err(Refusal::HeaderTimeout),
        }
    }

    async fn tls_connection(&self, mut stream: TcpStream, mut input: Buffer, ends: Ends, deadline: Instant) {
        let failed = |error: &io::Error| {
            self.metrics.refused(Refusal::HandshakeFailed);
            tracing::debug!(peer = %ends.source, %error, "TLS handshake failed");
        };
        // Most proxies have no host whose connections are special, and read the first message only once.
        let door = if self.proxy.has_doors() {
            match timeout_at(deadline, hello::name(&mut stream, &mut input)).await {
                Ok(Ok(name)) => name.and_then(|name| self.proxy.door(&name)),
                Ok(Err(error)) => return failed(&error),
                Err(_) => return self.metrics.refused(Refusal::HandshakeTimeout),
            }
        } else {
            None
        };
        let stream = Rewound::new(stream, input);
        let auth = match door {
            Some(Door::Passthrough(target)) => {
                return passthrough::relay(stream, ends, &target, &self.timeouts, &self.metrics).await;
            }
            Some(Door::Clients(auth)) => Some(auth),
            None => None,
        };
        let acceptor = auth.as_ref().map_or_else(|| self.tls.clone(), |auth| Arc::clone(&auth.config).into());
        let (stream, handshake, is_h2) = match timeout_at(deadline, shake_hands(acceptor, stream, auth)).await
        {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => return failed(&error),
            Err(_) => return self.metrics.refused(Refusal::HandshakeTimeout),
        };
        self.requests(stream, Buffer::default(), ends, Some(handshake), is_h2, deadline).await;
    }

    async fn requests(
        &self,
        stream: Stream,
        input: Buffer,
        ends: Ends,
        handshake: Option<Handshake>,
        is_h2: bool,
        deadline: Instant,
    ) {
        let peer = self.proxy.peer(ends, handshake);
        let draining = self.draining.clone();
        if is_h2 {
            // Apart: a connection of HTTP/1.1 would have room for it.
            Box::pin(http2::serve(&self.proxy, stream, input, peer, deadline, draining)).await;
        } else {
            http1::serve(&self.proxy, stream, input, peer, deadline, draining).await;
        }
    }
}

/// The handshake of TLS, which `auth` asks for a certificate. What it says, and whether the client then speaks HTTP/2.
async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: Rewound<TcpStream>,
    auth: Option<Arc<ClientAuth>>,
) -> io::Result<(Stream, Handshake, bool)> {
    let stream = acceptor.accept(stream).await?;
    let (_, session) = stream.get_ref();
    let is_h2 = session.alpn_protocol() == Some(H2);
    let handshake = Handshake {
        name: session.server_name().map(|name| name.to_ascii_lowercase().into()),
        is_shared: is_h2,
        identity: auth.map(|auth| auth.identity(session.peer_certificates())),
    };
    Ok((Stream::Tls(Box::new(stream.into())), handshake, is_h2))
}

/// Reads until it is clear whether this is HTTP/2 with prior knowledge. The first byte that differs decides: a request of
/// HTTP/1 may be shorter than the preface. The caller has a deadline.
async fn sniff(stream: &mut TcpStream, input: &mut Buffer) -> io::Result<bool> {
    loop {
        // Some of it may have come behind a PROXY header.
        let head = input.filled();
        let compared = head.len().min(H2_PREFACE.len());
        let alike = head[..compared] == H2_PREFACE[..compared];
        if !alike || compared == H2_PREFACE.len() {
            return Ok(alike);
        }
        if std::future::poll_fn(|cx| input.poll_fill(stream, cx)).await? == 0 {
            return Ok(false);
        }
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that waits for its next request holds this and what the kernel has of it.
    #[test]
    fn a_connection_is_small() {
        fn bytes<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = bytes(Server::connection);
        assert!(bytes <= 4 * 1_024, "{bytes} bytes: keep what is rare in a box of its own");
    }
}
