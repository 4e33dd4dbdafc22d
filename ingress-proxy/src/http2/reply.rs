//! The client's half of an exchange: what it is sent, as fast as it takes it.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};

use crate::proxy::Trouble;

/// A response on its way to the client.
pub(super) struct Reply<'s> {
    respond: &'s mut SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
    /// Data that the client has not taken.
    ready: Bytes,
    /// What comes behind it.
    end: Option<End>,
    is_over: bool,
    /// Whether the client was sent anything.
    spoke: bool,
    /// The status, 0 before there is one.
    pub(super) status: u16,
    /// Bytes of the body that were sent.
    pub(super) bytes: u64,
    /// Sends that moved something.
    pub(super) moves: u64,
}

/// The end of a response.
enum End {
    Plain,
    Trailers(HeaderMap),
}

impl<'s> Reply<'s> {
    pub(super) fn new(respond: &'s mut SendResponse<Bytes>) -> Self {
        Self {
            respond,
            stream: None,
            ready: Bytes::new(),
            end: None,
            is_over: false,
            spoke: false,
            status: 0,
            bytes: 0,
            moves: 0,
        }
    }

    /// Whether nothing has reached the client.
    pub(super) fn is_unheard(&self) -> bool {
        !self.spoke
    }

    /// Whether the client is to take bytes.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A head that is not the last.
    pub(super) fn inform(&mut self, response: Response<()>) -> Result<(), Trouble> {
        self.spoke = true;
        self.respond.send_informational(response).map_err(|_| Trouble::ClientGone)
    }

    /// The head. `is_all`: nothing follows.
    pub(super) fn head(&mut self, response: Response<()>, is_all: bool) -> Result<(), Trouble> {
        self.status = response.status().as_u16();
        self.spoke = true;
        self.is_over = is_all;
        self.moves += 1;
        let stream = self.respond.send_response(response, is_all).map_err(|_| Trouble::ClientGone)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// More of the body; what was there before was taken.
    pub(super) fn push(&mut self, data: Bytes) {
        self.ready = data;
    }

    /// The body ends behind what was pushed.
    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) {
        self.end = Some(trailers.map_or(End::Plain, End::Trailers));
    }

    /// The exchange came to nothing. A response that has begun cannot be taken back: the client sees it break off. Returns the
    /// status that it was told, 0 if none.
    pub(super) fn break_off(&mut self) -> u16 {
        if let Some(stream) = &mut self.stream {
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        self.status
    }

    /// Hears whether the client has given up.
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        let reset = match &mut self.stream {
            Some(stream) => stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        if reset.is_ready() && !self.is_over { Err(Trouble::ClientGone) } else { Ok(()) }
    }

    /// Sends what was pushed, and the end if it is known.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        const GONE: Trouble = Trouble::ClientGone;
        let Some(stream) = self.stream.as_mut().filter(|_| !self.is_over) else {
            return Poll::Ready(Ok(()));
        };
        while !self.ready.is_empty() {
            stream.reserve_capacity(self.ready.len());
            while stream.capacity() == 0 {
                ready!(stream.poll_capacity(cx)).ok_or(GONE)?.map_err(|_| GONE)?;
            }
            let count = self.ready.len().min(stream.capacity());
            let data = self.ready.split_to(count);
            self.is_over = self.ready.is_empty() && matches!(self.end, Some(End::Plain));
            stream.send_data(data, self.is_over).map_err(|_| GONE)?;
            self.bytes += count as u64;
            self.moves += 1;
        }
        if self.is_over {
            return Poll::Ready(Ok(()));
        }
        match self.end.take() {
            Some(End::Plain) => stream.send_data(Bytes::new(), true).map_err(|_| GONE)?,
            Some(End::Trailers(trailers)) => stream.send_trailers(trailers).map_err(|_| GONE)?,
            None => return Poll::Ready(Ok(())),
        }
        self.is_over = true;
        Poll::Ready(Ok(()))
    }
}
