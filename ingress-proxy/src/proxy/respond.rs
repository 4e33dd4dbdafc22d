//! The proxy's own answers: a status and one line of text that says why.

use std::borrow::Cow;
use std::io::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::{Fault, RequestId};
use crate::live::Target;
use crate::policy::{By, Reply};

/// Host and path are repeated to the client up to this many bytes each.
const MAX_ECHO: usize = 200;
/// What is served, for who asked for something else.
const ALLOW: (&str, &str) = ("allow", "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS");

/// An answer that no endpoint gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: Cow<'static, str>,
    /// Fields besides those that every answer has.
    pub(crate) more: Box<HeaderMap>,
    /// The connection cannot be trusted, or used, any further.
    pub(crate) close: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, text: Cow<'static, str>) -> Self {
        Self { status, text, more: Box::default(), close: false }
    }

    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(crate) fn no_rule(host: &str, path: &str) -> Self {
        let (host, path) = (short(host), short(path));
        Self::new(404, Cow::Owned(format!("no Ingress rule matches host {host:?} path {path:?}")))
    }

    pub(crate) fn misdirected(host: &str) -> Self {
        let host = short(host);
        Self::new(421, Cow::Owned(format!("host {host:?} is not served on a connection for another one")))
    }

    pub(crate) fn unavailable(why: &str) -> Self {
        Self::new(503, Cow::Owned(why.to_owned()))
    }

    pub(crate) fn no_endpoints(target: &Target) -> Self {
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
        Self { status: reply.status, text: reply.text, more: reply.fields, close: reply.by == By::BodySize }
    }
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_ECHO)]
}

impl Answer {
    /// A line of text, but for the status that has none.
    fn body(&self) -> Option<String> {
        (self.status != StatusCode::NO_CONTENT.as_u16()).then(|| format!("{}: {}\n", self.status, self.text))
    }

    /// Every field but those that concern the connection.
    fn fields<'a>(&'a self, body: Option<&'a str>, id: &'a str) -> Vec<(&'a str, Cow<'a, [u8]>)> {
        let mut fields: Vec<(&str, Cow<'_, [u8]>)> = Vec::with_capacity(8);
        if let Some(body) = body {
            fields.extend([
                ("content-type", Cow::Borrowed(b"text/plain; charset=utf-8".as_slice())),
                ("x-content-type-options", Cow::Borrowed(b"nosniff".as_slice())),
                ("cache-control", Cow::Borrowed(b"no-store".as_slice())),
                ("content-length", Cow::Owned(body.len().to_string().into_bytes())),
            ]);
        }
        fields.push(("x-request-id", Cow::Borrowed(id.as_bytes())));
        if self.status == 405 {
            fields.push((ALLOW.0, Cow::Borrowed(ALLOW.1.as_bytes())));
        }
        fields.extend(self.more.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_bytes()))));
        fields
    }

    /// Writes the answer as HTTP/1.1. `close` adds that the connection will not be used again. Returns the length of the
    /// body, which an answer to HEAD only tells of.
    pub(crate) fn write(&self, out: &mut Vec<u8>, id: &RequestId, is_to_head: bool, close: bool) -> usize {
        let body = self.body();
        let reason = StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        // Writing into memory does not fail.
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason.unwrap_or_default());
        for (name, value) in self.fields(body.as_deref(), id.as_str()) {
            out.extend([name.as_bytes(), b": ", &value, b"\r\n"].concat());
        }
        out.extend_from_slice(if close { b"connection: close\r\n\r\n" } else { b"\r\n" });
        let body = body.filter(|_| !is_to_head).unwrap_or_default();
        out.extend_from_slice(body.as_bytes());
        body.len()
    }

    /// The answer as HTTP/2 has it, and its body.
    pub(crate) fn response(&self, id: &RequestId) -> (Response<()>, Option<String>) {
        let body = self.body();
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        for (name, value) in self.fields(body.as_deref(), id.as_str()) {
            // All are fields by their making.
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value))
            {
                response.headers_mut().append(name, value);
            }
        }
        (response, body)
    }
}
