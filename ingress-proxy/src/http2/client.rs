//! The client's half of an exchange: the request's body as it comes, and what the client is sent, as fast as it takes it.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::body::{Place, RequestBody};
use super::reply::Reply;
use crate::proxy::Trouble;

/// A client, whichever protocol it speaks.
pub(crate) trait Client {
    /// Whether the request has no body.
    fn is_bodiless(&self) -> bool;

    /// The next piece of the request's body; nothing at the end. The piece before was sent.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Trouble>>>;

    /// The body's trailers, when all of it was read.
    fn trailers(&self) -> Option<&HeaderMap>;

    /// The body will not be sent again.
    fn settle(&mut self);

    /// Whether the same request can be sent once more: nothing reached the client, and all of the body is at hand.
    fn can_repeat(&self) -> bool;

    /// Hears whether the client has given up.
    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble>;

    /// A head that is not the last.
    fn inform(&mut self, response: Response<()>) -> Result<(), Trouble>;

    /// The head. `is_all`: nothing follows.
    fn head(&mut self, response: Response<()>, is_all: bool) -> Result<(), Trouble>;

    /// More of the response's body; what was there before was taken.
    fn push(&mut self, data: Bytes);

    /// The response ends behind what was pushed.
    fn end(&mut self, trailers: Option<HeaderMap>);

    /// Sends what is there.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>>;

    /// Whether the client is to take bytes.
    fn waits_for_client(&self) -> bool;

    /// Counts sends that moved something.
    fn moves(&self) -> u64;
}

/// A client on a stream of its own.
pub(super) struct StreamClient<'s> {
    body: &'s mut RequestBody,
    /// How far this attempt has got with the body.
    place: Place,
    pub(super) reply: Reply<'s>,
}

impl<'s> StreamClient<'s> {
    pub(super) fn new(body: &'s mut RequestBody, reply: Reply<'s>) -> Self {
        Self { body, place: Place::default(), reply }
    }
}

impl Client for StreamClient<'_> {
    fn is_bodiless(&self) -> bool {
        self.body.is_read() && self.body.bytes == 0 && self.body.trailers().is_none()
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Trouble>>> {
        self.body.poll_piece(&mut self.place, cx)
    }

    fn trailers(&self) -> Option<&HeaderMap> {
        self.body.trailers()
    }

    fn settle(&mut self) {
        if !self.body.is_read() {
            self.body.settle();
        }
    }

    fn can_repeat(&self) -> bool {
        self.reply.is_unheard() && self.body.is_at_hand()
    }

    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        self.reply.check(cx)
    }

    fn inform(&mut self, response: Response<()>) -> Result<(), Trouble> {
        self.reply.inform(response)
    }

    fn head(&mut self, response: Response<()>, is_all: bool) -> Result<(), Trouble> {
        self.reply.head(response, is_all)
    }

    fn push(&mut self, data: Bytes) {
        self.reply.push(data);
    }

    fn end(&mut self, trailers: Option<HeaderMap>) {
        self.reply.end(trailers);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        self.reply.poll_send(cx)
    }

    fn waits_for_client(&self) -> bool {
        self.reply.waits_for_client()
    }

    fn moves(&self) -> u64 {
        self.reply.moves
    }
}
