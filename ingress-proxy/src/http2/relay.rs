//! A request to an HTTP/2 endpoint, and its response back, both at once: gRPC goes this way, with its trailers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;

use super::both_ways::BothWays;
use super::client::Client;
use super::head;
use super::patience::Lack;
use crate::metrics::UpstreamFailure;
use crate::policy::Passage;
use crate::proxy::Trouble;

const CLOSED: Trouble = Trouble::Endpoint(UpstreamFailure::Closed);

/// Both directions of one exchange.
pub(crate) struct Relay<'s, C> {
    pub(crate) client: C,
    passage: Option<&'s Passage>,
    request: ToEndpoint,
    response: FromEndpoint,
}

/// The request's way.
struct ToEndpoint {
    stream: SendStream<Bytes>,
    piece: Bytes,
    is_sent: bool,
    /// The endpoint takes no more. It may have answered before.
    deaf: bool,
    moves: u64,
}

/// The response's way.
struct FromEndpoint {
    stage: Stage,
    moves: u64,
}

enum Stage {
    Head(ResponseFuture),
    Body(RecvStream),
    Done,
}

impl<'s, C: Client> Relay<'s, C> {
    /// Opens a stream on a connection that is [ready](super::endpoint::Taken::ready) for one.
    pub(crate) fn open(
        sender: &mut SendRequest<Bytes>,
        request: Request<()>,
        client: C,
        passage: Option<&'s Passage>,
    ) -> Result<Self, UpstreamFailure> {
        let is_all = client.is_bodiless();
        let opened = sender.send_request(request, is_all);
        let (response, stream) = opened.map_err(|_| UpstreamFailure::Closed)?;
        let request = ToEndpoint { stream, piece: Bytes::new(), is_sent: is_all, deaf: false, moves: 0 };
        let response = FromEndpoint { stage: Stage::Head(response), moves: 0 };
        Ok(Self { client, passage, request, response })
    }
}

impl<C: Client> BothWays for Relay<'_, C> {
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
        } else if request.deaf || request.is_sent {
            Lack::Response
        } else if !request.piece.is_empty() {
            Lack::Write
        } else {
            Lack::Body
        }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        let Self { client, request, response, .. } = self;
        if !matches!(response.stage, Stage::Head(_)) {
            client.settle();
        }
        while !request.deaf && !request.is_sent {
            if request.poll_piece(cx).is_pending() || request.deaf {
                return Ok(());
            }
            match client.poll_piece(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(piece)) => request.piece = piece?,
                Poll::Ready(None) => {
                    let ended = match client.trailers() {
                        Some(trailers) => request.stream.send_trailers(trailers.clone()),
                        None => request.stream.send_data(Bytes::new(), true),
                    };
                    (request.is_sent, request.deaf) = (ended.is_ok(), ended.is_err());
                }
            }
        }
        Ok(())
    }

    fn poll_response(
        &mut self,
        unwanted: &impl Fn(u16, bool) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>> {
        loop {
            ready!(self.client.poll_send(cx))?;
            let can_repeat = self.can_repeat();
            match &mut self.response.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Head(response) => {
                    while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                        let (parts, ()) = interim.map_err(|_| CLOSED)?.into_parts();
                        self.client.inform(head::of_http2(parts.status, parts.headers, None))?;
                    }
                    let (parts, stream) =
                        ready!(Pin::new(response).poll(cx)).map_err(|_| CLOSED)?.into_parts();
                    let status = parts.status.as_u16();
                    if unwanted(status, can_repeat) {
                        return Poll::Ready(Err(Trouble::Unwanted { status, can_repeat }));
                    }
                    let is_all = stream.is_end_stream();
                    self.client.head(head::of_http2(parts.status, parts.headers, self.passage), is_all)?;
                    self.response.stage = if is_all { Stage::Done } else { Stage::Body(stream) };
                }
                Stage::Body(stream) => {
                    if let Some(data) = ready!(stream.poll_data(cx)) {
                        let data = data.map_err(|_| CLOSED)?;
                        // What came before was taken by the client, so it is the client's pace that the endpoint sees.
                        stream.flow_control().release_capacity(data.len()).map_err(|_| CLOSED)?;
                        self.client.push(data);
                    } else {
                        let trailers = ready!(stream.poll_trailers(cx)).map_err(|_| CLOSED)?;
                        self.client.end(trailers);
                        self.response.stage = Stage::Done;
                    }
                }
            }
            self.response.moves += 1;
        }
    }
}

impl ToEndpoint {
    /// Sends the piece at hand as the endpoint takes it.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.piece.is_empty() {
            self.stream.reserve_capacity(self.piece.len());
            while self.stream.capacity() == 0 {
                if !matches!(ready!(self.stream.poll_capacity(cx)), Some(Ok(_))) {
                    self.deaf = true;
                    return Poll::Ready(());
                }
            }
            let count = self.piece.len().min(self.stream.capacity());
            if self.stream.send_data(self.piece.split_to(count), false).is_err() {
                self.deaf = true;
                return Poll::Ready(());
            }
            self.moves += 1;
        }
        Poll::Ready(())
    }
}
