//! What is remembered of one request until it is over, and what becomes of it before it goes to an endpoint.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::TraceId;
use tokio::time::Instant;

use super::{Answer, CLIENT_GONE, Fault, Handshake, Peer, Proxy, Reports, RequestId, Trouble};
use crate::access_log::Line;
use crate::clock;
use crate::live::Target;
use crate::metrics::{Counted, Metrics};
use crate::policy::{By, Client, Decision, Passage, Reply, origin_form};
use crate::subrequest::Tee;
use crate::table::{normalize_host, normalize_path};
use crate::trace::Parent;
use crate::upstream::Pool;
use crate::wire::{Body, Known, Normal, RequestHead};

/// One request.
pub(crate) struct Record {
    pub(crate) started: Instant,
    pub(crate) id: RequestId,
    /// Whether doing it twice is the same as once.
    pub(crate) is_idempotent: bool,
    pub(crate) has_body: bool,
    pub(crate) target: Option<Arc<Target>>,
    /// What the rule's policies ask for.
    pub(crate) passage: Option<Box<Passage>>,
    /// What an error page would be told, where the rule has who makes one.
    original: Option<Box<Original>>,
    /// The request goes to who makes error pages.
    pub(crate) page: Option<Page>,
    /// If it is told to anyone.
    said: Option<Box<Said>>,
    /// Not to the access log.
    is_unlogged: bool,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u8,
    pub(crate) reason: Option<Cow<'static, str>>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    _in_flight: Counted,
}

/// What the client said, for the access log and the trace.
#[derive(Default)]
struct Said {
    method: String,
    /// In normal form.
    host: String,
    target: String,
    user_agent: String,
    /// The trace that it was part of before.
    callers: Option<TraceId>,
}

/// What is left of the request for an error page to be made for.
struct Original {
    uri: String,
    accept: Option<Vec<u8>>,
}

/// An error page that is being asked for.
pub(crate) struct Page {
    /// The rule's own target.
    origin: Arc<Target>,
    asked: ErrorPage,
}

/// What it is for.
#[derive(Debug, Clone, Copy)]
struct ErrorPage {
    status: u16,
    /// An endpoint answered, and not to the rule's liking; otherwise there was none to ask.
    instead_of_response: bool,
}

/// The request for it, as far as it is not the client's.
pub(crate) struct PageRequest {
    pub(crate) target: Option<&'static str>,
    /// What it is for.
    pub(crate) fields: Vec<(&'static str, Vec<u8>)>,
}

impl Record {
    /// Of a request of which nothing is known yet.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            started: clock::now(),
            id: RequestId::of(None, false),
            is_idempotent: false,
            has_body: false,
            target: None,
            passage: None,
            original: None,
            page: None,
            said: None,
            is_unlogged: false,
            endpoint: None,
            attempts: 0,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            _in_flight: Counted::new(&metrics.in_flight),
        }
    }

    /// How long it has taken so far.
    pub(crate) fn elapsed(&self) -> Duration {
        clock::now().duration_since(self.started)
    }

    /// The endpoints that it goes to: those of its target, or, where there are none, of who makes the rule's error pages.
    pub(crate) fn endpoints(&mut self, passage: Option<&Passage>) -> Result<Arc<Pool>, Answer> {
        let target = self.target.clone().ok_or(Fault::Malformed)?;
        if let Some(canary) = passage.and_then(|passage| target.canary_for(passage)) {
            self.target = Some(Arc::clone(canary));
            return canary.endpoints().cloned();
        }
        let fallback = target.fallback.as_ref().filter(|fallback| fallback.has_endpoints());
        match (target.endpoints(), fallback) {
            (Err(_), Some(fallback)) => {
                self.fall_back(fallback, ErrorPage { status: 503, instead_of_response: false });
                fallback.endpoints().cloned()
            }
            (endpoints, _) => endpoints.cloned(),
        }
    }

    /// Where a page can be had instead of a response with this status, which the rule replaces; or what the client is told
    /// without one. `can_repeat`: all of the request is at hand.
    fn replace_response(&mut self, status: u16, can_repeat: bool) -> Result<Arc<Pool>, Answer> {
        let target = self.target.clone();
        let fallback = target.as_ref().and_then(|target| target.fallback.as_ref());
        match fallback.filter(|fallback| can_repeat && fallback.has_endpoints()) {
            Some(fallback) => {
                self.fall_back(fallback, ErrorPage { status, instead_of_response: true });
                fallback.endpoints().cloned()
            }
            None => Err(page_text(status)),
        }
    }

    /// What follows an attempt that came to nothing: other endpoints to ask, or what the client is told; nothing when it is
    /// gone.
    pub(crate) fn recover(
        &mut self,
        trouble: Trouble,
        passage: Option<&Passage>,
        metrics: &Metrics,
    ) -> Result<Arc<Pool>, Option<Answer>> {
        if let Trouble::Unwanted { status, can_repeat } = trouble {
            metrics.policies.answered(By::ErrorPage);
            return self.replace_response(status, can_repeat).map_err(Some);
        }
        let of_policy = passage.and_then(Passage::refuse_body).filter(|_| trouble == Trouble::BodyTooLarge);
        if let Some(reply) = of_policy {
            metrics.policies.answered(reply.by);
            return Err(Some(reply.into()));
        }
        // A page that cannot be had was the rule's answer all the same.
        let of_page = self.page.as_ref().map(|page| page.asked).filter(|asked| asked.instead_of_response);
        let answer = trouble.answer(self.target.as_deref()).map(Answer::closing);
        if answer.is_none() {
            self.reason = Some(Cow::Borrowed(CLIENT_GONE));
        }
        Err(answer.map(|answer| of_page.map_or(answer, |asked| page_text(asked.status).closing())))
    }

    fn fall_back(&mut self, fallback: &Arc<Target>, asked: ErrorPage) {
        if let Some(origin) = self.target.replace(Arc::clone(fallback)) {
            self.page = Some(Page { origin, asked });
        }
    }

    /// What who makes the error page is asked for.
    pub(crate) fn page_request(&self) -> Option<PageRequest> {
        let Page { origin, asked } = self.page.as_ref()?;
        let mut fields = vec![("x-code", asked.status.to_string().into_bytes())];
        if let Some(original) = &self.original {
            fields.extend(original.accept.clone().map(|accept| ("x-format", accept)));
            fields.push(("x-original-uri", original.uri.clone().into_bytes()));
        }
        let (namespace, name) = origin.ingress.split_once('/').unwrap_or_default();
        for (field, value) in
            [("x-namespace", namespace), ("x-ingress-name", name), ("x-service-name", &origin.service)]
        {
            fields.push((field, value.as_bytes().to_vec()));
        }
        Some(PageRequest { target: asked.instead_of_response.then_some("/"), fields })
    }
}

fn page_text(status: u16) -> Answer {
    Reply::new(status, By::ErrorPage, format!("the endpoint answered with status {status}")).into()
}

impl Said {
    fn of(head: &RequestHead<'_, '_>, callers: Option<TraceId>) -> Self {
        Self {
            method: head.method.to_owned(),
            host: String::new(),
            target: head.target.to_owned(),
            user_agent: String::from_utf8_lossy(head.user_agent).into_owned(),
            callers,
        }
    }
}

impl Proxy {
    /// Brings host and path into normal form and finds the target.
    ///
    /// Cost: two passes over a few bytes each and one lookup; no allocation but for the access log, and for what was not in
    /// normal form.
    pub(crate) fn find<'h, 'b>(
        &self,
        record: &mut Record,
        head: &'h RequestHead<'h, 'b>,
        peer: &'h Peer,
    ) -> Result<Normal<'h, 'b>, Answer> {
        // RFC 9110 §9.2.2.
        record.is_idempotent = matches!(head.method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS");
        record.has_body = !head.body.is_done();
        if peer.trusted {
            let given = head.fields.iter().find(|field| Known::of(field.name) == Known::RequestId);
            record.id = RequestId::of(given.map(|field| field.value), true);
        }
        let callers = self.begin_trace(&mut record.id, head, peer);
        let said =
            self.is_told(record.id.trace()).then(|| record.said.insert(Box::new(Said::of(head, callers))));
        let host = normalize_host(head.host).map_err(Fault::from)?;
        if let Some(said) = said {
            said.host.push_str(&host);
        }
        let path = normalize_path(head.path).map_err(Fault::from)?;
        let target = self.route(&host, &path)?;
        if let Some(handshake) = &peer.tls
            && self.is_misdirected(handshake, &host, &target)
        {
            return Err(Answer::misdirected(&host));
        }
        if let Some(policy) = &target.policy {
            record.is_unlogged = policy.settings.unlogged;
            if policy.settings.untraced {
                record.id.stands_in(None);
            }
        }
        record.target = Some(target);
        let identity = peer.tls.as_ref().and_then(|handshake| handshake.identity.as_ref());
        Ok(Normal { head, host, path, identity })
    }

    /// Finds out where a request stands in a trace, if anybody wants to know. Returns the caller's trace.
    fn begin_trace(&self, id: &mut RequestId, head: &RequestHead<'_, '_>, peer: &Peer) -> Option<TraceId> {
        let Reports { log, tracer } = &self.reports;
        if tracer.is_none() && !log.is_on() {
            return None;
        }
        let mut given = head.fields.iter().filter(|field| Known::of(field.name) == Known::TraceParent);
        // Two of them say nothing.
        let parent = given.next().filter(|_| given.next().is_none());
        let parent = parent.and_then(|field| Parent::parse(field.value));
        id.stands_in(tracer.as_ref().map(|tracer| tracer.begin(parent, peer.trusted)));
        parent.map(|parent| parent.trace())
    }

    /// Whether a request does not belong on its connection: TLS for its host is the endpoints' affair; or many hosts share a
    /// connection of HTTP/2, and this one has another certificate than the client has seen (RFC 9113 §9.1.2).
    ///
    /// Cost where the host is the one that the connection was opened for: one comparison.
    fn is_misdirected(&self, handshake: &Handshake, host: &str, target: &Target) -> bool {
        if target.policy.as_ref().is_some_and(|policy| policy.passthrough) {
            return true;
        }
        match &handshake.name {
            Some(name) if handshake.is_shared && **name != *host => {
                let certificates = self.certificates.load();
                !Arc::ptr_eq(&certificates.choose(name), &certificates.choose(host))
            }
            _ => false,
        }
    }

    /// Asks the policies of the rule that was found.
    pub(crate) fn decide(
        &self,
        record: &mut Record,
        normal: &Normal<'_, '_>,
        peer: &Peer,
    ) -> Option<Decision> {
        let target = record.target.as_ref()?;
        if target.fallback.is_some() {
            let accept = normal.head.fields.iter().find(|field| field.name.eq_ignore_ascii_case("accept"));
            let (uri, accept) = (origin_form(normal), accept.map(|field| field.value.to_vec()));
            record.original = Some(Box::new(Original { uri, accept }));
        }
        let policy = target.policy.as_ref()?;
        let (tls, now) = (peer.tls.is_some(), record.started);
        let client = Client::of(normal, peer.address, tls, &self.trusted, now);
        Some(policy.before(normal, &client, &self.memory))
    }

    /// Waits for what the policies decide.
    pub(crate) async fn settle(&self, record: &mut Record, decision: Option<Decision>) -> Result<(), Answer> {
        if let Some(decision) = decision {
            let passage = self.let_in(decision, &record.id).await?;
            record.passage = Some(passage);
        }
        Ok(())
    }

    pub(super) async fn let_in(&self, decision: Decision, id: &RequestId) -> Result<Box<Passage>, Answer> {
        decision.settled(&self.subrequests.asker(id)).await.map_err(|reply| {
            self.metrics.policies.answered(reply.by);
            Answer::from(reply)
        })
    }

    /// Begins to send the copy that the rule wants of a request with this body. Returns where the body goes, too.
    pub(crate) fn mirror(&self, passage: Option<&mut Passage>, id: &RequestId, body: Body) -> Option<Tee> {
        let passage = passage?;
        let duplicate = passage.take_duplicate()?;
        self.subrequests.mirror(*duplicate, id.as_str(), passage.granted_fields(), body)
    }

    /// Counts a request that is over, and logs it. `status` is 0 when the client got no answer.
    pub(crate) fn account(&self, record: &Record, peer: &Peer, proto: &str, status: u16) {
        let took = record.elapsed();
        let target = record.target.as_deref();
        self.count(target, status, took);
        let trace = record.id.trace();
        if !self.is_told(trace) {
            return;
        }
        let nothing = Said::default();
        let said = record.said.as_deref().unwrap_or(&nothing);
        let line = Line {
            time_ms: 0,
            id: record.id.as_str(),
            trace_id: trace.map(|trace| trace.id).or(said.callers).map(|id| id.to_string()),
            client: &peer.text,
            proto,
            tls: peer.tls.is_some(),
            method: &said.method,
            host: &said.host,
            path: &said.target,
            status,
            bytes_in: record.bytes_in as usize,
            bytes_out: record.bytes_out as usize,
            duration_us: took.as_micros(),
            ingress: target.map_or("", |target| &target.ingress),
            service: target.map_or("", |target| &target.service),
            endpoint: record.endpoint,
            attempts: record.attempts,
            reason: record.reason.as_deref(),
            user_agent: &said.user_agent,
        };
        self.tell(took, !record.is_unlogged, trace, line);
    }
}
