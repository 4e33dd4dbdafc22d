//! The phases of a request, as pingora calls them.

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};

use super::context::{Context, ErrorPage};
use super::{
    Answer, CLIENT_GONE, Fault, Proxy, RequestId, Trouble, failure, headers, policies, respond, strict,
};
use crate::access_log::Line;
use crate::policy::{Client, Decision};
use crate::serve::Guard;
use crate::table::{normalize_host, normalize_path};
use crate::upstream::Balance;

/// When the answer is the proxy's own, what is left of the request's body is read this long, so that the
/// connection can be used again.
const BODY_DRAIN: Duration = Duration::from_secs(2);

/// The handler of requests that pingora serves.
pub(crate) struct Phases(pub(crate) Arc<Proxy>);

impl Phases {
    /// Refuses, or brings host and path into normal form, finds the target, and asks its policy.
    fn admit(&self, session: &mut Session, ctx: &mut Context) -> Result<Option<Decision>, Answer> {
        let request = session.req_header();
        if session.as_http1().is_some() {
            strict::check_raw_head(&session.to_h1_raw(), request)?;
        }
        strict::check_request(request)?;
        let host = normalize_host(strict::written_host(request)?).map_err(Fault::from)?;
        let path = normalize_path(request.uri.path()).map_err(Fault::from)?;
        ctx.host.push_str(&host);
        let target = self.0.route(&host, &path)?;
        let decision = target.policy.as_ref().zip(ctx.peer.as_ref()).map(|(policy, peer)| {
            let head = policies::Head { request, host: &host, path: &path };
            let client = Client::of(&head, peer.address, peer.tls, &self.0.trusted);
            policy.before(&head, &client, &self.0.memory)
        });
        // One form is routed on and forwarded; also `GET http://host/path` becomes `GET /path`.
        if matches!(path, Cow::Owned(_)) || !request.raw_path().starts_with(b"/") {
            let mut origin_form = path.into_owned();
            if let Some(query) = request.uri.query() {
                origin_form.push('?');
                origin_form.push_str(query);
            }
            rewrite(session.req_header_mut(), &origin_form).map_err(|_| Answer::from(Fault::Rewrite))?;
        }
        ctx.target = Some(target);
        Ok(decision)
    }

    /// Makes sure that the target has endpoints, or another one takes its place.
    fn find_endpoints(ctx: &mut Context) -> Result<(), Answer> {
        let Some(target) = ctx.target.clone() else { return Ok(()) };
        if let Some(canary) = ctx.passage.as_ref().and_then(|passage| target.canary_for(passage)) {
            ctx.target = Some(Arc::clone(canary));
            return Ok(());
        }
        if !target.has_endpoints()
            && let Some(fallback) = target.fallback.clone().filter(|fallback| fallback.has_endpoints())
        {
            ctx.fall_back(fallback, ErrorPage { status: 503, instead_of_response: false });
            return Ok(());
        }
        target.endpoints().map(|_| ())
    }
}

/// Replaces the request's target. HTTP/2's authority lives in the target, so it moves to `Host` first.
pub(super) fn rewrite(request: &mut RequestHeader, origin_form: &str) -> pingora::Result<()> {
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority().cloned()
    {
        request.insert_header(header::HOST, authority.as_str())?;
    }
    request.set_raw_path(origin_form.as_bytes())
}

fn peer_address(session: &Session) -> SocketAddr {
    let address = session.client_addr().and_then(|address| address.as_inet()).copied();
    address.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())
}

#[async_trait]
impl ProxyHttp for Phases {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new(&self.0.metrics)
    }

    /// None: pingora's only default module is compression, which costs time even when it is off.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> pingora::Result<bool> {
        if let Some(guard) = session.stream().and_then(Guard::of) {
            guard.head_is_complete();
        }
        session.set_read_timeout(Some(self.0.timeouts.client));
        session.set_write_timeout(Some(self.0.timeouts.client));
        session.set_total_drain_timeout(Some(BODY_DRAIN));
        let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let peer = ctx.peer.insert(self.0.peer(peer_address(session), tls));
        let given = session.req_header().headers.get("x-request-id").map(HeaderValue::as_bytes);
        ctx.id = Some(RequestId::of(given, peer.trusted));
        let admitted = match self.admit(session, ctx) {
            Ok(None) => Ok(()),
            Ok(Some(decision)) => {
                let body = policies::body_of(session.req_header());
                policies::carry_out(decision, body, ctx, &self.0).await
            }
            Err(refusal) => Err(refusal),
        };
        match admitted.and_then(|()| Self::find_endpoints(ctx)) {
            Ok(()) => Ok(false),
            Err(refusal) => {
                respond::send(session, ctx, refusal).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut Context) -> pingora::Result<Box<HttpPeer>> {
        ctx.chosen = None; // no longer in flight there
        let pool = ctx.target.as_ref().and_then(|target| target.backend.as_ref().ok());
        if ctx.attempts > 0 && ctx.error_page.is_none() {
            self.0.metrics.retries.inc();
        } else if let Some(pool) = pool {
            pool.earn_retries();
        }
        ctx.attempts += 1;
        let rank_by = ctx.passage.as_ref().and_then(|passage| passage.rank_by());
        let balance =
            ctx.passage.as_ref().map_or_else(Balance::default, |passage| passage.upstream().balance);
        let Some(chosen) = pool.and_then(|pool| pool.choose(balance, rank_by, &ctx.failed)) else {
            // The last endpoint went away, or every one was tried.
            let code = if ctx.failed.is_empty() { 503 } else { 502 };
            return Err(Error::explain(ErrorType::HTTPStatus(code), "no endpoint left to try"));
        };
        let mut peer = chosen.peer();
        ctx.chosen = Some(chosen);
        policies::begin_attempt(&mut peer, ctx);
        Ok(peer)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> pingora::Result<()> {
        let (Some(peer), Some(id)) = (&ctx.peer, &ctx.id) else { return Ok(()) };
        let given = upstream_request.headers.get(header::HOST).cloned();
        let authority = session.req_header().uri.authority().map(http::uri::Authority::as_str);
        let host = given.as_ref().and_then(|host| host.to_str().ok()).or(authority).unwrap_or_default();
        headers::forward(upstream_request, peer, host, id, &self.0.trusted)?;
        policies::edit_request(upstream_request, session, ctx)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut Context,
    ) -> pingora::Result<()> {
        policies::copy_body(body.as_ref(), is_end, ctx);
        match body {
            Some(bytes) if ctx.passage.is_some() => {
                policies::take_body(bytes.len(), session, ctx, &self.0.metrics)
            }
            _ => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        upstream_response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> pingora::Result<()> {
        failure::judge_response(&self.0.metrics, session, ctx, upstream_response.status.as_u16())?;
        headers::strip_hop_by_hop(upstream_response);
        // Of several heads the last is the answer.
        let is_last = !upstream_response.status.is_informational()
            || upstream_response.status == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(passage) = ctx.passage.as_ref().filter(|_| is_last) {
            passage.after(upstream_response.status.as_u16(), upstream_response);
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Context,
        error: Box<Error>,
    ) -> Box<Error> {
        failure::connecting(&self.0.metrics, ctx, error)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Context,
        client_reused: bool,
    ) -> Box<Error> {
        failure::exchanging(&self.0.metrics, session, ctx, error, client_reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        // Also when the error page could not be had: it is the rule's answer all the same.
        let refusal = ctx.refusal.take().filter(|_| *error.esource() != ErrorSource::Downstream);
        let answer = refusal.or_else(|| Trouble::from(error).answer(ctx.target.as_deref()));
        let error_code = answer.as_ref().map_or(0, |answer| answer.status);
        if let Some(answer) = answer {
            // A response that has begun cannot be taken back; the client sees it break off.
            let begun = session.response_written().is_some_and(|sent| !sent.status.is_informational());
            if begun {
                ctx.reason.get_or_insert(answer.text);
            } else {
                let _ = respond::send(session, ctx, answer.closing()).await;
            }
        } else {
            ctx.reason.get_or_insert(Cow::Borrowed(CLIENT_GONE));
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    /// The access log has it, and the metrics; pingora's own line would be a third.
    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Context, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        let took = ctx.started.elapsed();
        let status = session.response_written().map_or(0, |sent| sent.status.as_u16());
        let target = ctx.target.as_deref();
        self.0.count(target, status, took);
        if !self.0.is_logging() {
            return;
        }
        let request = session.req_header();
        let cause = error.map(ToString::to_string);
        let text = |name| request.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let line = Line {
            time_ms: 0,
            id: ctx.id.as_ref().map_or("", RequestId::as_str),
            client: ctx.peer.as_ref().map_or("", |peer| &peer.text),
            proto: match request.version {
                http::Version::HTTP_2 => "HTTP/2",
                http::Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            tls: ctx.peer.as_ref().is_some_and(|peer| peer.tls),
            method: request.method.as_str(),
            host: &ctx.host,
            path: request.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str),
            status,
            bytes_in: session.body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
            duration_us: took.as_micros(),
            ingress: target.map_or("", |target| &target.ingress),
            service: target.map_or("", |target| &target.service),
            endpoint: ctx.chosen.as_ref().map(|chosen| chosen.address()),
            attempts: ctx.attempts,
            reason: ctx.reason.as_deref(),
            cause: cause.as_deref(),
            user_agent: text(header::USER_AGENT).unwrap_or_default(),
        };
        self.0.log(took, line);
    }
}
