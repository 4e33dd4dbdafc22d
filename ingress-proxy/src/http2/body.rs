//! A request's body as it comes on its stream, maybe for more than one endpoint.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;

use crate::proxy::Trouble;
use crate::subrequest::Tee;

/// Bytes of a body that are kept so that it can be sent once more; a longer one goes to one endpoint only.
const REPEATABLE: usize = 64 * 1024;

/// A body on its way in.
pub(super) struct RequestBody {
    stream: RecvStream,
    /// All of it was read.
    is_read: bool,
    /// What was read so far; empty when it is too long to be sent again.
    kept: Vec<Bytes>,
    is_at_hand: bool,
    /// Data that may still come.
    room: u64,
    trailers: Option<HeaderMap>,
    /// Where it is copied to.
    tee: Option<Tee>,
    /// Bytes that were read.
    pub(super) bytes: u64,
}

/// How far one attempt has got with a body.
#[derive(Debug, Default)]
pub(super) struct Place(usize);

impl RequestBody {
    pub(super) fn new(stream: RecvStream) -> Self {
        let is_read = stream.is_end_stream();
        Self {
            stream,
            is_read,
            kept: Vec::new(),
            is_at_hand: true,
            room: u64::MAX,
            trailers: None,
            tee: None,
            bytes: 0,
        }
    }

    /// It is for somebody else, too.
    pub(super) fn copy_to(&mut self, tee: Option<Tee>) {
        self.tee = tee;
    }

    /// At most so many bytes may come.
    pub(super) fn limit(&mut self, limit: Option<u64>) {
        self.room = limit.unwrap_or(u64::MAX);
    }

    /// Whether all of it was read.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// Whether all that was read of it can be sent once more.
    pub(super) fn is_at_hand(&self) -> bool {
        self.is_at_hand
    }

    /// It will not be sent again.
    pub(super) fn settle(&mut self) {
        self.is_at_hand = false;
        self.kept = Vec::new();
    }

    /// Its trailers, when all of it was read.
    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// The next piece for an attempt that is at `place`; nothing at the end.
    ///
    /// The client may send as much again as soon as it is taken. Whoever takes a piece has sent the one before, so that no
    /// more than a window is ever held.
    pub(super) fn poll_piece(
        &mut self,
        place: &mut Place,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Trouble>>> {
        if let Some(piece) = self.kept.get(place.0) {
            place.0 += 1;
            return Poll::Ready(Some(Ok(piece.clone())));
        }
        if self.is_read {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(piece)) => {
                if self.stream.flow_control().release_capacity(piece.len()).is_err() {
                    return Poll::Ready(Some(Err(Trouble::ClientGone)));
                }
                self.bytes += piece.len() as u64;
                let Some(room) = self.room.checked_sub(piece.len() as u64) else {
                    return Poll::Ready(Some(Err(Trouble::BodyTooLarge)));
                };
                self.room = room;
                if let Some(tee) = &mut self.tee {
                    tee.push(piece.clone());
                }
                if self.bytes > REPEATABLE as u64 {
                    self.settle();
                }
                if self.is_at_hand {
                    self.kept.push(piece.clone());
                    place.0 += 1;
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Some(Err(_)) => Poll::Ready(Some(Err(Trouble::ClientGone))),
            None => match ready!(self.stream.poll_trailers(cx)) {
                Ok(trailers) => {
                    self.trailers = trailers;
                    self.is_read = true;
                    if let Some(tee) = &mut self.tee {
                        tee.end();
                    }
                    Poll::Ready(None)
                }
                Err(_) => Poll::Ready(Some(Err(Trouble::ClientGone))),
            },
        }
    }
}
