//! One request to one endpoint, and its response back, both at once.
//!
//! Bytes go on as soon as they were read, in either direction and in either order: an endpoint may answer before it has
//! the whole body, and a client may wait for `100 Continue`. A side that takes nothing stops the reading of the other, so
//! that an exchange never holds more than one buffer of each.
//!
//! **Cost** of a request without a body whose response fits a buffer: one `send` and one `recv` at the endpoint, one
//! `send` at the client, no allocation.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::buffer::Buffer;
use super::deadline::Deadline;
use super::forward::{After, write_response};
use super::framing::Body;
use super::head::{ResponseHead, Space};
use crate::config::Timeouts;
use crate::metrics::UpstreamFailure;
use crate::proxy::Trouble;
use crate::serve::MAX_HEAD_BYTES;
use crate::stream::ClientStream;

/// What an exchange must know of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) body: Body,
    pub(super) is_head: bool,
    /// HTTP/1.0: no chunks, no interim responses.
    pub(super) is_old: bool,
    pub(super) upgrades: bool,
    /// Whether the client's connection may be used again.
    pub(super) keep: bool,
}

/// How an exchange ended well.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Whether the client's connection can be used again.
    pub(super) keep_client: bool,
    /// Whether the endpoint's can.
    pub(super) keep_endpoint: bool,
}

/// What a response has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    Head,
    Body,
    Done,
}

/// Both directions of one exchange.
pub(super) struct Exchange<'c> {
    client: &'c mut ClientStream,
    endpoint: &'c mut TcpStream,
    /// What the client sent and the endpoint has not confirmed; the body begins at its front.
    input: &'c mut Buffer,
    timeouts: &'c Timeouts,
    /// The head for the endpoint.
    head: &'c [u8],
    head_sent: usize,
    asked: Asked,
    request: Body,
    /// Bytes at the front of `input` that belong to the body, and how many of them were sent.
    read: usize,
    sent: usize,
    /// Bytes of the body that are not in `input` any more.
    forgotten: u64,
    /// The endpoint takes no more of the request. It may have answered before.
    deaf: bool,
    answer: Buffer,
    response: Response,
    framing: Body,
    /// The head for the client, or what goes in front of the next bytes of the body.
    reply: &'c mut Vec<u8>,
    reply_sent: usize,
    /// Bytes at the front of `answer` that go to the client.
    ready: usize,
    /// The response has no length and is chunked here.
    chunks: bool,
    keep_client: bool,
    keep_endpoint: bool,
    /// Whether the client was sent anything.
    spoke: bool,
    /// Reads and writes that moved something.
    moves: u64,
    /// Of the response, as the client gets it; 0 before there is one.
    pub(super) status: u16,
    pub(super) bytes_out: u64,
}

impl<'c> Exchange<'c> {
    pub(super) fn new(
        client: &'c mut ClientStream,
        endpoint: &'c mut TcpStream,
        input: &'c mut Buffer,
        (head, reply): (&'c [u8], &'c mut Vec<u8>),
        asked: Asked,
        timeouts: &'c Timeouts,
    ) -> Self {
        reply.clear();
        Self {
            client,
            endpoint,
            input,
            timeouts,
            head,
            head_sent: 0,
            asked,
            request: asked.body,
            read: 0,
            sent: 0,
            forgotten: 0,
            deaf: false,
            answer: Buffer::default(),
            response: Response::Head,
            framing: Body::Done,
            reply,
            reply_sent: 0,
            ready: 0,
            chunks: false,
            keep_client: asked.keep,
            keep_endpoint: false,
            spoke: false,
            moves: 0,
            status: 0,
            bytes_out: 0,
        }
    }

    /// Whether the same request can be sent once more: nothing reached the client, and all of the body is at hand.
    pub(super) fn can_repeat(&self) -> bool {
        !self.spoke && self.forgotten == 0
    }

    /// Bytes of the body that were taken from the client.
    pub(super) fn bytes_in(&self) -> u64 {
        self.forgotten + self.read as u64
    }

    /// To the end of the response. `draining` decides whether the client is told that its connection closes.
    pub(super) async fn run(
        &mut self,
        deadline: &mut Deadline,
        draining: impl Fn() -> bool,
    ) -> Result<End, Trouble> {
        deadline.set(Instant::now(), self.patience().0);
        let result = std::future::poll_fn(|cx| self.poll(deadline, &draining, cx)).await;
        if result.is_ok() {
            self.input.consume(self.read);
            self.read = 0;
        }
        result
    }

    fn poll(
        &mut self,
        deadline: &mut Deadline,
        draining: &impl Fn() -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<End, Trouble>> {
        let before = self.moves;
        loop {
            let request = self.request;
            let _ = self.poll_request(cx)?;
            if self.poll_response(draining, cx)?.is_ready() {
                return Poll::Ready(Ok(self.end()));
            }
            // An upgrade that was just agreed on opens the other direction again.
            if self.request != Body::Tunnel || request == Body::Tunnel {
                break;
            }
        }
        if self.moves != before {
            deadline.set(Instant::now(), self.patience().0);
        }
        if deadline.has_passed(cx) {
            return Poll::Ready(Err(self.patience().1));
        }
        Poll::Pending
    }

    /// How long is waited for what is missing now, and what it is if it does not come.
    fn patience(&self) -> (std::time::Duration, Trouble) {
        let wants = self.head_sent < self.head.len() || self.sent < self.read;
        if self.reply_sent < self.reply.len() || self.ready > 0 {
            (self.timeouts.client, Trouble::ClientGone)
        } else if wants && !self.deaf {
            (self.timeouts.write, Trouble::Endpoint(UpstreamFailure::WriteTimeout))
        } else if self.request.is_done() || self.request == Body::Tunnel || self.deaf {
            (self.timeouts.read, Trouble::Endpoint(UpstreamFailure::ReadTimeout))
        } else {
            (self.timeouts.client, Trouble::SlowClient)
        }
    }

    fn end(&self) -> End {
        let whole = self.request.is_done() && self.sent == self.read && self.head_sent == self.head.len();
        End {
            keep_client: self.keep_client && self.request.is_done(),
            keep_endpoint: self.keep_endpoint && whole && !self.deaf && self.answer.is_empty(),
        }
    }

    /// Moves the request on until it is sent or something must be waited for.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        loop {
            let (head, body) = (&self.head[self.head_sent..], &self.input.filled()[self.sent..self.read]);
            if self.deaf {
                // What is sent in vain is still read, so that the client gets to reading the answer.
                self.sent = self.read;
            } else if !head.is_empty() || !body.is_empty() {
                match write(self.endpoint, head, body, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0) | Err(_)) => self.deaf = true,
                    Poll::Ready(Ok(count)) => {
                        let of_head = count.min(head.len());
                        self.moves += 1;
                        self.head_sent += of_head;
                        self.sent += count - of_head;
                    }
                }
                continue;
            }
            if self.request.is_done() {
                return Poll::Ready(Ok(()));
            }
            let unread = &self.input.filled()[self.read..];
            if !unread.is_empty() {
                self.read += self.request.read(unread).map_err(|_| Trouble::BadRequest)?;
                continue;
            }
            if self.input.is_full() || self.response != Response::Head {
                // No second try with this body.
                self.input.consume(self.read);
                self.forgotten += self.read as u64;
                (self.read, self.sent) = (0, 0);
            }
            match self.input.poll_fill(self.client, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => self.moves += 1,
                Poll::Ready(Ok(0) | Err(_)) if self.request == Body::Tunnel => {
                    // The other direction may go on.
                    let _ = Pin::new(&mut *self.endpoint).poll_shutdown(cx);
                    self.request = Body::Done;
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Trouble::ClientGone)),
            }
        }
    }

    /// Moves the response on until the client has all of it or something must be waited for.
    fn poll_response(
        &mut self,
        draining: &impl Fn() -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>> {
        loop {
            let (head, body) = (&self.reply[self.reply_sent..], &self.answer.filled()[..self.ready]);
            if !head.is_empty() || !body.is_empty() {
                match write(self.client, head, body, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Trouble::ClientGone)),
                    Poll::Ready(Ok(count)) => {
                        let of_head = count.min(head.len());
                        let of_body = count - of_head;
                        self.moves += 1;
                        self.spoke = true;
                        self.reply_sent += of_head;
                        self.ready -= of_body;
                        self.answer.consume(of_body);
                        self.bytes_out += of_body as u64;
                    }
                }
                continue;
            }
            if self.response == Response::Done {
                let flushed = Pin::new(&mut *self.client).poll_flush(cx);
                return flushed.map_err(|_| Trouble::ClientGone);
            }
            if !self.answer.is_empty() && self.understand(draining)? {
                continue;
            }
            if Pin::new(&mut *self.client).poll_flush(cx).map_err(|_| Trouble::ClientGone)?.is_pending() {
                return Poll::Pending;
            }
            match self.answer.poll_fill(self.endpoint, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => self.moves += 1,
                Poll::Ready(Ok(0)) => self.hear_the_end()?,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Trouble::Endpoint(UpstreamFailure::Closed))),
            }
        }
    }

    /// Reads on in what the endpoint sent. False: more of it is needed.
    fn understand(&mut self, draining: &impl Fn() -> bool) -> Result<bool, Trouble> {
        const MALFORMED: Trouble = Trouble::Endpoint(UpstreamFailure::InvalidResponse);
        if self.response == Response::Body {
            let unread = self.answer.filled();
            self.ready = self.framing.read(unread).map_err(|_| MALFORMED)?;
            if self.chunks {
                self.begin_chunk();
            }
            if self.framing.is_done() {
                self.response = Response::Done;
            }
            return Ok(true);
        }
        let mut space = Space::new();
        let head = ResponseHead::read(self.answer.filled(), &mut space, self.asked.is_head)
            .map_err(|_| MALFORMED)?;
        let Some(head) = head else {
            if self.answer.len() >= MAX_HEAD_BYTES {
                return Err(MALFORMED);
            }
            if self.answer.is_full() {
                self.answer.grow();
            }
            return Ok(false);
        };
        let length = head.length;
        self.reply.clear();
        self.reply_sent = 0;
        match head.status {
            101 if !self.asked.upgrades => return Err(MALFORMED),
            101 => {
                (self.status, self.response, self.framing) = (101, Response::Body, Body::Tunnel);
                self.request = Body::Tunnel;
                self.keep_client = false;
                write_response(self.reply, &head, After::Continue, false);
            }
            // Interim: the response proper is yet to come.
            ..200 if self.asked.is_old => {}
            ..200 => write_response(self.reply, &head, After::Continue, false),
            status => {
                self.status = status;
                self.framing = head.body;
                self.response = if head.body.is_done() { Response::Done } else { Response::Body };
                self.chunks = head.body == Body::UntilClose && !self.asked.is_old;
                // An old request says that it is the connection's last.
                self.keep_endpoint = head.keeps_alive && head.body != Body::UntilClose && !self.asked.is_old;
                let has_end = self.chunks || head.body != Body::UntilClose;
                let whole = self.request.is_done() && !self.deaf;
                self.keep_client &= has_end && whole && !draining();
                let after = match (self.keep_client, self.asked.is_old) {
                    (false, _) => After::Close,
                    (true, false) => After::Keep,
                    (true, true) => After::KeepOld,
                };
                write_response(self.reply, &head, after, self.chunks);
            }
        }
        self.answer.consume(length);
        Ok(true)
    }

    /// Puts what is ready into a chunk.
    fn begin_chunk(&mut self) {
        let first = self.bytes_out == 0;
        self.reply.clear();
        self.reply_sent = 0;
        // Writing into memory does not fail.
        let _ = write!(self.reply, "{}{:x}\r\n", if first { "" } else { "\r\n" }, self.ready);
    }

    /// The endpoint said its last.
    fn hear_the_end(&mut self) -> Result<(), Trouble> {
        match self.framing {
            Body::UntilClose | Body::Tunnel if self.response == Response::Body => {
                if self.chunks {
                    self.reply.clear();
                    self.reply_sent = 0;
                    let first = self.bytes_out == 0;
                    self.reply.extend_from_slice(if first { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" });
                }
                self.response = Response::Done;
                Ok(())
            }
            _ => Err(Trouble::Endpoint(UpstreamFailure::Closed)),
        }
    }
}

/// One call for what is there of both.
fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    first: &[u8],
    second: &[u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    match (first.is_empty(), second.is_empty()) {
        (_, true) => stream.poll_write(cx, first),
        (true, false) => stream.poll_write(cx, second),
        (false, false) => stream.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)]),
    }
}
