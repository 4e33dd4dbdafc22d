//! One request: judged, sent to an endpoint that takes it, answered, accounted for.

use super::Connection;
use super::client::ConnectionClient;
use super::exchange::{Asked, End, Exchange};
use crate::clock;
use crate::http2::{self, BothWays as _, Patience, Relay};
use crate::policy::{Decision, Passage};
use crate::proxy::{Answer, Attempts, CLIENT_GONE, Failed, PageRequest, Record, Then, To, Trouble};
use crate::subrequest::Tee;
use crate::upstream::{self, Pool};
use crate::wire::{Body, RequestHead, Space, Version, add_fields, redirect_request, write_request};

/// What a connection does behind a request.
pub(super) enum Next {
    Request,
    Close,
}

/// What is remembered of one request.
struct Request {
    record: Record,
    asked: Asked,
    /// The client waits with its body until it is asked for it.
    expects: bool,
}

impl Connection<'_> {
    /// Serves the request whose head is the first `length` bytes of `input`.
    pub(super) async fn request(&mut self, length: usize) -> Next {
        let (mut request, judged) = self.judge(length);
        self.input.consume(length);
        let settled = match judged {
            Ok(decision) => {
                let proxy = self.proxy;
                self.while_client_waits(proxy.settle(&mut request.record, decision)).await
            }
            Err(answer) => Some(Err(answer)),
        };
        let mut passage = request.record.passage.take();
        let served = match settled {
            Some(Ok(())) => self.forward(&mut request, passage.as_deref_mut()).await,
            Some(Err(answer)) => Err(answer),
            None => {
                request.record.reason = Some(CLIENT_GONE.into());
                Ok((0, Next::Close))
            }
        };
        let (status, next) = match served {
            Ok(served) => served,
            Err(answer) => self.answer(&mut request, passage.as_deref(), answer).await,
        };
        let proto = if request.asked.is_old() { "HTTP/1.0" } else { "HTTP/1.1" };
        self.proxy.account(&request.record, &self.peer, proto, status);
        next
    }

    /// Reads the head, finds out what is to be done, and writes the head for an endpoint: the request goes there if the rule's
    /// policies let it.
    fn judge(&mut self, length: usize) -> (Request, Result<Option<Decision>, Answer>) {
        let mut space = Space::new();
        let mut request = Request::new(Record::new(&self.proxy.metrics));
        let read = RequestHead::read(&self.input.filled()[..length], &mut space);
        let judged = read.map_err(Answer::from).and_then(|head| {
            request.learn(&head);
            let record = &mut request.record;
            let normal = self.proxy.find(record, &head, &self.peer)?;
            let decision = self.proxy.decide(record, &normal, &self.peer);
            let passage = decision.as_ref().and_then(Decision::passage);
            let (peer, networks) = (&self.peer, &self.proxy.trusted);
            write_request(&mut self.head, &normal, peer, &record.id, networks, passage);
            Ok(decision)
        });
        (request, judged)
    }

    /// Sends the request to the endpoints of its target, and to who makes the error page if it comes to that; or says what to
    /// answer instead.
    async fn forward(
        &mut self,
        request: &mut Request,
        mut passage: Option<&mut Passage>,
    ) -> Result<(u16, Next), Answer> {
        let mut tee = self.proxy.mirror(passage.as_deref_mut(), &request.record.id, request.asked.body);
        let passage = passage.as_deref();
        if let Some(passage) = passage {
            add_fields(&mut self.head, passage.granted_fields());
        }
        let mut pool = request.record.endpoints(passage)?;
        loop {
            if let Some(PageRequest { target, fields }) = request.record.page_request() {
                redirect_request(&mut self.head, target, &fields);
            }
            match self.attempt(request, passage, &pool, &mut tee).await {
                Ok(served) => return Ok(served),
                Err(trouble) => match request.record.recover(trouble, passage, &self.proxy.metrics) {
                    Ok(others) => pool = others,
                    Err(Some(answer)) => return Err(answer),
                    Err(None) => return Ok((0, Next::Close)),
                },
            }
        }
    }

    /// Sends the request to one endpoint after the other until one answers.
    async fn attempt(
        &mut self,
        request: &mut Request,
        passage: Option<&Passage>,
        pool: &Pool,
        tee: &mut Option<Tee>,
    ) -> Result<(u16, Next), Trouble> {
        let own_timeouts = passage.map(|passage| passage.upstream().over(&self.proxy.timeouts));
        let timeouts = own_timeouts.as_ref().unwrap_or(&self.proxy.timeouts);
        let protocol = pool.protocol();
        let by_http2 = if protocol.is_http2() {
            let head = http2::from_http1(&self.head, protocol.is_tls()).map_err(|_| Trouble::BadRequest)?;
            Some(Box::new(head))
        } else {
            None
        };
        let mut attempts = Attempts::new(pool, passage, &self.proxy.metrics);
        loop {
            let chosen = attempts.next(&mut request.record)?;
            let to = To { attempts: &attempts, chosen: &chosen, passage, timeouts };
            let tried = match &by_http2 {
                None => self.exchange(request, to, tee.as_mut()).await,
                // Apart: few clients of HTTP/1.1 have such endpoints, and all would have room for it.
                Some(head) => Box::pin(self.relay(request, to, head, tee.as_mut())).await,
            };
            let failed = match tried {
                Ok(served) => return Ok(served),
                Err(failed) => failed,
            };
            match attempts.go_on(&mut request.record, &chosen, failed)? {
                Then::TryAgain => {}
                Then::BrokeOff(status) => return Ok((status, Next::Close)),
            }
        }
    }

    /// One attempt, at an endpoint that speaks HTTP/1.1.
    async fn exchange(
        &mut self,
        request: &mut Request,
        to: To<'_>,
        tee: Option<&mut Tee>,
    ) -> Result<(u16, Next), Failed> {
        let To { attempts, chosen, passage, timeouts } = to;
        let record = &mut request.record;
        let header = self.peer.header(passage);
        let taken = upstream::take(chosen, record.started, timeouts.connect, header.as_deref()).await;
        let (mut endpoint, is_reused) = taken.map_err(Failed::Connect)?;
        let mut exchange = Exchange::new(
            &mut self.stream,
            &mut endpoint,
            &mut self.input,
            (&self.head, &mut self.reply),
            request.asked,
            passage,
            timeouts,
        );
        exchange.request.copy_to(tee);
        let draining = &self.draining;
        let unwanted = |status, can_repeat| attempts.is_unwanted(record, chosen, status, can_repeat);
        let result = exchange.run(&mut self.deadline, || draining.is_on(), unwanted).await;
        let (status, has_begun) = (exchange.response.status, !exchange.response.is_unheard());
        let can_repeat = exchange.can_repeat();
        (record.bytes_in, record.bytes_out) = (exchange.request.bytes(), exchange.response.bytes);
        match result {
            Ok(End { keep_client, keep_endpoint }) => {
                if keep_endpoint && header.is_none() {
                    chosen.idle().put(endpoint, clock::now());
                }
                Ok((status, if keep_client { Next::Request } else { Next::Close }))
            }
            Err(trouble) => {
                let told = if has_begun { status } else { 0 };
                Err(Failed::Exchange { trouble, is_reused, can_repeat, told })
            }
        }
    }

    /// One attempt, at an endpoint that speaks HTTP/2.
    async fn relay(
        &mut self,
        request: &mut Request,
        to: To<'_>,
        head: &http::Request<()>,
        tee: Option<&mut Tee>,
    ) -> Result<(u16, Next), Failed> {
        let To { attempts, chosen, passage, timeouts } = to;
        let Request { record, asked, expects } = request;
        let taken = chosen.connections().take(chosen, timeouts.connect).await;
        let mut taken = taken.map_err(Failed::Connect)?;
        let is_reused = taken.is_reused;
        let no_stream = |failure| {
            let trouble = Trouble::Endpoint(failure);
            Failed::Exchange { trouble, is_reused, can_repeat: true, told: 0 }
        };
        taken.ready(timeouts.write).await.map_err(no_stream)?;
        let mut client = ConnectionClient::new(
            &mut self.stream,
            (&mut self.input, expects),
            &mut self.reply,
            *asked,
            passage.and_then(Passage::body_limit),
            &self.draining,
        );
        client.copy_to(tee);
        let mut relay = Relay::open(&mut taken.sender, head.clone(), client, passage).map_err(no_stream)?;
        let patience = Patience::new(&mut self.deadline, timeouts, relay.lack());
        let unwanted = |status, can_repeat| attempts.is_unwanted(record, chosen, status, can_repeat);
        let result = http2::run(&mut relay, patience, unwanted).await;
        let (can_repeat, client) = (relay.can_repeat(), relay.client);
        let told = client.status();
        (record.bytes_in, record.bytes_out) = client.bytes();
        match result {
            Ok(()) => Ok((told, if client.finish() { Next::Request } else { Next::Close })),
            Err(trouble) => Err(Failed::Exchange { trouble, is_reused, can_repeat, told }),
        }
    }

    /// Answers in the proxy's own name.
    async fn answer(
        &mut self,
        request: &mut Request,
        passage: Option<&Passage>,
        mut answer: Answer,
    ) -> (u16, Next) {
        if let Some(passage) = passage {
            passage.after(answer.status, &mut *answer.more);
        }
        let mut body = request.asked.body;
        let read = body.read(self.input.filled());
        // What is left of the body would be taken for the next request.
        let close = answer.close
            || !request.asked.keep
            || request.expects
            || read.is_err()
            || !body.is_done()
            || self.draining.is_on();
        self.reply.clear();
        let record = &mut request.record;
        let length = answer.write(&mut self.reply, &record.id, request.asked.is_head, close);
        record.bytes_out = length as u64;
        record.reason = Some(answer.text);
        if self.send_reply().await.is_err() {
            return (0, Next::Close);
        }
        if close {
            return (answer.status, Next::Close);
        }
        self.input.consume(read.map_or(0, |piece| piece.bytes));
        (answer.status, Next::Request)
    }
}

impl Request {
    /// One of which nothing is known yet.
    fn new(record: Record) -> Self {
        let asked =
            Asked { version: Version::New, body: Body::Done, is_head: false, upgrades: false, keep: false };
        Self { record, asked, expects: false }
    }

    fn learn(&mut self, head: &RequestHead<'_, '_>) {
        self.asked = Asked {
            version: head.version,
            body: head.body,
            is_head: head.method == "HEAD",
            upgrades: head.upgrade.is_some(),
            keep: head.keeps_alive(),
        };
        self.expects = head.expects;
    }
}
