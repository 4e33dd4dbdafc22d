//! Heads of requests and responses, read in place.
//!
//! What two readers of one byte stream could read differently is how requests are smuggled. So a head is read once, by
//! one strict reader, and what it does not understand gets 400 and a closed connection; what goes on to the endpoint is
//! written anew from what was understood.

use std::mem::MaybeUninit;

use httparse::Header;

use super::exchange::Version;
use super::framing::Body;
use crate::policy;
use crate::proxy::Fault;
use crate::table::{HostError, PathError};

/// Fields of one head.
const MAX_FIELDS: usize = 128;

/// Where the fields of a head are noted while it is read: on the stack, and not cleared first.
pub(super) struct Space<'b>([MaybeUninit<Header<'b>>; MAX_FIELDS]);

impl Space<'_> {
    pub(super) const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; MAX_FIELDS])
    }
}

/// Finds the end of a request's head while it arrives, and looks at no byte twice.
#[derive(Debug, Default)]
pub(super) struct HeadEnd {
    seen: usize,
    line: usize,
}

impl HeadEnd {
    /// The length of the head, or nothing while it is incomplete. Empty lines in front of it count as part of it.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        for found in memchr::memchr_iter(b'\n', &bytes[self.seen..]) {
            let at = self.seen + found;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Fault::BareLineFeed);
            }
            let is_empty = at - 1 == self.line;
            let is_first = bytes[..self.line].iter().all(|byte| matches!(byte, b'\r' | b'\n'));
            self.line = at + 1;
            if is_empty && !is_first {
                return Ok(Some(at + 1));
            }
        }
        self.seen = bytes.len();
        Ok(None)
    }
}

/// Fields that mean something to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Connection,
    ContentLength,
    Expect,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedPort,
    ForwardedProto,
    Host,
    KeepAlive,
    ProxyConnection,
    RealIp,
    RequestId,
    Te,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Other,
}

impl Known {
    /// By a field's name in any case. Cost: a jump by length and at most three comparisons.
    pub(super) fn of(name: &str) -> Self {
        let candidates: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Te)],
            4 => &[("host", Self::Host)],
            6 => &[("expect", Self::Expect)],
            7 => &[("upgrade", Self::Upgrade)],
            9 => &[("x-real-ip", Self::RealIp), ("forwarded", Self::Forwarded)],
            10 => &[
                ("connection", Self::Connection),
                ("user-agent", Self::UserAgent),
                ("keep-alive", Self::KeepAlive),
            ],
            12 => &[("x-request-id", Self::RequestId)],
            14 => &[("content-length", Self::ContentLength)],
            15 => &[("x-forwarded-for", Self::ForwardedFor)],
            16 => &[
                ("x-forwarded-host", Self::ForwardedHost),
                ("x-forwarded-port", Self::ForwardedPort),
                ("proxy-connection", Self::ProxyConnection),
            ],
            17 => {
                &[("transfer-encoding", Self::TransferEncoding), ("x-forwarded-proto", Self::ForwardedProto)]
            }
            _ => &[],
        };
        let found = candidates.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
        found.map_or(Self::Other, |(_, known)| *known)
    }

    /// Whether it concerns one connection only (RFC 9110 §7.6.1).
    pub(super) fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::KeepAlive | Self::ProxyConnection | Self::Te | Self::Upgrade)
    }
}

/// What `Connection` says.
#[expect(clippy::struct_excessive_bools, reason = "each is a token of one field")]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Other fields that concern this connection only.
    pub(super) nominates: bool,
}

impl Connection {
    fn read(&mut self, value: &[u8]) {
        for token in tokens(value) {
            match token {
                _ if token.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if token.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                _ if token.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                _ => self.nominates = true,
            }
        }
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Whether one of these protocols carries more requests, which would go past routing and policies to whichever endpoint
/// took the first: `h2c` and its like. It is not asked for, and the request is served as it is (RFC 9110 §7.8).
fn speaks_http(protocols: &[u8]) -> bool {
    tokens(protocols).any(|protocol| {
        let name = protocol.split(|&byte| byte == b'/').next().unwrap_or_default();
        [b"h2c".as_slice(), b"h2", b"http", b"tls"].iter().any(|carrier| name.eq_ignore_ascii_case(carrier))
    })
}

/// Whether a field named `Connection` names this one. Framing and routing cannot be talked away so.
pub(super) fn is_nominated(fields: &[Header<'_>], name: &str, known: Known) -> bool {
    !matches!(known, Known::Host | Known::ContentLength | Known::TransferEncoding)
        && fields
            .iter()
            .filter(|field| Known::of(field.name) == Known::Connection)
            .any(|field| tokens(field.value).any(|token| token.eq_ignore_ascii_case(name.as_bytes())))
}

/// A request's head.
#[derive(Debug)]
pub(super) struct RequestHead<'h, 'b> {
    pub(super) method: &'b str,
    /// As it came, to be brought into normal form.
    pub(super) path: &'b str,
    pub(super) query: Option<&'b str>,
    /// The whole target as it came.
    pub(super) target: &'b str,
    pub(super) version: Version,
    pub(super) fields: &'h [Header<'b>],
    /// The host as the client wrote it; empty for none.
    pub(super) host: &'b str,
    pub(super) body: Body,
    pub(super) connection: Connection,
    /// The protocol to change to, if the client asks for that in earnest.
    pub(super) upgrade: Option<&'b [u8]>,
    pub(super) expects: bool,
    pub(super) user_agent: &'b [u8],
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Reads a whole head. Cost: one pass for the syntax, one over the fields; no allocation.
    pub(super) fn read(bytes: &'b [u8], space: &'h mut Space<'b>) -> Result<Self, Fault> {
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, &mut space.0) {
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Fault::TooManyFields),
            Ok(httparse::Status::Partial) | Err(_) => return Err(Fault::Malformed),
        }
        let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
        else {
            return Err(Fault::Malformed);
        };
        let fields: &'h [Header<'b>] = request.headers;
        match method {
            "TRACE" => return Err(Fault::Trace),
            "CONNECT" => return Err(Fault::Connect),
            _ => {}
        }
        let version = if minor == 0 { Version::Old } else { Version::New };
        let (authority, path, query) = split_target(target)?;
        let mut head = Self {
            method,
            path,
            query,
            target,
            version,
            fields,
            host: "",
            body: Body::Done,
            connection: Connection::default(),
            upgrade: None,
            expects: false,
            user_agent: b"",
        };
        head.read_fields(authority)?;
        Ok(head)
    }

    fn read_fields(&mut self, authority: Option<&'b str>) -> Result<(), Fault> {
        let is_old = self.version == Version::Old;
        let (mut host, mut length, mut chunked) = (None, None, false);
        for field in self.fields {
            match Known::of(field.name) {
                Known::Host if host.is_some() => return Err(Fault::TwoHosts),
                Known::Host => {
                    let text = std::str::from_utf8(field.value).map_err(|_| HostError::Character)?;
                    host = Some(text);
                }
                Known::ContentLength if length.is_some() => return Err(Fault::Length),
                Known::ContentLength => length = Some(read_length(field.value).ok_or(Fault::Length)?),
                Known::TransferEncoding if chunked || !field.value.eq_ignore_ascii_case(b"chunked") => {
                    return Err(Fault::TransferEncoding);
                }
                Known::TransferEncoding => chunked = true,
                Known::Connection => self.connection.read(field.value),
                Known::Upgrade => self.upgrade = Some(field.value),
                Known::Expect => self.expects = true,
                Known::UserAgent => self.user_agent = field.value,
                _ => {}
            }
        }
        self.body = match (length, chunked) {
            (Some(_), true) => return Err(Fault::TwoLengths),
            (None, true) if is_old => return Err(Fault::TransferEncoding),
            (None, true) => Body::CHUNKED,
            (length, false) => Body::of(length.unwrap_or(0)),
        };
        self.host = match (authority, host) {
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
                return Err(Fault::HostsDiffer);
            }
            (Some(authority), _) => authority,
            (None, Some(host)) => host,
            (None, None) if is_old => "",
            (None, None) => return Err(Fault::NoHost),
        };
        // What is asked for while a body is sent, or by a client too old for it, is not meant.
        let is_meant = self.connection.upgrade && !is_old && self.body.is_done();
        self.upgrade = self.upgrade.filter(|protocols| is_meant && !speaks_http(protocols));
        Ok(())
    }

    /// Whether the client means to use the connection again.
    pub(super) fn keeps_alive(&self) -> bool {
        !self.connection.close && (self.version == Version::New || self.connection.keep_alive)
    }
}

/// A request as policies see it: with host and path in normal form.
pub(super) struct Normal<'a> {
    pub(super) head: &'a RequestHead<'a, 'a>,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
}

impl policy::RequestHead for Normal<'_> {
    fn method(&self) -> &str {
        self.head.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        self.head.query
    }

    fn host(&self) -> &str {
        self.host
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.head.fields.iter();
        fields.find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.head
            .fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }
}

/// Authority, path and query of `GET /path?query` and of `GET http://authority/path?query`.
fn split_target(target: &str) -> Result<(Option<&str>, &str, Option<&str>), Fault> {
    if target.contains('#') {
        return Err(PathError::Character.into());
    }
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let (authority, origin_form) = match scheme {
        None => (None, target),
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
    };
    let (path, query) = match origin_form.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin_form, None),
    };
    Ok((authority, if path.is_empty() && authority.is_some() { "/" } else { path }, query))
}

/// Digits and nothing else.
fn read_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A response that is not HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint's response is malformed")]
pub(super) struct BadResponse;

/// A response's head.
#[derive(Debug)]
pub(super) struct ResponseHead<'h, 'b> {
    pub(super) status: u16,
    pub(super) reason: &'b str,
    pub(super) fields: &'h [Header<'b>],
    pub(super) body: Body,
    pub(super) connection: Connection,
    /// Bytes that the head has.
    pub(super) length: usize,
    /// Whether the endpoint means to use the connection again.
    pub(super) keeps_alive: bool,
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// Reads a head if all of it is there. `is_to_head`: it answers HEAD, and so has no body.
    pub(super) fn read(
        bytes: &'b [u8],
        space: &'h mut Space<'b>,
        is_to_head: bool,
    ) -> Result<Option<Self>, BadResponse> {
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut space.0,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(BadResponse),
        };
        let (Some(status @ 100..), Some(minor)) = (response.code, response.version) else {
            return Err(BadResponse);
        };
        let fields: &'h [Header<'b>] = response.headers;
        let mut connection = Connection::default();
        let (mut said, mut chunked) = (None, false);
        for field in fields {
            match Known::of(field.name) {
                Known::Connection => connection.read(field.value),
                Known::ContentLength => {
                    let length = read_length(field.value).ok_or(BadResponse)?;
                    if said.is_some_and(|said| said != length) {
                        return Err(BadResponse);
                    }
                    said = Some(length);
                }
                Known::TransferEncoding if chunked || !field.value.eq_ignore_ascii_case(b"chunked") => {
                    return Err(BadResponse);
                }
                Known::TransferEncoding => chunked = true,
                _ => {}
            }
        }
        let body = match (status, said, chunked) {
            (_, Some(_), true) => return Err(BadResponse),
            (101, ..) => Body::Tunnel,
            (..200 | 204 | 304, ..) => Body::Done,
            _ if is_to_head => Body::Done,
            (_, None, true) => Body::CHUNKED,
            (_, Some(length), false) => Body::of(length),
            (_, None, false) => Body::UntilClose,
        };
        let keeps_alive = !connection.close && (minor == 1 || connection.keep_alive);
        let reason = response.reason.unwrap_or_default();
        Ok(Some(Self { status, reason, fields, body, connection, length, keeps_alive }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(head: &str) -> Fault {
        RequestHead::read(head.as_bytes(), &mut Space::new()).unwrap_err()
    }

    #[test]
    fn the_end_is_found_however_the_head_arrives() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
        for step in 1..head.len() {
            let mut end = HeadEnd::default();
            let found = (1..)
                .map(|turn| (turn * step).min(head.len()))
                .find_map(|length| end.find(&head[..length]).unwrap());
            assert_eq!(found, Some(head.len() - 3), "in steps of {step}");
        }
    }

    #[test]
    fn bare_line_feeds_are_seen_at_once() {
        for head in
            ["\n", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nHost: a\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\n"]
        {
            assert_eq!(HeadEnd::default().find(head.as_bytes()), Err(Fault::BareLineFeed), "{head:?}");
        }
    }

    #[test]
    fn names_are_known_in_any_case() {
        for (name, known) in [
            ("HOST", Known::Host),
            ("te", Known::Te),
            ("Keep-Alive", Known::KeepAlive),
            ("X-Forwarded-For", Known::ForwardedFor),
            ("x-forwarded-proto", Known::ForwardedProto),
            ("X-Forwarded-Fox", Known::Other),
            ("accept", Known::Other),
            ("", Known::Other),
        ] {
            assert_eq!(Known::of(name), known, "{name}");
        }
    }

    #[test]
    fn a_request_is_understood() {
        let bytes = b"POST /a?b=c HTTP/1.1\r\nHost: x.com\r\nContent-Length: 3\r\nConnection: close, X-One\r\nX-One: 1\r\n\
            User-Agent: test\r\nExpect: 100-continue\r\n\r\nabc";
        let mut space = Space::new();
        let head = RequestHead::read(bytes, &mut space).unwrap();
        assert_eq!((head.method, head.path, head.query, head.host), ("POST", "/a", Some("b=c"), "x.com"));
        assert_eq!((head.body, head.user_agent, head.expects), (Body::Length(3), b"test".as_slice(), true));
        assert!(!head.keeps_alive() && head.connection.nominates);
        assert!(is_nominated(head.fields, "x-one", Known::Other));
        assert!(!is_nominated(head.fields, "x-two", Known::Other));
    }

    #[test]
    fn only_protocols_that_carry_no_requests_are_asked_for() {
        for (protocols, asked) in [
            ("websocket", true),
            ("SPDY/3.1", true),
            ("h2c", false),
            ("H2C", false),
            ("websocket, h2c", false),
            ("HTTP/2.0", false),
            ("TLS/1.2", false),
        ] {
            let text =
                format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {protocols}\r\n\r\n");
            let mut space = Space::new();
            let head = RequestHead::read(text.as_bytes(), &mut space).unwrap();
            assert_eq!(head.upgrade.is_some(), asked, "{protocols}");
        }
    }

    #[test]
    fn targets_have_three_parts() {
        for (target, expected) in [
            ("/a?b?c", (None, "/a", Some("b?c"))),
            ("*", (None, "*", None)),
            ("http://x.com:80/a?b", (Some("x.com:80"), "/a", Some("b"))),
            ("HTTPS://x.com", (Some("x.com"), "/", None)),
            ("http://x.com?b", (Some("x.com"), "/", Some("b"))),
        ] {
            assert_eq!(split_target(target), Ok(expected), "{target}");
        }
        assert!(split_target("/a#b").is_err());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let with = |fields: &str| fault(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        for (fields, expected) in [
            ("Host: b", Fault::TwoHosts),
            ("Content-Length: 1\r\nContent-Length: 1", Fault::Length),
            ("Content-Length: 1, 1", Fault::Length),
            ("Content-Length: +1", Fault::Length),
            ("Content-Length: 99999999999999999999", Fault::Length),
            ("Content-Length:", Fault::Length),
            ("Transfer-Encoding: gzip, chunked", Fault::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Fault::TransferEncoding),
            ("Transfer-Encoding: chunked\r\ncontent-LENGTH: 1", Fault::TwoLengths),
            ("A: b\r\n c", Fault::Malformed),
            ("A : b", Fault::Malformed),
            ("A: b\0", Fault::Malformed),
        ] {
            assert_eq!(with(fields), expected, "{fields:?}");
        }
        assert_eq!(fault("GET / HTTP/1.1\r\n\r\n"), Fault::NoHost);
        assert_eq!(fault("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"), Fault::HostsDiffer);
        assert_eq!(fault("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), Fault::Trace);
        assert_eq!(fault("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Fault::TransferEncoding);
        let many = "x: y\r\n".repeat(MAX_FIELDS);
        assert_eq!(with(many.trim_end()), Fault::TooManyFields);
    }

    #[test]
    fn responses_say_how_long_they_are() {
        let body = |head: &str, is_to_head| {
            let mut space = Space::new();
            ResponseHead::read(head.as_bytes(), &mut space, is_to_head).map(|head| head.map(|head| head.body))
        };
        for (fields, expected) in [
            ("200 OK\r\nContent-Length: 3", Ok(Some(Body::Length(3)))),
            ("200 OK\r\nContent-Length: 3\r\nContent-Length: 3", Ok(Some(Body::Length(3)))),
            ("200 OK\r\nContent-Length: 3\r\nContent-Length: 4", Err(BadResponse)),
            ("200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", Err(BadResponse)),
            ("200 OK\r\nTransfer-Encoding: chunked", Ok(Some(Body::CHUNKED))),
            ("200 OK\r\nTransfer-Encoding: gzip", Err(BadResponse)),
            ("200\r\nA: b", Ok(Some(Body::UntilClose))),
            ("204 No Content\r\nA: b", Ok(Some(Body::Done))),
            ("304 Not Modified\r\nContent-Length: 3", Ok(Some(Body::Done))),
            ("100 Continue\r\nA: b", Ok(Some(Body::Done))),
            ("101 Switching Protocols\r\nUpgrade: websocket", Ok(Some(Body::Tunnel))),
        ] {
            assert_eq!(body(&format!("HTTP/1.1 {fields}\r\n\r\n"), false), expected, "{fields}");
        }
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true), Ok(Some(Body::Done)));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Le", false), Ok(None));
        assert_eq!(body("SSH-2.0\r\n\r\n", false), Err(BadResponse));
    }
}
