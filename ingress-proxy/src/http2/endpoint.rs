//! Connections to an endpoint that speaks HTTP/2. Each carries many requests, and belongs to its endpoint.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep, timeout};

use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW};
use crate::clock;
use crate::metrics::UpstreamFailure;
use crate::stream::Stream;
use crate::upstream::{Endpoint, connect};
use crate::wire::MAX_HEAD_BYTES;

/// Requests on one connection before another is opened; an endpoint may allow fewer.
const MAX_STREAMS: usize = 100;
/// Connections to one endpoint. Beyond, requests wait for a stream of theirs.
const MAX_CONNECTIONS: usize = 16;
/// A connection is asked for a sign of life this often, and given up when it gives none for as long.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// The connections to one endpoint.
#[derive(Debug)]
pub(crate) struct Connections {
    longest: Duration,
    open: Mutex<Vec<Open>>,
    /// One is opened at a time: whoever waits for it mostly finds that one will do.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Open {
    sender: SendRequest<Bytes>,
    /// Requests on it, each of which holds one of these.
    load: Arc<()>,
    used: Instant,
}

impl Open {
    fn load(&self) -> usize {
        Arc::strong_count(&self.load) - 1
    }

    fn has_room(&self) -> bool {
        self.load() < MAX_STREAMS.min(self.sender.current_max_send_streams())
    }

    fn take(&mut self, is_reused: bool) -> Taken {
        self.used = clock::now();
        Taken { sender: self.sender.clone(), is_reused, _load: Arc::clone(&self.load) }
    }
}

/// A connection for one request, which counts as its load until dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) sender: SendRequest<Bytes>,
    /// It was there before.
    pub(crate) is_reused: bool,
    pub(crate) _load: Arc<()>,
}

impl Taken {
    /// Waits, but not longer, until the endpoint allows one more stream.
    pub(crate) async fn ready(&mut self, longest: Duration) -> Result<(), UpstreamFailure> {
        let ready = timeout(longest, poll_fn(|cx| self.sender.poll_ready(cx))).await;
        ready.map_err(|_| UpstreamFailure::WriteTimeout)?.map_err(|_| UpstreamFailure::Closed)
    }
}

impl Connections {
    /// For connections that may be without requests for so long.
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, open: Mutex::default(), opening: tokio::sync::Mutex::default() }
    }

    /// A connection that takes a request.
    pub(crate) async fn take(
        &self,
        endpoint: &Endpoint,
        longest: Duration,
    ) -> Result<Taken, UpstreamFailure> {
        if let Some(taken) = self.with_room() {
            return Ok(taken);
        }
        let opening = async {
            let _turn = self.opening.lock().await;
            match self.with_room() {
                Some(taken) => Ok(taken),
                None => self.open(endpoint, longest).await,
            }
        };
        // Apart: it is rare, and would be room in every stream's task.
        Box::pin(timeout(longest, opening)).await.unwrap_or(Err(UpstreamFailure::ConnectTimeout))
    }

    /// Lets go of those without requests for too long. Returns how many are left.
    pub(crate) fn sweep(&self) -> usize {
        let now = clock::now();
        let mut open = self.lock();
        open.retain(|one| one.load() > 0 || now.duration_since(one.used) < self.longest);
        open.len()
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn with_room(&self) -> Option<Taken> {
        let mut open = self.lock();
        // Those that ended say so.
        let mut context = Context::from_waker(Waker::noop());
        open.retain_mut(|one| !matches!(one.sender.poll_ready(&mut context), Poll::Ready(Err(_))));
        let is_full = open.len() >= MAX_CONNECTIONS;
        let candidates = open.iter_mut().filter(|one| is_full || one.has_room());
        candidates.min_by_key(|one| one.load()).map(|one| one.take(true))
    }

    async fn open(&self, endpoint: &Endpoint, longest: Duration) -> Result<Taken, UpstreamFailure> {
        let stream = connect(endpoint, longest, &[]).await?;
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER);
        let (sender, connection) =
            builder.handshake(stream).await.map_err(|_| UpstreamFailure::InvalidResponse)?;
        // Ends when the endpoint closes it, or when nobody holds a sender or a stream any more.
        tokio::spawn(drive(connection));
        let mut opened = Open { sender, load: Arc::default(), used: clock::now() };
        let taken = opened.take(false);
        self.lock().push(opened);
        Ok(taken)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves a connection's frames until it ends or is silent for too long.
async fn drive(mut connection: Connection<Stream, Bytes>) {
    let pings = connection.ping_pong();
    let silence = async {
        match pings {
            Some(pings) => until_silent(pings).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // How it ended, its streams tell those who wait on them.
        _ = connection => {}
        () = silence => {}
    }
}

async fn until_silent(mut pings: PingPong) {
    loop {
        sleep(PING_INTERVAL).await;
        if !matches!(timeout(PING_INTERVAL, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
