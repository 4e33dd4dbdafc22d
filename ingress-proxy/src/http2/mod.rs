//! HTTP/2 connections: many requests at once, each on a stream of its own.
//!
//! ```text
//!                                                          ┌─▶ exchange ─▶ an HTTP/1.1 endpoint
//! client ─▶ h2: frames ─▶ stream: judged as in `http1` ────┤
//!    ▲                                                     └─▶ relay ────▶ an HTTP/2 endpoint, also for HTTP/1.1 clients
//!    └───────── reply: heads and bodies as the client takes them ◀─┘
//! ```
//!
//! One task serves a connection and all its streams, so that a stream costs no task, and the responses of many streams
//! leave in one write. What a client can make us hold is bounded: streams, their windows, what was reset early, and the
//! time that it may do nothing.

mod body;
mod both_ways;
mod client;
mod endpoint;
mod exchange;
mod head;
mod patience;
mod relay;
mod reply;
mod stream;

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

pub(crate) use both_ways::{BothWays, run};
pub(crate) use client::Client;
pub(crate) use endpoint::Connections;
pub(crate) use head::from_http1;
pub(crate) use patience::Patience;
pub(crate) use relay::Relay;
use stream::Shared;

use crate::clock;
use crate::ending::{Draining, LAST_REQUEST, LINGER};
use crate::metrics::Refusal;
use crate::proxy::{Peer, Proxy};
use crate::rewound::Rewound;
use crate::stream::Stream;
use crate::wire::{Buffer, Deadline, MAX_HEAD_BYTES};

/// Streams that a client may have open on one connection.
const MAX_STREAMS: u32 = 128;
/// Streams that a client may reset before they were looked at, per connection: the bound on rapid reset (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;
/// Streams that errors of the client's made us reset: the bound on `MadeYouReset` (CVE-2025-8671).
const MAX_LOCAL_ERROR_RESETS: usize = 64;
/// Bytes of request bodies that may be on their way to us, for one stream and for all of a connection.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a response that wait for a client to take them, per stream.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves a connection of which `input` was read. Its preface must be complete at `deadline`.
pub(crate) async fn serve(
    proxy: &Proxy,
    stream: Stream,
    input: Buffer,
    peer: Peer,
    deadline: Instant,
    draining: CancellationToken,
) {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    let handshake = builder.handshake(Rewound::new(stream, input));
    let frames = match timeout_at(deadline, handshake).await {
        Ok(Ok(frames)) => frames,
        Ok(Err(_)) => return,
        Err(_) => return proxy.metrics.refused(Refusal::HeaderTimeout),
    };
    let shared = Shared { proxy, peer };
    let open = |request, respond| stream::serve(&shared, request, respond);
    let mut streams = FuturesUnordered::new();
    let mut connection = Connection {
        frames,
        idle: Deadline::new(clock::now() + proxy.timeouts.header),
        keepalive: proxy.timeouts.keepalive,
        draining: Draining::new(draining),
        state: State::Open,
        is_used: false,
    };
    std::future::poll_fn(|cx| connection.poll(&mut streams, &open, cx)).await;
}

/// How far the end of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The client is told to open no more streams; those that are open end.
    Draining {
        is_told: bool,
    },
    /// The client was told that it is over.
    Closing,
}

/// One client's connection.
struct Connection {
    frames: h2::server::Connection<Rewound<Stream>, Bytes>,
    /// Passes when the client has had no stream for too long.
    idle: Deadline,
    keepalive: Duration,
    draining: Draining,
    state: State,
    /// The client has opened a stream.
    is_used: bool,
}

impl Connection {
    /// Moves it and its streams on until it is over. `open` serves a stream.
    fn poll<F: Future<Output = ()>>(
        &mut self,
        streams: &mut FuturesUnordered<F>,
        open: &impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.state == State::Open && self.draining.has_begun(cx) {
            self.state = State::Draining { is_told: false };
            if !self.is_used {
                // Its first stream is still on the way.
                self.idle.set(clock::now(), LAST_REQUEST);
            }
        }
        loop {
            // This also sends what streams have made ready.
            while let Poll::Ready(next) = self.frames.poll_accept(cx) {
                let Some(Ok((request, respond))) = next else { return Poll::Ready(()) };
                self.is_used = true;
                streams.push(open(request, respond));
            }
            if self.is_used && self.state == (State::Draining { is_told: false }) {
                // Streams that are on the way are still served (RFC 9113 §6.8).
                self.frames.graceful_shutdown();
                self.state = State::Draining { is_told: true };
                continue;
            }
            let mut has_ended = false;
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
                has_ended = true;
            }
            if has_ended {
                self.idle.set(clock::now(), self.keepalive);
                continue;
            }
            if !streams.is_empty() || !self.idle.has_passed(cx) {
                return Poll::Pending;
            }
            if self.state == State::Closing {
                return Poll::Ready(());
            }
            self.frames.abrupt_shutdown(Reason::NO_ERROR);
            self.state = State::Closing;
            self.idle.set(clock::now(), LINGER);
        }
    }
}
