//! A client of HTTP/1.1, as an exchange with an HTTP/2 endpoint sees it.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use tokio::io::AsyncWrite as _;

use super::exchange::Asked;
use crate::ending::Draining;
use crate::http2::Client;
use crate::proxy::Trouble;
use crate::stream::Stream;
use crate::subrequest::Tee;
use crate::wire::{Body, Buffer, Part, Trailers, write, write_trailers};

/// One request's client.
pub(super) struct ConnectionClient<'c> {
    stream: &'c mut Stream,
    draining: &'c Draining,
    asked: Asked,
    request: Incoming<'c>,
    response: Outgoing<'c>,
}

/// The request's body on its way in.
struct Incoming<'c> {
    /// What was read of the client: the body begins at its front, and stays there as long as it can be sent once more.
    input: &'c mut Buffer,
    body: Body,
    /// The client waits with its body until it is asked for it.
    expects: &'c mut bool,
    /// Bytes at the front of `input` that belong to the body and were passed on.
    read: usize,
    /// Bytes of the body that are not in `input` any more.
    forgotten: u64,
    /// Data of the body that may still come.
    room: u64,
    is_settled: bool,
    trailers: Trailers,
    fields: Option<HeaderMap>,
    /// Where the body is copied to, and bytes of data that were read of it.
    tee: Option<&'c mut Tee>,
    data: u64,
}

/// The response on its way out.
struct Outgoing<'c> {
    /// A head, and the framing in front of `data`.
    front: &'c mut Vec<u8>,
    front_sent: usize,
    data: Bytes,
    framing: Framing,
    /// The end comes behind `data`, with these trailers.
    ends: bool,
    trailers: Option<HeaderMap>,
    keep: bool,
    status: u16,
    /// Bytes of the body that the client got.
    bytes: u64,
    moves: u64,
}

/// How the client finds the end of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// It has no body, whatever the endpoint sends.
    None,
    /// By its length, or the connection's end.
    Plain,
    Chunks {
        /// There was one before.
        has_some: bool,
    },
}

impl<'c> ConnectionClient<'c> {
    /// Of a request whose body begins in `input` and has at most `limit` bytes of data. `reply` lends its memory to the
    /// response's head.
    pub(super) fn new(
        stream: &'c mut Stream,
        (input, expects): (&'c mut Buffer, &'c mut bool),
        reply: &'c mut Vec<u8>,
        asked: Asked,
        limit: Option<u64>,
        draining: &'c Draining,
    ) -> Self {
        reply.clear();
        let request = Incoming {
            input,
            body: asked.body,
            expects,
            read: 0,
            forgotten: 0,
            room: limit.unwrap_or(u64::MAX),
            is_settled: false,
            trailers: Trailers::default(),
            fields: None,
            tee: None,
            data: 0,
        };
        let response = Outgoing {
            front: reply,
            front_sent: 0,
            data: Bytes::new(),
            framing: Framing::None,
            ends: false,
            trailers: None,
            keep: false,
            status: 0,
            bytes: 0,
            moves: 0,
        };
        Self { stream, draining, asked, request, response }
    }

    /// The body is for somebody else, too.
    pub(super) fn copy_to(&mut self, tee: Option<&'c mut Tee>) {
        self.request.tee = tee;
    }

    /// The status that the client was told, 0 before there is one.
    pub(super) fn status(&self) -> u16 {
        self.response.status
    }

    /// Bytes of both bodies.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.request.forgotten + self.request.read as u64, self.response.bytes)
    }

    /// The exchange ended well. Returns whether the connection can be used again.
    pub(super) fn finish(mut self) -> bool {
        let keep = self.response.keep && self.request.body.is_done();
        self.request.forget();
        keep
    }
}

impl Client for ConnectionClient<'_> {
    fn is_bodiless(&self) -> bool {
        self.asked.body.is_done()
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Trouble>>> {
        let Self { request, response, stream, .. } = self;
        while !request.body.is_done() {
            if let Some(piece) = request.piece().transpose() {
                return Poll::Ready(Some(piece));
            }
            if request.body.is_done() {
                break;
            }
            // An endpoint of HTTP/2 need not ask for a body that waits.
            if std::mem::take(request.expects) && response.status == 0 {
                response.front.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            if request.input.is_full() || request.is_settled {
                request.forget();
            }
            match ready!(request.input.poll_fill(*stream, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Trouble::ClientGone))),
            }
        }
        if request.fields.is_none() {
            match request.trailers.fields() {
                Ok(fields) => request.fields = fields,
                Err(_) => return Poll::Ready(Some(Err(Trouble::BadRequest))),
            }
        }
        Poll::Ready(None)
    }

    fn trailers(&self) -> Option<&HeaderMap> {
        self.request.fields.as_ref()
    }

    fn settle(&mut self) {
        self.request.is_settled = true;
    }

    fn can_repeat(&self) -> bool {
        self.response.status == 0 && self.request.forgotten == 0
    }

    /// Nothing is read of a client that has sent its request, so a client that is gone is noticed when it is written to.
    fn check(&mut self, _: &mut Context<'_>) -> Result<(), Trouble> {
        Ok(())
    }

    fn inform(&mut self, response: Response<()>) -> Result<(), Trouble> {
        // The client was asked for its body already, if it waited with it.
        if !self.asked.is_old() && response.status() != StatusCode::CONTINUE {
            self.response.write_head(&response);
            self.response.front.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    fn head(&mut self, response: Response<()>, is_all: bool) -> Result<(), Trouble> {
        let status = response.status();
        let has_length = response.headers().contains_key(header::CONTENT_LENGTH);
        let has_none = self.asked.is_head || matches!(status.as_u16(), 204 | 304);
        let out = &mut self.response;
        out.status = status.as_u16();
        out.keep = self.asked.keep && self.request.body.is_done() && !self.draining.is_on();
        out.framing = match (has_length, self.asked.is_old()) {
            _ if has_none => Framing::None,
            (true, _) => Framing::Plain,
            _ if is_all => Framing::Plain,
            (false, false) => Framing::Chunks { has_some: false },
            (false, true) => {
                out.keep = false;
                Framing::Plain
            }
        };
        out.write_head(&response);
        if is_all && !has_none && !has_length {
            out.front.extend_from_slice(b"content-length: 0\r\n");
        }
        if matches!(out.framing, Framing::Chunks { .. }) {
            out.front.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.front.extend_from_slice(match (out.keep, self.asked.is_old()) {
            (false, _) => b"connection: close\r\n\r\n",
            (true, true) => b"connection: keep-alive\r\n\r\n",
            (true, false) => b"\r\n",
        });
        Ok(())
    }

    fn push(&mut self, data: Bytes) {
        let out = &mut self.response;
        match &mut out.framing {
            Framing::None => return,
            Framing::Plain => {}
            Framing::Chunks { .. } if data.is_empty() => {}
            Framing::Chunks { has_some } => {
                let end_of_last = if std::mem::replace(has_some, true) { "\r\n" } else { "" };
                let _ = write!(out.front, "{end_of_last}{:x}\r\n", data.len()); // writing into memory does not fail
            }
        }
        out.data = data;
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        (self.response.ends, self.response.trailers) = (true, trailers);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        const GONE: Trouble = Trouble::ClientGone;
        let Self { response: out, stream, .. } = self;
        loop {
            let front = &out.front[out.front_sent..];
            if front.is_empty() && out.data.is_empty() {
                out.front.clear();
                out.front_sent = 0;
                if !std::mem::take(&mut out.ends) {
                    return Pin::new(&mut **stream).poll_flush(cx).map_err(|_| GONE);
                }
                out.write_end();
                continue;
            }
            match ready!(write(*stream, front, &out.data, cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(GONE)),
                Ok(count) => {
                    let of_front = count.min(front.len());
                    out.front_sent += of_front;
                    out.data.advance(count - of_front);
                    out.bytes += (count - of_front) as u64;
                    out.moves += 1;
                }
            }
        }
    }

    fn waits_for_client(&self) -> bool {
        self.response.front_sent < self.response.front.len() || !self.response.data.is_empty()
    }

    fn moves(&self) -> u64 {
        self.response.moves
    }
}

impl Incoming<'_> {
    /// What is at hand of the body's data.
    fn piece(&mut self) -> Result<Option<Bytes>, Trouble> {
        let unread = &self.input.filled()[self.read..];
        if unread.is_empty() {
            return Ok(None);
        }
        let mut data = BytesMut::with_capacity(unread.len());
        let trailers = &mut self.trailers;
        let piece = self.body.read_parts(unread, |part| match part {
            Part::Data(bytes) => data.extend_from_slice(bytes),
            Part::Trailers(bytes) => trailers.push(bytes),
        });
        let piece = piece.map_err(|_| Trouble::BadRequest)?;
        self.room = self.room.checked_sub(piece.data as u64).ok_or(Trouble::BodyTooLarge)?;
        self.read += piece.bytes;
        if let Some(tee) = &mut self.tee {
            tee.take(self.data, &data);
            self.data += data.len() as u64;
            if self.body.is_done() {
                tee.end();
            }
        }
        Ok((!data.is_empty()).then(|| data.freeze()))
    }

    fn forget(&mut self) {
        self.input.consume(self.read);
        self.forgotten += self.read as u64;
        self.read = 0;
    }
}

impl Outgoing<'_> {
    /// A response's first line and its fields.
    fn write_head(&mut self, response: &Response<()>) {
        let status = response.status();
        // Writing into memory does not fail.
        let _ = write!(
            self.front,
            "HTTP/1.1 {} {}\r\n",
            status.as_u16(),
            status.canonical_reason().unwrap_or("")
        );
        for (name, value) in response.headers() {
            self.front.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
    }

    /// The last chunk, if there are chunks, with the trailers behind it.
    fn write_end(&mut self) {
        let Framing::Chunks { has_some } = self.framing else { return };
        self.front.extend_from_slice(if has_some { b"\r\n0\r\n" } else { b"0\r\n" });
        write_trailers(self.front, self.trailers.as_ref());
    }
}
