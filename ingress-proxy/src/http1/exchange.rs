//! One request to one endpoint, and its response back, both at once.
//!
//! Bytes go on as soon as they were read, in either direction and in either order: an endpoint may answer before it has
//! the whole body, and a client may wait for `100 Continue`. A side that takes nothing stops the reading of the other, so
//! that an exchange never holds more than one buffer of each.
//!
//! **Cost** of a request without a body whose response fits a buffer: one `send` and one `recv` at the endpoint, one
//! `send` at the client, no allocation.

use std::task::{Context, Poll};
use std::time::Duration;

use super::to_client::ToClient;
use super::to_endpoint::ToEndpoint;
use crate::clock;
use crate::config::Timeouts;
use crate::metrics::UpstreamFailure;
use crate::policy::Passage;
use crate::proxy::Trouble;
use crate::stream::Stream;
use crate::wire::{Body, Buffer, Deadline, Version};

/// What an exchange must know of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) body: Body,
    pub(super) is_head: bool,
    pub(super) upgrades: bool,
    /// Whether the client's connection may be used again.
    pub(super) keep: bool,
}

impl Asked {
    pub(super) fn is_old(self) -> bool {
        self.version == Version::Old
    }
}

/// What becomes of the connections when an exchange has ended well.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Whether the client's can be used again.
    pub(super) keep_client: bool,
    /// Whether the endpoint's can.
    pub(super) keep_endpoint: bool,
}

/// Both directions of one exchange.
pub(super) struct Exchange<'c> {
    client: &'c mut Stream,
    endpoint: &'c mut Stream,
    timeouts: &'c Timeouts,
    pub(super) request: ToEndpoint<'c>,
    pub(super) response: ToClient<'c>,
    /// Both sides have changed to another protocol.
    is_tunnel: bool,
    /// How often anything had moved when the deadline was set.
    moves: Option<u64>,
}

impl<'c> Exchange<'c> {
    /// Of a request with this head, whose body begins in `input`. `reply` lends its memory to the response's head, `passage`
    /// says what the rule's policies ask for.
    pub(super) fn new(
        client: &'c mut Stream,
        endpoint: &'c mut Stream,
        input: &'c mut Buffer,
        (head, reply): (&'c [u8], &'c mut Vec<u8>),
        asked: Asked,
        passage: Option<&'c Passage>,
        timeouts: &'c Timeouts,
    ) -> Self {
        let request = ToEndpoint::new(head, input, asked.body, passage.and_then(Passage::body_limit));
        let response = ToClient::new(reply, asked, passage);
        Self { client, endpoint, timeouts, request, response, is_tunnel: false, moves: None }
    }

    /// Whether the same request can be sent once more: nothing reached the client, and all of the body is at hand.
    pub(super) fn can_repeat(&self) -> bool {
        self.response.is_unheard() && self.request.is_at_hand()
    }

    /// To the end of the response. `draining` decides whether the client is told that its connection closes, `unwanted` of a
    /// status, and of whether the same request can be sent once more, whether the response is not for the client.
    pub(super) async fn run(
        &mut self,
        deadline: &mut Deadline,
        draining: impl Fn() -> bool,
        unwanted: impl Fn(u16, bool) -> bool,
    ) -> Result<End, Trouble> {
        std::future::poll_fn(|cx| self.poll(deadline, &draining, &unwanted, cx)).await?;
        let (end, is_read) = (self.response.end(), self.request.is_read());
        let end = End {
            keep_client: end.keep_client && is_read,
            keep_endpoint: end.keep_endpoint && self.request.is_sent(),
        };
        self.request.finish();
        Ok(end)
    }

    fn poll(
        &mut self,
        deadline: &mut Deadline,
        draining: &impl Fn() -> bool,
        unwanted: &impl Fn(u16, bool) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>> {
        let Self { client, endpoint, request, response, is_tunnel, .. } = self;
        loop {
            let _ = request.poll(client, endpoint, response.has_begun(), cx)?;
            let keep_client = || request.is_read() && !draining();
            let unwanted = |status, is_unheard| {
                let can_repeat = is_unheard && request.is_at_hand();
                unwanted(status, can_repeat).then_some(Trouble::Unwanted { status, can_repeat })
            };
            if response.poll(client, endpoint, &keep_client, &unwanted, cx)?.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if *is_tunnel || !response.is_tunnel() {
                break;
            }
            // The change was just agreed on: it opens the other direction again.
            *is_tunnel = true;
            request.open_tunnel();
        }
        let moves = Some(request.moves + response.moves);
        if moves != self.moves {
            self.moves = moves;
            deadline.set(clock::now(), self.patience().0);
        }
        if deadline.has_passed(cx) {
            return Poll::Ready(Err(self.patience().1));
        }
        Poll::Pending
    }

    /// How long is waited for what is missing now, and what it is if it does not come.
    fn patience(&self) -> (Duration, Trouble) {
        let timeouts = self.timeouts;
        if self.response.waits_for_client() {
            (timeouts.client, Trouble::ClientGone)
        } else if self.request.waits_for_endpoint() {
            (timeouts.write, Trouble::Endpoint(UpstreamFailure::WriteTimeout))
        } else if self.request.waits_for_client() {
            (timeouts.client, Trouble::SlowClient)
        } else {
            (timeouts.read, Trouble::Endpoint(UpstreamFailure::ReadTimeout))
        }
    }
}
