//! One request: judged, sent to an endpoint that takes it, answered, accounted for.

use tokio::time::Instant;

use super::Connection;
use super::exchange::{Asked, End, Exchange};
use crate::live::Target;
use crate::policy::{Decision, Passage};
use crate::proxy::{Answer, Attempts, CLIENT_GONE, PageRequest, Record, Trouble};
use crate::subrequest::Tee;
use crate::upstream::{Pool, connect};
use crate::wire::{Body, RequestHead, Space, Version, add_fields, redirect_request, write_request};

/// What a connection does behind a request.
pub(super) enum Next {
    Request,
    Close,
    /// Pingora serves this request, which is still unread, and all behind it.
    HandOver,
}

/// What is remembered of one request.
struct Request {
    record: Record,
    asked: Asked,
    /// The client waits with its body until it is asked for it.
    expects: bool,
}

/// What is to be done with a request.
enum Verdict {
    /// Its head for an endpoint is written; it goes there if the rule's policies let it.
    Forward(Option<Decision>),
    Answer(Answer),
    HandOver,
}

impl Connection<'_> {
    /// Serves the request whose head is the first `length` bytes of `input`.
    pub(super) async fn request(&mut self, length: usize) -> Next {
        let (mut request, verdict) = self.judge(length);
        let judged = match verdict {
            Verdict::HandOver => return Next::HandOver,
            Verdict::Answer(answer) => Err(answer),
            Verdict::Forward(decision) => Ok(decision),
        };
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

    /// Reads the head, finds out what is to be done, and writes the head for the endpoint.
    fn judge(&mut self, length: usize) -> (Request, Verdict) {
        let mut space = Space::new();
        let mut request = Request::new(Record::new(&self.proxy.metrics));
        let read = RequestHead::read(&self.input.filled()[..length], &mut space);
        let verdict = read.map_err(Answer::from).and_then(|head| {
            request.learn(&head);
            let record = &mut request.record;
            let normal = self.proxy.find(record, &head, &self.peer)?;
            if record.target.as_deref().is_some_and(is_pingoras) {
                return Ok(Verdict::HandOver);
            }
            let decision = self.proxy.decide(record, &normal, &self.peer);
            let passage = decision.as_ref().and_then(Decision::passage);
            let (peer, networks) = (&self.peer, &self.proxy.trusted);
            write_request(&mut self.head, &normal, peer, &record.id, networks, passage);
            Ok(Verdict::Forward(decision))
        });
        (request, verdict.unwrap_or_else(Verdict::Answer))
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
        let record = &mut request.record;
        let own_timeouts = passage.map(|passage| passage.upstream().over(&self.proxy.timeouts));
        let timeouts = own_timeouts.as_ref().unwrap_or(&self.proxy.timeouts);
        let mut attempts = Attempts::new(pool, passage, &self.proxy.metrics);
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
            let mut exchange = Exchange::new(
                &mut self.stream,
                &mut endpoint,
                &mut self.input,
                (&self.head, &mut self.reply),
                request.asked,
                passage,
                timeouts,
            );
            exchange.request.copy_to(tee.as_mut());
            let draining = &self.draining.token;
            let unwanted = |status, can_repeat| attempts.is_unwanted(record, &chosen, status, can_repeat);
            let result = exchange.run(&mut self.deadline, || draining.is_cancelled(), unwanted).await;
            let (status, has_begun) = (exchange.response.status, !exchange.response.is_unheard());
            let can_repeat = exchange.can_repeat();
            (record.bytes_in, record.bytes_out) = (exchange.request.bytes(), exchange.response.bytes);
            let trouble = match result {
                Ok(End { keep_client, keep_endpoint }) => {
                    if keep_endpoint {
                        chosen.idle().put(endpoint, Instant::now());
                    }
                    return Ok((status, if keep_client { Next::Request } else { Next::Close }));
                }
                Err(trouble) => trouble,
            };
            if attempts.goes_on(record, &chosen, trouble, is_reused, can_repeat) {
                continue;
            }
            // A response that has begun cannot be taken back; the client sees it break off.
            if status != 0 && has_begun {
                record.reason = trouble.answer(record.target.as_deref()).map(|answer| answer.text);
                return Ok((status, Next::Close));
            }
            return Err(trouble);
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
            || self.draining.token.is_cancelled();
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

/// Whether pingora serves a target: endpoints that it may come to speak HTTP/2.
fn is_pingoras(target: &Target) -> bool {
    let speaks_h2 = |target: &Target| target.backend.as_ref().is_ok_and(|pool| pool.is_h2c());
    let others = [&target.canary, &target.fallback].into_iter().flatten();
    speaks_h2(target) || others.into_iter().any(|other| speaks_h2(other))
}
