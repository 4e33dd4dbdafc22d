//! One stream: judged, sent to an endpoint that takes it, answered, accounted for.

use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderMap, Method, Request};

use super::body::RequestBody;
use super::both_ways::{self, BothWays as _};
use super::client::StreamClient;
use super::exchange::{Asked, Exchange};
use super::head;
use super::patience::Patience;
use super::relay::Relay;
use super::reply::Reply;
use crate::clock;
use crate::config::Timeouts;
use crate::policy::Passage;
use crate::proxy::{
    Answer, Attempts, CLIENT_GONE, Failed, PageRequest, Peer, Proxy, Record, Then, To, Trouble,
};
use crate::upstream::{self, Pool};
use crate::wire::{Deadline, Normal, redirect_request, write_request};

/// Room for a request's head as it mostly is, so that writing it allocates once.
const HEAD_BYTES: usize = 512;

/// What all streams of a connection know.
pub(super) struct Shared<'p> {
    pub(super) proxy: &'p Proxy,
    pub(super) peer: Peer,
}

/// A request as endpoints get it.
enum Forwarded {
    /// A head.
    Http1(Vec<u8>),
    Http2(Box<Request<()>>),
}

/// One request and the way back to who asked.
struct Stream<'c> {
    shared: &'c Shared<'c>,
    body: RequestBody,
    respond: SendResponse<Bytes>,
    deadline: Deadline,
}

/// Serves a stream to its end.
pub(super) fn serve(
    shared: &Shared<'_>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> impl Future<Output = ()> {
    // Made out here: an async function would keep what it was given beside what it makes of it.
    let (parts, body) = request.into_parts();
    let proxy = shared.proxy;
    let mut record = Record::new(&proxy.metrics);
    let deadline = Deadline::new(record.started + proxy.timeouts.read);
    let mut stream = Stream { shared, body: RequestBody::new(body), respond, deadline };
    async move {
        let served = stream.forward(&mut record, &parts).await;
        record.bytes_in = stream.body.bytes;
        let status = match served {
            Ok(status) => status,
            Err(Some(answer)) => stream.answer(&mut record, parts.method == Method::HEAD, answer),
            Err(None) => 0,
        };
        proxy.account(&record, &shared.peer, "HTTP/2", status);
    }
}

impl Stream<'_> {
    /// Sends the request where its rule says. Returns the status that the client was told, or what to tell it instead.
    async fn forward(&mut self, record: &mut Record, parts: &Parts) -> Result<u16, Option<Answer>> {
        let Shared { proxy, peer } = self.shared;
        let cookie = head::cookie(&parts.headers);
        let fields = head::fields(&parts.headers, cookie.as_deref()).map_err(Answer::from)?;
        let head = head::read(parts, &fields, self.body.is_read()).map_err(Answer::from)?;
        let normal = proxy.find(record, &head, peer)?;
        let decision = proxy.decide(record, &normal, peer);
        if let Some(settled) = self.while_client_waits(proxy.settle(record, decision)).await {
            settled?;
        } else {
            record.reason = Some(CLIENT_GONE.into());
            return Err(None);
        }
        let mut passage = record.passage.take();
        self.body.copy_to(proxy.mirror(passage.as_deref_mut(), &record.id, head.body));
        let result = self.endpoints(record, passage.as_deref(), &normal, &parts.headers).await;
        record.passage = passage;
        result
    }

    /// What comes of some work, unless the client gives the stream up before.
    async fn while_client_waits<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            self.respond.poll_reset(cx).map(|_| None)
        })
        .await
    }

    /// Sends the request to the endpoints of its target, and to who makes the error page if it comes to that.
    async fn endpoints(
        &mut self,
        record: &mut Record,
        passage: Option<&Passage>,
        request: &Normal<'_, '_>,
        headers: &HeaderMap,
    ) -> Result<u16, Option<Answer>> {
        let Shared { proxy, peer } = self.shared;
        self.body.limit(passage.and_then(Passage::body_limit));
        let own_timeouts = passage.map(|passage| passage.upstream().over(&proxy.timeouts));
        let timeouts = own_timeouts.as_ref().unwrap_or(&proxy.timeouts);
        let mut pool = record.endpoints(passage)?;
        let asked = Asked { is_head: request.head.method == "HEAD", chunks: request.head.chunks, passage };
        loop {
            let (page, protocol) = (record.page_request(), pool.protocol());
            let networks = &proxy.trusted;
            let forwarded = if protocol.is_http2() {
                let forwarded =
                    head::for_http2(request, headers, protocol.is_tls(), peer, &record.id, networks, passage);
                let mut forwarded = forwarded.map_err(Answer::from)?;
                if let Some(PageRequest { target, fields }) = page {
                    head::redirect(&mut forwarded, target, fields);
                }
                Forwarded::Http2(Box::new(forwarded))
            } else {
                let mut forwarded = Vec::with_capacity(HEAD_BYTES);
                write_request(&mut forwarded, request, peer, &record.id, networks, passage);
                if let Some(PageRequest { target, fields }) = page {
                    redirect_request(&mut forwarded, target, &fields);
                }
                Forwarded::Http1(forwarded)
            };
            match self.attempt(record, &pool, timeouts, &forwarded, asked).await {
                Ok(status) => return Ok(status),
                Err(trouble) => pool = record.recover(trouble, passage, &proxy.metrics)?,
            }
        }
    }

    /// Sends the request to one endpoint after the other until one answers.
    async fn attempt(
        &mut self,
        record: &mut Record,
        pool: &Pool,
        timeouts: &Timeouts,
        forwarded: &Forwarded,
        asked: Asked<'_>,
    ) -> Result<u16, Trouble> {
        let mut attempts = Attempts::new(pool, asked.passage, &self.shared.proxy.metrics);
        loop {
            let chosen = attempts.next(record)?;
            let to = To { attempts: &attempts, chosen: &chosen, passage: asked.passage, timeouts };
            let tried = match forwarded {
                Forwarded::Http1(head) => self.exchange(record, to, head, asked).await,
                Forwarded::Http2(head) => self.relay(record, to, head).await,
            };
            let failed = match tried {
                Ok(status) => return Ok(status),
                Err(failed) => failed,
            };
            match attempts.go_on(record, &chosen, failed)? {
                Then::TryAgain => {}
                Then::BrokeOff(status) => return Ok(status),
            }
        }
    }

    /// One attempt, at an endpoint that speaks HTTP/1.1.
    async fn exchange(
        &mut self,
        record: &mut Record,
        to: To<'_>,
        head: &[u8],
        asked: Asked<'_>,
    ) -> Result<u16, Failed> {
        let To { attempts, chosen, passage, timeouts } = to;
        let header = self.shared.peer.header(passage);
        let taken = upstream::take(chosen, record.started, timeouts.connect, header.as_deref()).await;
        let (mut endpoint, is_reused) = taken.map_err(Failed::Connect)?;
        let client = StreamClient::new(&mut self.body, Reply::new(&mut self.respond));
        let mut exchange = Exchange::new(&mut endpoint, head, client, asked);
        let patience = Patience::new(&mut self.deadline, timeouts, exchange.lack());
        let unwanted = |status, can_repeat| attempts.is_unwanted(record, chosen, status, can_repeat);
        let result = both_ways::run(&mut exchange, patience, unwanted).await;
        record.bytes_out = exchange.client.reply.bytes;
        match result {
            Ok(()) => {
                let status = exchange.client.reply.status;
                if exchange.keeps_endpoint() && header.is_none() {
                    chosen.idle().put(endpoint, clock::now());
                }
                Ok(status)
            }
            Err(trouble) => {
                let can_repeat = exchange.can_repeat();
                let told = exchange.client.reply.break_off();
                Err(Failed::Exchange { trouble, is_reused, can_repeat, told })
            }
        }
    }

    /// One attempt, at an endpoint that speaks HTTP/2.
    async fn relay(&mut self, record: &mut Record, to: To<'_>, head: &Request<()>) -> Result<u16, Failed> {
        let To { attempts, chosen, passage, timeouts } = to;
        let taken = chosen.connections().take(chosen, timeouts.connect).await;
        let mut taken = taken.map_err(Failed::Connect)?;
        let (is_reused, can_repeat) = (taken.is_reused, self.body.is_at_hand());
        let no_stream = |failure| {
            let trouble = Trouble::Endpoint(failure);
            Failed::Exchange { trouble, is_reused, can_repeat, told: 0 }
        };
        taken.ready(timeouts.write).await.map_err(no_stream)?;
        let client = StreamClient::new(&mut self.body, Reply::new(&mut self.respond));
        let mut relay = Relay::open(&mut taken.sender, head.clone(), client, passage).map_err(no_stream)?;
        let patience = Patience::new(&mut self.deadline, timeouts, relay.lack());
        let unwanted = |status, can_repeat| attempts.is_unwanted(record, chosen, status, can_repeat);
        let result = both_ways::run(&mut relay, patience, unwanted).await;
        record.bytes_out = relay.client.reply.bytes;
        match result {
            Ok(()) => Ok(relay.client.reply.status),
            Err(trouble) => {
                let can_repeat = relay.can_repeat();
                let told = relay.client.reply.break_off();
                Err(Failed::Exchange { trouble, is_reused, can_repeat, told })
            }
        }
    }

    /// Answers in the proxy's own name. Returns the status, or 0 if the client is gone.
    fn answer(&mut self, record: &mut Record, is_to_head: bool, mut answer: Answer) -> u16 {
        if let Some(passage) = &record.passage {
            passage.after(answer.status, &mut *answer.more);
        }
        let (response, body) = answer.response(&record.id);
        record.reason = Some(answer.text);
        let body = body.filter(|_| !is_to_head);
        let Ok(mut stream) = self.respond.send_response(response, body.is_none()) else { return 0 };
        if let Some(body) = body {
            record.bytes_out = body.len() as u64;
            if stream.send_data(Bytes::from(body), true).is_err() {
                return 0;
            }
        }
        answer.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client has up to 128 streams at once, and each task that is made larger is memory touched for every request.
    #[test]
    fn a_stream_is_small() {
        fn bytes<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = bytes(serve);
        assert!(bytes <= 3 * 1_024, "{bytes} bytes: keep what is rare in a box of its own");
    }
}
