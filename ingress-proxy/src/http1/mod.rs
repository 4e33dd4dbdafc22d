//! HTTP/1.1 connections, from their first request to their last.
//!
//! ```text
//! client ─▶ head: read in place, strictly ─▶ Proxy: route, policies ─▶ the head made anew ─▶ endpoint
//!    ▲                                                                                          │
//!    └─────────────── exchange: both directions at once, bytes as they come ◀───────────────────┘
//! ```
//!
//! A request costs what its system calls cost: nothing is copied but heads, and one without a body takes four calls, and no
//! timer, task, channel or allocation of its own. (The access log and policies have theirs.) One for an endpoint that speaks
//! HTTP/2 goes there by [`crate::http2::Relay`] instead, with its body taken out of its framing.

mod client;
mod exchange;
mod request;
mod to_client;
mod to_endpoint;

use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use request::Next;

use crate::clock;
use crate::ending::{Draining, LAST_REQUEST, LINGER, LINGER_BYTES};
use crate::metrics::Refusal;
use crate::proxy::{Answer, Fault, Peer, Proxy, RequestId};
use crate::stream::Stream;
use crate::wire::{Buffer, Deadline, HeadEnd, MAX_HEAD_BYTES};

/// One client's connection.
struct Connection<'p> {
    proxy: &'p Proxy,
    stream: Stream,
    peer: Peer,
    input: Buffer,
    /// The head for the endpoint.
    head: Vec<u8>,
    /// The head for the client, or an answer of the proxy's own.
    reply: Vec<u8>,
    deadline: Deadline,
    draining: Draining,
}

/// Why there is no next request.
enum Missing {
    /// The client has closed the connection.
    Closed,
    Late,
    Fault(Fault),
}

/// Serves a connection of which `input` was read. Its first head must be complete at `deadline`.
pub(crate) fn serve(
    proxy: &Proxy,
    stream: Stream,
    input: Buffer,
    peer: Peer,
    deadline: Instant,
    draining: CancellationToken,
) -> impl Future<Output = ()> {
    // Made out here: an async function would keep what it was given beside what it makes of it.
    let mut connection = Connection {
        proxy,
        peer,
        stream,
        input,
        head: Vec::new(),
        reply: Vec::new(),
        deadline: Deadline::new(deadline),
        draining: Draining::new(draining),
    };
    async move {
        let mut is_first = true;
        loop {
            let length = match connection.head_arrives(is_first).await {
                Ok(length) => length,
                Err(missing) => {
                    return connection.give_up(missing).await;
                }
            };
            is_first = false;
            match connection.request(length).await {
                Next::Request => {}
                Next::Close => return connection.close().await,
            }
        }
    }
}

impl Connection<'_> {
    /// The length of the next head, when all of it is in `input`.
    async fn head_arrives(&mut self, is_first: bool) -> Result<usize, Missing> {
        let timeouts = &self.proxy.timeouts;
        let mut end = HeadEnd::default();
        // Whether the head has begun, as far as the deadline knows. The first head has its deadline already, and one that is
        // all there needs none.
        let mut known_to_begin = None;
        let mut is_ending = false;
        std::future::poll_fn(|cx| {
            loop {
                match end.find(self.input.filled()) {
                    Ok(None) => {}
                    Ok(Some(length)) if length <= MAX_HEAD_BYTES => return Poll::Ready(Ok(length)),
                    Ok(Some(_)) => return Poll::Ready(Err(Missing::Fault(Fault::TooLarge))),
                    Err(fault) => return Poll::Ready(Err(Missing::Fault(fault))),
                }
                if self.input.len() >= MAX_HEAD_BYTES {
                    return Poll::Ready(Err(Missing::Fault(Fault::TooLarge)));
                }
                if self.input.is_full() {
                    self.input.grow();
                }
                match self.input.poll_fill(&mut self.stream, cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Missing::Closed)),
                    Poll::Pending => {
                        let has_begun = !self.input.is_empty();
                        if !is_first && known_to_begin != Some(has_begun) {
                            known_to_begin = Some(has_begun);
                            let wait = if has_begun { timeouts.header } else { timeouts.keepalive };
                            self.deadline.set(clock::now(), wait);
                        }
                        // A connection that was never used has its first request still on the way.
                        if !is_ending && !is_first && !has_begun && self.draining.has_begun(cx) {
                            is_ending = true;
                            self.deadline.set(clock::now(), LAST_REQUEST);
                        }
                        if self.deadline.has_passed(cx) {
                            return Poll::Ready(Err(Missing::Late));
                        }
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }

    /// Says why there will be no more, if there is anything to say.
    async fn give_up(&mut self, missing: Missing) {
        let answer = match missing {
            Missing::Closed => return,
            Missing::Late if self.input.is_empty() => return,
            Missing::Late => {
                self.proxy.metrics.refused(Refusal::HeaderTimeout);
                Answer::new(408, "the request head did not arrive fast enough".into())
            }
            Missing::Fault(fault) => {
                if fault == Fault::TooLarge {
                    self.proxy.metrics.refused(Refusal::HeaderTooLarge);
                }
                fault.into()
            }
        };
        self.proxy.count(None, answer.status, Duration::ZERO);
        self.reply.clear();
        answer.write(&mut self.reply, &RequestId::of(None, false), false, true);
        if self.send_reply().await.is_ok() {
            self.close().await;
        }
    }

    /// What comes of some work, unless the client goes away before. What it sends on meanwhile waits in `input`.
    async fn while_client_waits<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            while !self.input.is_full() {
                match self.input.poll_fill(&mut self.stream, cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Sends what is in `reply`.
    async fn send_reply(&mut self) -> io::Result<()> {
        let sending = async {
            self.stream.write_all(&self.reply).await?;
            self.stream.flush().await
        };
        timeout(self.proxy.timeouts.client, sending)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ends the connection so that the client gets to read what it was sent last.
    async fn close(&mut self) {
        self.input = Buffer::default();
        let lingering = async {
            self.stream.shutdown().await?;
            let mut rest = (&mut self.stream).take(LINGER_BYTES as u64);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
        };
        let _ = timeout(LINGER, lingering).await;
    }
}
