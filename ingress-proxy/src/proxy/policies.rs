//! Policies in pingora's terms: heads for them to look at, and what they decide, done.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};

use super::Proxy;
use super::context::Context;
use super::phases::rewrite;
use super::respond::Answer;
use super::strict::written_host;
use crate::metrics::Metrics;
use crate::policy::{Decision, RequestHead, ResponseHead};
use crate::wire::{Body, read_length};

/// A request head, with host and path in normal form.
pub(super) struct Head<'a> {
    pub(super) request: &'a RequestHeader,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
}

impl RequestHead for Head<'_> {
    fn method(&self) -> &str {
        self.request.method.as_str()
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        self.request.uri.query()
    }

    fn host(&self) -> &str {
        self.host
    }

    fn authority(&self) -> &str {
        written_host(self.request).unwrap_or_default()
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.request.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.request.headers.get_all(name).iter().map(HeaderValue::as_bytes)
    }

    fn every_field(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
    }
}

impl ResponseHead for ResponseHeader {
    fn has(&self, name: &HeaderName) -> bool {
        self.headers.contains_key(name)
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        let _ = self.insert_header(name, value); // fails for what is no name or value
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        let _ = self.append_header(name, value);
    }
}

/// Lets the request in, or says what the client hears.
pub(super) async fn carry_out(
    decision: Decision,
    body: Body,
    ctx: &mut Context,
    proxy: &Proxy,
) -> Result<(), Answer> {
    let Some(id) = &ctx.id else { return Ok(()) };
    let mut passage = proxy.let_in(decision, id.as_str()).await?;
    ctx.tee = proxy.mirror(Some(&mut passage), id, body);
    ctx.passage = Some(passage);
    Ok(())
}

/// The body that a request's fields announce.
pub(super) fn body_of(request: &RequestHeader) -> Body {
    let length = request.headers.get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes);
    match length.and_then(read_length) {
        Some(length) => Body::of(length),
        None if request.headers.contains_key(header::TRANSFER_ENCODING) => Body::CHUNKED,
        None => Body::Done,
    }
}

/// Copies a piece of the body. What is sent again was copied before, in part: that is no copy any more.
pub(super) fn copy_body(bytes: Option<&Bytes>, is_end: bool, ctx: &mut Context) {
    if ctx.attempts > 1 {
        ctx.tee = None;
    }
    let Some(tee) = &mut ctx.tee else { return };
    if let Some(bytes) = bytes {
        tee.push(bytes.clone());
    }
    if is_end {
        tee.end();
    }
}

/// Sets the rule's own timeouts.
pub(super) fn begin_attempt(peer: &mut HttpPeer, ctx: &mut Context) {
    let Some(passage) = &mut ctx.passage else { return };
    passage.begin_attempt();
    let upstream = passage.upstream();
    let options = &mut peer.options;
    if let Some(connect) = upstream.connect {
        options.connection_timeout = Some(connect);
        options.total_connection_timeout = Some(connect);
    }
    options.read_timeout = upstream.read.or(options.read_timeout);
    options.write_timeout = upstream.send.or(options.write_timeout);
}

/// Tells the endpoint what the policy says, and a fallback what it is to make a page for.
pub(super) fn edit_request(
    request: &mut RequestHeader,
    session: &Session,
    ctx: &Context,
) -> pingora::Result<()> {
    if let Some(passage) = &ctx.passage {
        let dropped: Vec<HeaderName> =
            request.headers.keys().filter(|name| passage.drops(name.as_str())).cloned().collect();
        for name in dropped {
            request.remove_header(&name);
        }
        for (name, value) in passage.fields() {
            request.append_header(name, value)?;
        }
        if let Some(target) = passage.target() {
            rewrite(request, target)?;
        }
        if let Some(host) = passage.host() {
            // HTTP/2 has the client's host in the target.
            if request.uri.authority().is_some() {
                let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
                rewrite(request, &target)?;
            }
            request.insert_header(header::HOST, host)?;
        }
    }
    let Some(page) = ctx.error_page else { return Ok(()) };
    let original = session.req_header().uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
    if page.instead_of_response {
        rewrite(request, "/")?;
    }
    if let Some(accept) = request.headers.get(header::ACCEPT).cloned() {
        request.insert_header("x-format", accept)?;
    }
    request.insert_header("x-code", HeaderValue::from(page.status))?;
    request.insert_header("x-original-uri", original)?;
    if let Some(target) = &ctx.origin {
        let (namespace, name) = target.ingress.split_once('/').unwrap_or_default();
        request.insert_header("x-namespace", namespace)?;
        request.insert_header("x-ingress-name", name)?;
        request.insert_header("x-service-name", &*target.service)?;
    }
    Ok(())
}

/// Counts the request's body where it is limited. What flows after an upgrade is no body.
pub(super) fn take_body(
    bytes: usize,
    session: &Session,
    ctx: &mut Context,
    metrics: &Metrics,
) -> pingora::Result<()> {
    let Some(passage) = &mut ctx.passage else { return Ok(()) };
    if session.was_upgraded() {
        return Ok(());
    }
    passage.take_body(bytes).map_err(|reply| {
        metrics.policies.answered(reply.by);
        let status = reply.status;
        ctx.refusal = Some(reply.into());
        Error::explain(ErrorType::HTTPStatus(status), "the request body is larger than the rule allows")
    })
}
