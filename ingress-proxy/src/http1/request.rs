//! One request: judged, sent to an endpoint that takes it, answered, accounted for.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Connection;
use super::exchange::{Asked, End, Exchange, Version};
use super::forward::write_request;
use super::framing::Body;
use super::head::{Known, Normal, RequestHead, Space};
use crate::access_log::Line;
use crate::live::Target;
use crate::metrics::UpstreamFailure;
use crate::policy::{Client, Decision, Passage, Retry};
use crate::proxy::{Answer, Fault, MAX_ATTEMPTS, RequestId, Trouble};
use crate::table::{normalize_host, normalize_path};
use crate::upstream::{Chosen, Pool};

/// What a connection does behind a request.
pub(super) enum Next {
    Request,
    Close,
    /// Pingora serves this request, which is still unread, and all behind it.
    HandOver,
}

/// What is remembered of one request.
struct Request {
    started: Instant,
    id: RequestId,
    asked: Asked,
    /// Whether doing it twice is the same as once.
    is_idempotent: bool,
    /// The client waits with its body until it is asked for it.
    expects: bool,
    target: Option<Arc<Target>>,
    /// What the rule's policies ask for.
    passage: Option<Box<Passage>>,
    /// For the access log, if there is one.
    said: Option<Box<Said>>,
    endpoint: Option<SocketAddr>,
    attempts: u8,
    reason: Option<Cow<'static, str>>,
    bytes_in: u64,
    bytes_out: u64,
    _in_flight: InFlight,
}

/// What the client said, for the access log.
#[derive(Default)]
struct Said {
    method: String,
    /// In normal form.
    host: String,
    target: String,
    user_agent: String,
}

/// What is to be done with a request.
enum Verdict {
    /// Its head for an endpoint is written; it goes there if the rule's policies let it.
    Forward(Option<Decision>),
    Answer(Answer),
    HandOver,
}

/// A request that is being served.
struct InFlight(Gauge);

impl InFlight {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
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
            Ok(decision) => self.settle(&mut request, decision).await,
            Err(answer) => Err(answer),
        };
        let served = match settled {
            Ok(pool) => self.forward(&mut request, &pool).await,
            Err(answer) => Err(answer),
        };
        let (status, next) = match served {
            Ok(served) => served,
            Err(answer) => self.answer(&mut request, answer).await,
        };
        self.account(&request, status);
        next
    }

    /// Reads the head, finds out what is to be done, and writes the head for the endpoint.
    fn judge(&mut self, length: usize) -> (Request, Verdict) {
        let mut space = Space::new();
        let mut request = Request::new(&self.proxy.metrics.in_flight);
        let read = RequestHead::read(&self.input.filled()[..length], &mut space);
        let verdict = read.map_err(Answer::from).and_then(|head| {
            request.learn(&head, self.peer.trusted);
            let said = self.proxy.is_logging().then(|| request.said.insert(Box::new(Said::of(&head))));
            let host = normalize_host(head.host).map_err(Fault::from)?;
            if let Some(said) = said {
                said.host.push_str(&host);
            }
            let path = normalize_path(head.path).map_err(Fault::from)?;
            let target = request.target.insert(self.proxy.route(&host, &path)?);
            if is_pingoras(target) {
                return Ok(Verdict::HandOver);
            }
            let decision = target.policy.as_ref().map(|policy| {
                let head = Normal { head: &head, host: &host, path: &path };
                let client = Client::of(&head, self.peer.address, self.peer.tls, &self.proxy.trusted);
                policy.before(&head, &client, &self.proxy.memory)
            });
            let passage = decision.as_ref().and_then(Decision::passage);
            let (peer, networks) = (&self.peer, &self.proxy.trusted);
            write_request(&mut self.head, &head, &path, peer, &request.id, networks, passage);
            Ok(Verdict::Forward(decision))
        });
        (request, verdict.unwrap_or_else(Verdict::Answer))
    }

    /// Waits for what the rule's policies decide, and finds the endpoints.
    async fn settle(&self, request: &mut Request, decision: Option<Decision>) -> Result<Arc<Pool>, Answer> {
        if let Some(decision) = decision {
            let passage = decision.settled().await.map_err(|reply| {
                self.proxy.metrics.policies.answered(reply.by);
                Answer::from(reply)
            })?;
            let canary = request.target.as_ref().and_then(|target| target.canary_for(&passage));
            if let Some(canary) = canary.cloned() {
                request.target = Some(canary);
            }
            request.passage = Some(passage);
        }
        request.target.as_ref().map_or(Err(Fault::Malformed.into()), |target| target.endpoints().cloned())
    }

    /// Sends the request to one endpoint after the other until one answers, or says what to answer instead.
    async fn forward(&mut self, request: &mut Request, pool: &Pool) -> Result<(u16, Next), Answer> {
        let metrics = &self.proxy.metrics;
        let passage = request.passage.as_deref();
        let own_timeouts = passage.map(|passage| passage.upstream().over(&self.proxy.timeouts));
        let timeouts = own_timeouts.as_ref().unwrap_or(&self.proxy.timeouts);
        let (usual, rank_by) = (Retry::default(), passage.and_then(Passage::rank_by));
        let retry = passage.map_or(&usual, |passage| &passage.upstream().retry);
        let mut failed = Vec::new();
        let trouble = loop {
            let Some(chosen) = pool.choose_by(rank_by, &failed) else {
                break if failed.is_empty() { Trouble::NoneLeft } else { Trouble::AllTried };
            };
            if request.attempts > 0 {
                metrics.retries.inc();
            }
            request.attempts += 1;
            request.endpoint = Some(chosen.address());
            let may_go_on = |attempts, failed: &[SocketAddr]| {
                retry.may_go_on(attempts, MAX_ATTEMPTS, request.started.elapsed())
                    && pool.choose(failed).is_some()
            };
            let (mut endpoint, is_reused) = match chosen.idle().take(request.started) {
                Some(stream) => (stream, true),
                None => match connect(&chosen, timeouts.connect).await {
                    Ok(stream) => (stream, false),
                    Err(failure) => {
                        // Nothing was sent: any request may be tried elsewhere.
                        metrics.upstream_failure(failure);
                        chosen.avoid();
                        failed.push(chosen.address());
                        if retry.error && may_go_on(request.attempts, &failed) {
                            continue;
                        }
                        break Trouble::Endpoint(failure);
                    }
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
            let draining = &self.draining.token;
            let result = exchange.run(&mut self.deadline, || draining.is_cancelled()).await;
            (request.bytes_in, request.bytes_out) = (exchange.request.bytes(), exchange.response.bytes);
            let (status, has_begun) = (exchange.response.status, !exchange.response.is_unheard());
            let can_repeat = exchange.can_repeat();
            let trouble = match result {
                Ok(End { keep_client, keep_endpoint }) => {
                    if keep_endpoint {
                        chosen.idle().put(endpoint, Instant::now());
                    }
                    return Ok((status, if keep_client { Next::Request } else { Next::Close }));
                }
                Err(trouble) => trouble,
            };
            if let Trouble::Endpoint(failure) = trouble {
                metrics.upstream_failure(failure);
                let broke = failure == UpstreamFailure::Closed;
                if broke && !is_reused {
                    failed.push(chosen.address());
                }
                let is_covered = match failure {
                    UpstreamFailure::ReadTimeout | UpstreamFailure::WriteTimeout => retry.timeout,
                    UpstreamFailure::InvalidResponse => retry.invalid_header,
                    _ => broke && retry.error,
                };
                // The endpoint may have seen the request. A kept connection mostly breaks because the endpoint had closed
                // it, so the same endpoint may be asked again on a fresh one.
                let is_harmless = can_repeat && (request.is_idempotent || retry.non_idempotent);
                if is_covered && is_harmless && may_go_on(request.attempts, &failed) {
                    continue;
                }
            }
            // A response that has begun cannot be taken back; the client sees it break off.
            if status != 0 && has_begun {
                request.reason = trouble.answer(request.target.as_deref()).map(|answer| answer.text);
                return Ok((status, Next::Close));
            }
            break trouble;
        };
        if trouble == Trouble::BodyTooLarge
            && let Some(reply) = passage.and_then(Passage::refuse_body)
        {
            metrics.policies.answered(reply.by);
            return Err(reply.into());
        }
        if let Some(answer) = trouble.answer(request.target.as_deref()) {
            return Err(answer.closing());
        }
        request.reason = Some(Cow::Borrowed("the client closed the connection"));
        Ok((0, Next::Close))
    }

    /// Answers in the proxy's own name.
    async fn answer(&mut self, request: &mut Request, mut answer: Answer) -> (u16, Next) {
        if let Some(passage) = &request.passage {
            passage.after(&mut *answer.more);
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
        let length = answer.write(&mut self.reply, &request.id, request.asked.is_head, close);
        request.bytes_out = length as u64;
        request.reason = Some(answer.text);
        if self.send_reply().await.is_err() {
            return (0, Next::Close);
        }
        if close {
            return (answer.status, Next::Close);
        }
        self.input.consume(read.map_or(0, |piece| piece.bytes));
        (answer.status, Next::Request)
    }

    fn account(&self, request: &Request, status: u16) {
        let took = request.started.elapsed();
        let target = request.target.as_deref();
        self.proxy.count(target, status, took);
        if !self.proxy.is_logging() {
            return;
        }
        let nothing = Said::default();
        let said = request.said.as_deref().unwrap_or(&nothing);
        let line = Line {
            time_ms: 0,
            id: request.id.as_str(),
            client: &self.peer.text,
            proto: if request.asked.is_old() { "HTTP/1.0" } else { "HTTP/1.1" },
            tls: self.peer.tls,
            method: &said.method,
            host: &said.host,
            path: &said.target,
            status,
            bytes_in: request.bytes_in as usize,
            bytes_out: request.bytes_out as usize,
            duration_us: took.as_micros(),
            ingress: target.map_or("", |target| &target.ingress),
            service: target.map_or("", |target| &target.service),
            endpoint: request.endpoint,
            attempts: request.attempts,
            reason: request.reason.as_deref(),
            cause: None,
            user_agent: &said.user_agent,
        };
        self.proxy.log(took, line);
    }
}

impl Request {
    /// One of which nothing is known yet.
    fn new(in_flight: &Gauge) -> Self {
        Self {
            started: Instant::now(),
            id: RequestId::of(None, false),
            asked: Asked {
                version: Version::New,
                body: Body::Done,
                is_head: false,
                upgrades: false,
                keep: false,
            },
            is_idempotent: false,
            expects: false,
            target: None,
            passage: None,
            said: None,
            endpoint: None,
            attempts: 0,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            _in_flight: InFlight::new(in_flight),
        }
    }

    fn learn(&mut self, head: &RequestHead<'_, '_>, trusted: bool) {
        self.asked = Asked {
            version: head.version,
            body: head.body,
            is_head: head.method == "HEAD",
            upgrades: head.upgrade.is_some(),
            keep: head.keeps_alive(),
        };
        // RFC 9110 §9.2.2.
        self.is_idempotent = matches!(head.method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS");
        self.expects = head.expects;
        if trusted {
            let given = head.fields.iter().find(|field| Known::of(field.name) == Known::RequestId);
            self.id = RequestId::of(given.map(|field| field.value), true);
        }
    }
}

impl Said {
    fn of(head: &RequestHead<'_, '_>) -> Self {
        Self {
            method: head.method.to_owned(),
            host: String::new(),
            target: head.target.to_owned(),
            user_agent: String::from_utf8_lossy(head.user_agent).into_owned(),
        }
    }
}

/// Whether pingora serves a target: its endpoints speak HTTP/2, or what they answer may not be what the client gets.
fn is_pingoras(target: &Target) -> bool {
    let speaks_h2 = |target: &Target| target.backend.as_ref().is_ok_and(|pool| pool.is_h2c());
    speaks_h2(target)
        || target.fallback.is_some()
        || target.canary.as_ref().is_some_and(|canary| speaks_h2(canary))
        || target.policy.as_ref().is_some_and(|policy| policy.judges_responses())
}

/// A fresh connection to the endpoint.
async fn connect(chosen: &Chosen, longest: std::time::Duration) -> Result<TcpStream, UpstreamFailure> {
    let connecting = async {
        let stream = TcpStream::connect(chosen.address()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match timeout(longest, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => Err(UpstreamFailure::ConnectTimeout),
    }
}

fn refusal(error: &std::io::Error) -> UpstreamFailure {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => UpstreamFailure::ConnectRefused,
        std::io::ErrorKind::TimedOut => UpstreamFailure::ConnectTimeout,
        _ => UpstreamFailure::ConnectOther,
    }
}
