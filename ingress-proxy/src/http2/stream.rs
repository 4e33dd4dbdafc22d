//! One stream: judged, sent to an endpoint that takes it, answered, accounted for.

use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderMap, Method, Request};
use tokio::time::Instant;

use super::body::RequestBody;
use super::both_ways::{self, BothWays as _};
use super::endpoint::Taken;
use super::exchange::{Asked, Exchange};
use super::head;
use super::patience::Patience;
use super::relay::Relay;
use super::reply::Reply;
use crate::config::Timeouts;
use crate::policy::Passage;
use crate::proxy::{Answer, Attempts, CLIENT_GONE, PageRequest, Peer, Proxy, Record, Trouble};
use crate::upstream::{Pool, connect};
use crate::wire::{Deadline, Normal, RequestHead, redirect_request, write_request};

/// Room for a request's head as it mostly is, so that writing it allocates once.
const HEAD_BYTES: usize = 512;

/// What all streams of a connection know.
pub(super) struct Shared<'p> {
    pub(super) proxy: &'p Proxy,
    pub(super) peer: Peer,
}

/// One request and the way back to who asked.
struct Stream<'c> {
    shared: &'c Shared<'c>,
    body: RequestBody,
    respond: SendResponse<Bytes>,
    deadline: Deadline,
}

/// Serves a stream to its end.
pub(super) async fn serve(shared: &Shared<'_>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let proxy = shared.proxy;
    let mut record = Record::new(&proxy.metrics);
    let deadline = Deadline::new(record.started + proxy.timeouts.read);
    let mut stream = Stream { shared, body: RequestBody::new(body), respond, deadline };
    let served = stream.forward(&mut record, &parts).await;
    record.bytes_in = stream.body.bytes;
    let status = match served {
        Ok(status) => status,
        Err(Some(answer)) => stream.answer(&mut record, parts.method == Method::HEAD, answer),
        Err(None) => 0,
    };
    proxy.account(&record, &shared.peer, "HTTP/2", status);
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
        loop {
            let page = record.page_request();
            let networks = &proxy.trusted;
            let attempted = if pool.is_h2c() {
                let forwarded = head::for_http2(request, headers, peer, &record.id, networks, passage);
                let mut forwarded = forwarded.map_err(Answer::from)?;
                if let Some(PageRequest { target, fields }) = page {
                    head::redirect(&mut forwarded, target, fields);
                }
                self.relay(record, passage, &pool, timeouts, forwarded).await
            } else {
                let mut forwarded = Vec::with_capacity(HEAD_BYTES);
                write_request(&mut forwarded, request, peer, &record.id, networks, passage);
                if let Some(PageRequest { target, fields }) = page {
                    redirect_request(&mut forwarded, target, &fields);
                }
                self.exchange(record, passage, &pool, timeouts, &forwarded, request.head).await
            };
            match attempted {
                Ok(status) => return Ok(status),
                Err(trouble) => pool = record.recover(trouble, passage, &proxy.metrics)?,
            }
        }
    }

    /// Sends the request to one HTTP/1.1 endpoint after the other until one answers.
    async fn exchange(
        &mut self,
        record: &mut Record,
        passage: Option<&Passage>,
        pool: &Pool,
        timeouts: &Timeouts,
        forwarded: &[u8],
        head: &RequestHead<'_, '_>,
    ) -> Result<u16, Trouble> {
        let asked = Asked { is_head: head.method == "HEAD", chunks: head.chunks, passage };
        let mut attempts = Attempts::new(pool, passage, &self.shared.proxy.metrics);
        loop {
            let chosen = attempts.next(record)?;
            let (mut endpoint, is_reused) = match chosen.idle().take(record.started) {
                Some(stream) => (stream, true),
                None => match connect(chosen.address(), timeouts.connect).await {
                    Ok(stream) => (stream, false),
                    Err(failure) if attempts.refused(record, &chosen, failure) => continue,
                    Err(failure) => return Err(Trouble::Endpoint(failure)),
                },
            };
            let reply = Reply::new(&mut self.respond);
            let mut exchange = Exchange::new(&mut endpoint, forwarded, &mut self.body, reply, asked);
            let patience = Patience::new(&mut self.deadline, timeouts, exchange.lack());
            let unwanted = |status, can_repeat| attempts.is_unwanted(record, &chosen, status, can_repeat);
            let result = both_ways::run(&mut exchange, patience, unwanted).await;
            let can_repeat = exchange.can_repeat();
            let result = match result {
                Ok(()) => {
                    let status = exchange.reply.status;
                    record.bytes_out = exchange.reply.bytes;
                    if exchange.keeps_endpoint() {
                        chosen.idle().put(endpoint, Instant::now());
                    }
                    return Ok(status);
                }
                Err(trouble) => exchange.reply.fail(record, trouble),
            };
            match result {
                Ok(status) => return Ok(status),
                Err(trouble) if attempts.goes_on(record, &chosen, trouble, is_reused, can_repeat) => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }

    /// Sends the request to one HTTP/2 endpoint after the other until one answers.
    async fn relay(
        &mut self,
        record: &mut Record,
        passage: Option<&Passage>,
        pool: &Pool,
        timeouts: &Timeouts,
        forwarded: Request<()>,
    ) -> Result<u16, Trouble> {
        let mut attempts = Attempts::new(pool, passage, &self.shared.proxy.metrics);
        loop {
            let chosen = attempts.next(record)?;
            let Taken { sender, is_reused, _load } =
                match chosen.connections().take(chosen.address(), timeouts.connect).await {
                    Ok(taken) => taken,
                    Err(failure) if attempts.refused(record, &chosen, failure) => continue,
                    Err(failure) => return Err(Trouble::Endpoint(failure)),
                };
            let reply = Reply::new(&mut self.respond);
            let opened =
                Relay::open(sender, forwarded.clone(), &mut self.body, reply, passage, timeouts).await;
            let (result, can_repeat) = match opened {
                Err(failure) => (Err(Trouble::Endpoint(failure)), self.body.is_at_hand()),
                Ok(mut relay) => {
                    let patience = Patience::new(&mut self.deadline, timeouts, relay.lack());
                    let unwanted =
                        |status, can_repeat| attempts.is_unwanted(record, &chosen, status, can_repeat);
                    let result = both_ways::run(&mut relay, patience, unwanted).await;
                    record.bytes_out = relay.reply.bytes;
                    let can_repeat = relay.can_repeat();
                    let status = relay.reply.status;
                    (result.map(|()| status).or_else(|trouble| relay.reply.fail(record, trouble)), can_repeat)
                }
            };
            match result {
                Ok(status) => return Ok(status),
                Err(trouble) if attempts.goes_on(record, &chosen, trouble, is_reused, can_repeat) => {}
                Err(trouble) => return Err(trouble),
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
