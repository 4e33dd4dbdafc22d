//! One stream's request to an HTTP/1.1 endpoint, and its response back, both at once.
//!
//! Bytes go on as soon as they came, in either direction and in either order. A side that takes nothing stops the reading of
//! the other, so that an exchange never holds more than a buffer of the endpoint's and a window of the client's.
//!
//! **Cost** of a request without a body whose response fits a buffer: one `send` and one `recv` at the endpoint, three
//! allocations; what the client gets leaves with what other streams have for it.

use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::AsyncWrite as _;

use super::both_ways::BothWays;
use super::client::{Client as _, StreamClient};
use super::head;
use super::patience::Lack;
use crate::metrics::UpstreamFailure;
use crate::policy::Passage;
use crate::proxy::Trouble;
use crate::stream::Stream;
use crate::wire::{Body, Buffer, MAX_HEAD_BYTES, Part, ResponseHead, Space, Trailers, write, write_trailers};

const MALFORMED: Trouble = Trouble::Endpoint(UpstreamFailure::InvalidResponse);
const CLOSED: Trouble = Trouble::Endpoint(UpstreamFailure::Closed);

/// Both directions of one exchange.
pub(super) struct Exchange<'s> {
    endpoint: &'s mut Stream,
    pub(super) client: StreamClient<'s>,
    asked: Asked<'s>,
    request: ToEndpoint,
    response: FromEndpoint,
}

/// What an exchange must know of the request.
#[derive(Clone, Copy)]
pub(super) struct Asked<'s> {
    pub(super) is_head: bool,
    /// The body is put into chunks.
    pub(super) chunks: bool,
    /// What the rule's policies do to the response.
    pub(super) passage: Option<&'s Passage>,
}

/// The request's way.
struct ToEndpoint {
    /// The head, then the framing in front of `piece`.
    front: BytesMut,
    piece: Bytes,
    /// Pieces were sent: framing behind the last one is owed.
    has_chunks: bool,
    /// All of it is in `front` and `piece`.
    is_ended: bool,
    /// The endpoint takes no more. It may have answered before.
    deaf: bool,
    moves: u64,
}

/// The response's way.
struct FromEndpoint {
    answer: Buffer,
    stage: Stage,
    body: Body,
    trailers: Trailers,
    keep_endpoint: bool,
    moves: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    Done,
}

impl<'s> Exchange<'s> {
    pub(super) fn new(
        endpoint: &'s mut Stream,
        head: &[u8],
        client: StreamClient<'s>,
        asked: Asked<'s>,
    ) -> Self {
        let request = ToEndpoint {
            front: BytesMut::from(head),
            piece: Bytes::new(),
            has_chunks: false,
            is_ended: false,
            deaf: false,
            moves: 0,
        };
        let response = FromEndpoint {
            answer: Buffer::default(),
            stage: Stage::Head,
            body: Body::Done,
            trailers: Trailers::default(),
            keep_endpoint: false,
            moves: 0,
        };
        Self { endpoint, client, asked, request, response }
    }

    /// Whether the endpoint's connection can be used again, after an exchange that ended well.
    pub(super) fn keeps_endpoint(&self) -> bool {
        self.response.keep_endpoint && self.request.is_sent()
    }
}

impl BothWays for Exchange<'_> {
    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        self.client.check(cx)
    }

    fn moves(&self) -> u64 {
        self.request.moves + self.response.moves + self.client.moves()
    }

    fn can_repeat(&self) -> bool {
        self.client.can_repeat()
    }

    fn lack(&self) -> Lack {
        let request = &self.request;
        if self.client.waits_for_client() {
            Lack::Window
        } else if request.deaf || request.is_sent() {
            Lack::Response
        } else if request.has_more() {
            Lack::Write
        } else {
            Lack::Body
        }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        let Self { endpoint, client, request, asked, .. } = self;
        if self.response.stage != Stage::Head {
            client.settle();
        }
        while !request.deaf && !request.is_sent() {
            // What came of the body goes on with what is in front of it.
            if request.piece.is_empty() && !request.is_ended {
                match client.poll_piece(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Some(piece)) => request.take(piece?, asked.chunks),
                    Poll::Ready(None) => request.end(asked.chunks, client.trailers()),
                }
            }
            if !request.has_more() {
                break;
            }
            match write(*endpoint, &request.front, &request.piece, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0) | Err(_)) => request.deaf = true,
                Poll::Ready(Ok(count)) => {
                    let of_front = count.min(request.front.len());
                    request.front.advance(of_front);
                    request.piece.advance(count - of_front);
                    request.moves += 1;
                }
            }
        }
        // TLS may hold some of it back.
        if !request.deaf {
            request.deaf = matches!(Pin::new(&mut **endpoint).poll_flush(cx), Poll::Ready(Err(_)));
        }
        Ok(())
    }

    fn poll_response(
        &mut self,
        unwanted: &impl Fn(u16, bool) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>> {
        loop {
            if self.client.poll_send(cx)?.is_pending() {
                return Poll::Pending;
            }
            if self.response.stage == Stage::Done {
                return Poll::Ready(Ok(()));
            }
            if !self.response.answer.is_empty() && self.understand(unwanted)? {
                continue;
            }
            match self.response.answer.poll_fill(self.endpoint, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => self.response.moves += 1,
                Poll::Ready(Ok(0))
                    if self.response.stage == Stage::Body && self.response.body == Body::UntilClose =>
                {
                    self.response.stage = Stage::Done;
                    self.client.end(None);
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(CLOSED)),
            }
        }
    }
}

impl Exchange<'_> {
    /// Reads on in what the endpoint sent. False: more of it is needed.
    fn understand(&mut self, unwanted: &impl Fn(u16, bool) -> bool) -> Result<bool, Trouble> {
        if self.response.stage == Stage::Head {
            return self.understand_head(unwanted);
        }
        let FromEndpoint { answer, body, stage, trailers, .. } = &mut self.response;
        let mut data = BytesMut::with_capacity(answer.len());
        let piece = body.read_parts(answer.filled(), |part| match part {
            Part::Data(bytes) => data.extend_from_slice(bytes),
            Part::Trailers(bytes) => trailers.push(bytes),
        });
        answer.consume(piece.map_err(|_| MALFORMED)?.bytes);
        self.client.push(data.freeze());
        if body.is_done() {
            *stage = Stage::Done;
            self.client.end(trailers.fields().map_err(|_| MALFORMED)?);
            self.response.keep_endpoint &= answer.is_empty();
        }
        Ok(true)
    }

    fn understand_head(&mut self, unwanted: &impl Fn(u16, bool) -> bool) -> Result<bool, Trouble> {
        let can_repeat = self.can_repeat();
        let response = &mut self.response;
        let mut space = Space::new();
        let bytes = response.answer.filled();
        let Some(head) = ResponseHead::read(bytes, &mut space, self.asked.is_head).map_err(|_| MALFORMED)?
        else {
            if response.answer.len() >= MAX_HEAD_BYTES {
                return Err(MALFORMED);
            }
            if response.answer.is_full() {
                response.answer.grow();
            }
            return Ok(false);
        };
        match head.status {
            // Nobody asked for another protocol.
            101 => return Err(MALFORMED),
            // Interim: the response proper is yet to come.
            ..200 => self.client.inform(head::of_http1(&head, bytes, None)?)?,
            status if unwanted(status, can_repeat) => return Err(Trouble::Unwanted { status, can_repeat }),
            _ => {
                let is_all = head.body.is_done();
                self.client.head(head::of_http1(&head, bytes, self.asked.passage)?, is_all)?;
                response.body = head.body;
                response.stage = if is_all { Stage::Done } else { Stage::Body };
                response.keep_endpoint = head.keeps_alive && head.body != Body::UntilClose;
            }
        }
        let length = head.length;
        response.answer.consume(length);
        if response.stage == Stage::Done {
            response.keep_endpoint &= response.answer.is_empty();
        }
        Ok(true)
    }
}

impl ToEndpoint {
    /// Whether something is at hand that the endpoint has not taken.
    fn has_more(&self) -> bool {
        !self.front.is_empty() || !self.piece.is_empty()
    }

    fn is_sent(&self) -> bool {
        self.is_ended && !self.has_more()
    }

    /// Puts a piece of the body behind what is in front of it.
    fn take(&mut self, piece: Bytes, chunks: bool) {
        if chunks && !piece.is_empty() {
            let end_of_last = if self.has_chunks { "\r\n" } else { "" };
            let _ = write!(self.front, "{end_of_last}{:x}\r\n", piece.len()); // writing into memory does not fail
            self.has_chunks = true;
        }
        self.piece = piece;
    }

    /// Trailers are for an endpoint that reads chunks.
    fn end(&mut self, chunks: bool, trailers: Option<&HeaderMap>) {
        self.is_ended = true;
        if chunks {
            self.front.extend_from_slice(if self.has_chunks { b"\r\n0\r\n" } else { b"0\r\n" });
            write_trailers(&mut self.front, trailers);
        }
    }
}
