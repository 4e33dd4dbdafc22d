//! The response's way to the client.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite as _;

use super::exchange::{Asked, End};
use crate::metrics::UpstreamFailure;
use crate::policy::Passage;
use crate::proxy::Trouble;
use crate::stream::Stream;
use crate::wire::{After, Body, Buffer, MAX_HEAD_BYTES, ResponseHead, Space, write, write_response};

const MALFORMED: Trouble = Trouble::Endpoint(UpstreamFailure::InvalidResponse);
const CLOSED: Trouble = Trouble::Endpoint(UpstreamFailure::Closed);

/// Bytes of a body that are copied behind its head: for so few that costs less than a call with two pieces.
const SMALL: usize = 1_024;

/// What a response has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    Done,
}

/// A response on its way.
pub(super) struct ToClient<'c> {
    asked: Asked,
    /// What the rule's policies do to the response.
    passage: Option<&'c Passage>,
    /// What was read of the endpoint.
    answer: Buffer,
    stage: Stage,
    body: Body,
    /// The body has no length and is chunked here.
    chunks: bool,
    /// The head for the client, or what goes in front of the next bytes of the body.
    reply: &'c mut Vec<u8>,
    reply_sent: usize,
    /// Bytes at the front of `answer` that go to the client.
    ready: usize,
    /// What becomes of the connections, as far as the response says.
    end: End,
    /// Whether the client was sent anything.
    spoke: bool,
    /// The status, 0 before there is one.
    pub(super) status: u16,
    /// Bytes of the body that the client got.
    pub(super) bytes: u64,
    /// Reads and writes that moved something.
    pub(super) moves: u64,
}

impl<'c> ToClient<'c> {
    pub(super) fn new(reply: &'c mut Vec<u8>, asked: Asked, passage: Option<&'c Passage>) -> Self {
        reply.clear();
        Self {
            asked,
            passage,
            answer: Buffer::default(),
            stage: Stage::Head,
            body: Body::Done,
            chunks: false,
            reply,
            reply_sent: 0,
            ready: 0,
            end: End { keep_client: asked.keep, keep_endpoint: false },
            spoke: false,
            status: 0,
            bytes: 0,
            moves: 0,
        }
    }

    /// Whether the head has come.
    pub(super) fn has_begun(&self) -> bool {
        self.stage != Stage::Head
    }

    /// Whether it is a change to another protocol.
    pub(super) fn is_tunnel(&self) -> bool {
        self.body == Body::Tunnel
    }

    /// Whether nothing has reached the client.
    pub(super) fn is_unheard(&self) -> bool {
        !self.spoke
    }

    /// Whether the client is to take bytes.
    pub(super) fn waits_for_client(&self) -> bool {
        self.reply_sent < self.reply.len() || self.ready > 0
    }

    /// What becomes of the connections behind it.
    pub(super) fn end(&self) -> End {
        End { keep_endpoint: self.end.keep_endpoint && self.answer.is_empty(), ..self.end }
    }

    /// Moves it on until the client has all of it or something must be waited for. When the head is there, `keep_client` is
    /// asked whether the client's connection may be kept, and `unwanted`, of its status and of whether nothing was sent yet,
    /// whether the client is not to get it.
    pub(super) fn poll(
        &mut self,
        client: &mut Stream,
        endpoint: &mut Stream,
        keep_client: &impl Fn() -> bool,
        unwanted: &impl Fn(u16, bool) -> Option<Trouble>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>> {
        loop {
            let (head, body) = (&self.reply[self.reply_sent..], &self.answer.filled()[..self.ready]);
            if !head.is_empty() || !body.is_empty() {
                match write(client, head, body, cx) {
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
                        self.bytes += of_body as u64;
                    }
                }
                continue;
            }
            if self.stage == Stage::Done {
                return Pin::new(client).poll_flush(cx).map_err(|_| Trouble::ClientGone);
            }
            if !self.answer.is_empty() && self.understand(keep_client, unwanted)? {
                continue;
            }
            if Pin::new(&mut *client).poll_flush(cx).map_err(|_| Trouble::ClientGone)?.is_pending() {
                return Poll::Pending;
            }
            match self.answer.poll_fill(endpoint, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => self.moves += 1,
                Poll::Ready(Ok(0)) => self.hear_the_end()?,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(CLOSED)),
            }
        }
    }

    /// Reads on in what the endpoint sent. False: more of it is needed.
    fn understand(
        &mut self,
        keep_client: &impl Fn() -> bool,
        unwanted: &impl Fn(u16, bool) -> Option<Trouble>,
    ) -> Result<bool, Trouble> {
        if self.stage == Stage::Head && !self.understand_head(keep_client, unwanted)? {
            return Ok(false);
        }
        // What came of the body with the head goes on with it.
        if self.stage == Stage::Body && !self.answer.is_empty() {
            self.ready = self.body.read(self.answer.filled()).map_err(|_| MALFORMED)?.bytes;
            if self.chunks {
                self.begin_chunk();
            }
            if self.body.is_done() {
                self.stage = Stage::Done;
            }
            if self.reply_sent < self.reply.len() && self.ready <= SMALL {
                self.reply.extend_from_slice(&self.answer.filled()[..self.ready]);
                self.answer.consume(self.ready);
                self.bytes += self.ready as u64;
                self.ready = 0;
            }
        }
        Ok(true)
    }

    fn understand_head(
        &mut self,
        keep_client: &impl Fn() -> bool,
        unwanted: &impl Fn(u16, bool) -> Option<Trouble>,
    ) -> Result<bool, Trouble> {
        let mut space = Space::new();
        let head = ResponseHead::read(self.answer.filled(), &mut space, self.asked.is_head);
        let Some(head) = head.map_err(|_| MALFORMED)? else {
            if self.answer.len() >= MAX_HEAD_BYTES {
                return Err(MALFORMED);
            }
            if self.answer.is_full() {
                self.answer.grow();
            }
            return Ok(false);
        };
        self.reply.clear();
        self.reply_sent = 0;
        match head.status {
            101 if !self.asked.upgrades => return Err(MALFORMED),
            101 => {
                if let Some(trouble) = unwanted(101, false) {
                    return Err(trouble);
                }
                (self.status, self.stage, self.body) = (101, Stage::Body, Body::Tunnel);
                self.end.keep_client = false;
                write_response(self.reply, &head, After::Upgrade, false, self.passage);
            }
            // Interim: the response proper is yet to come.
            ..200 if self.asked.is_old() => {}
            ..200 => write_response(self.reply, &head, After::Nothing, false, None),
            status => {
                if let Some(trouble) = unwanted(status, !self.spoke) {
                    return Err(trouble);
                }
                self.status = status;
                self.body = head.body;
                self.stage = if head.body.is_done() { Stage::Done } else { Stage::Body };
                let has_end = head.body != Body::UntilClose;
                self.chunks = !has_end && !self.asked.is_old();
                // An old request says that it is the connection's last.
                self.end.keep_endpoint = head.keeps_alive && has_end && !self.asked.is_old();
                self.end.keep_client &= (has_end || self.chunks) && keep_client();
                let after = match (self.end.keep_client, self.asked.is_old()) {
                    (false, _) => After::Close,
                    (true, false) => After::Nothing,
                    (true, true) => After::KeepAlive,
                };
                write_response(self.reply, &head, after, self.chunks, self.passage);
            }
        }
        let length = head.length;
        self.answer.consume(length);
        Ok(true)
    }

    /// Puts what is ready into a chunk.
    fn begin_chunk(&mut self) {
        // The head may be there still.
        self.reply.drain(..self.reply_sent);
        self.reply_sent = 0;
        let end_of_last = if self.bytes == 0 { "" } else { "\r\n" };
        let _ = write!(self.reply, "{end_of_last}{:x}\r\n", self.ready); // writing into memory does not fail
    }

    /// The endpoint said its last.
    fn hear_the_end(&mut self) -> Result<(), Trouble> {
        if self.stage != Stage::Body || !matches!(self.body, Body::UntilClose | Body::Tunnel) {
            return Err(CLOSED);
        }
        if self.chunks {
            self.reply.clear();
            self.reply_sent = 0;
            let end: &[u8] = if self.bytes == 0 { b"0\r\n\r\n" } else { b"\r\n0\r\n\r\n" };
            self.reply.extend_from_slice(end);
        }
        self.stage = Stage::Done;
        Ok(())
    }
}
