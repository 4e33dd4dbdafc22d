//! The proxy's own answers: a status and one line of text that says why.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::{Context, strict::Fault};
use crate::live::Target;
use crate::policy::{By, Reply};

/// Host and path are repeated to the client up to this many bytes each.
const MAX_ECHO: usize = 200;

/// An answer that no endpoint gave.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) text: Cow<'static, str>,
    /// Fields besides those that every answer has.
    fields: Box<HeaderMap>,
    /// The connection cannot be trusted, or used, any further.
    close: bool,
}

impl Answer {
    pub(super) fn new(status: u16, text: Cow<'static, str>) -> Self {
        Self { status, text, fields: Box::default(), close: false }
    }

    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(super) fn no_rule(host: &str, path: &str) -> Self {
        let (host, path) = (short(host), short(path));
        Self::new(404, Cow::Owned(format!("no Ingress rule matches host {host:?} path {path:?}")))
    }

    pub(super) fn unavailable(why: &str) -> Self {
        Self::new(503, Cow::Owned(why.to_owned()))
    }

    pub(super) fn no_endpoints(target: &Target) -> Self {
        let text =
            format!("Service {:?} of Ingress {} has no ready endpoints", target.service, target.ingress);
        Self::new(503, Cow::Owned(text))
    }
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        // After a request that two parsers may read differently, nobody knows where the next one starts.
        Self::new(fault.status(), Cow::Owned(fault.to_string())).closing()
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        // What is left of a body that is too large is not worth reading.
        Self { status: reply.status, text: reply.text, fields: reply.fields, close: reply.by == By::BodySize }
    }
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ECHO)]
}

/// Sends the answer as plain text.
pub(super) async fn send(session: &mut Session, ctx: &mut Context, answer: Answer) -> pingora::Result<()> {
    let has_body = answer.status != StatusCode::NO_CONTENT.as_u16();
    let body = Bytes::from(format!("{}: {}\n", answer.status, answer.text));
    let mut response = ResponseHeader::build(answer.status, Some(8))?;
    if has_body {
        response
            .insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
        response.insert_header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))?;
        response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    }
    for (name, value) in answer.fields.iter() {
        response.append_header(name, value)?;
    }
    if let Some(passage) = &ctx.passage {
        passage.after(&mut response);
    }
    response.insert_header("x-request-id", ctx.id.clone())?;
    if answer.status == 405 {
        let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS");
        response.insert_header(header::ALLOW, methods)?;
    }
    ctx.reason = Some(answer.text);
    // A client that waits for "100 Continue" will not send the body now.
    if answer.close || session.req_header().headers.contains_key(header::EXPECT) {
        session.set_keepalive(None);
    }
    let head_only = session.req_header().method == Method::HEAD || !has_body;
    session.write_response_header(Box::new(response), head_only).await?;
    if !head_only {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}
