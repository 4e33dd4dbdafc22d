//! Requests: where their heads end, and what they say.

use std::borrow::Cow;

use httparse::Header;

use super::{Connection, Known, Space, Version, read_length, tokens};
use crate::policy;
use crate::proxy::Fault;
use crate::table::{HostError, PathError};
use crate::wire::Body;

/// Finds the end of a request's head while it arrives, and looks at no byte twice.
#[derive(Debug, Default)]
pub(crate) struct HeadEnd {
    seen: usize,
    line: usize,
}

impl HeadEnd {
    /// The length of the head, or nothing while it is incomplete. Empty lines in front of it count as part of it.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
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

/// A request's head.
#[derive(Debug)]
pub(crate) struct RequestHead<'h, 'b> {
    pub(crate) method: &'b str,
    /// As it came, to be brought into normal form.
    pub(crate) path: &'b str,
    pub(crate) query: Option<&'b str>,
    /// The whole target as it came.
    pub(crate) target: &'b str,
    pub(crate) version: Version,
    pub(crate) fields: &'h [Header<'b>],
    /// The host as the client wrote it; empty for none.
    pub(crate) host: &'b str,
    pub(crate) body: Body,
    pub(crate) connection: Connection,
    /// The protocol to change to, if the client asks for that in earnest.
    pub(crate) upgrade: Option<&'b [u8]>,
    pub(crate) expects: bool,
    /// The body comes without HTTP/1.1's framing and is put into chunks here.
    pub(crate) chunks: bool,
    pub(crate) user_agent: &'b [u8],
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// Reads a whole head. Cost: one pass for the syntax, one over the fields; no allocation.
    pub(crate) fn read(bytes: &'b [u8], space: &'h mut Space<'b>) -> Result<Self, Fault> {
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
            chunks: false,
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
    pub(crate) fn keeps_alive(&self) -> bool {
        !self.connection.close && (self.version == Version::New || self.connection.keep_alive)
    }
}

/// Whether one of these protocols carries more requests, which would go past routing and policies to whichever endpoint
/// took the first: `h2c` and its like. It is not asked for, and the request is served as it is (RFC 9110 §7.8).
fn speaks_http(protocols: &[u8]) -> bool {
    tokens(protocols).any(|protocol| {
        let name = protocol.split(|&byte| byte == b'/').next().unwrap_or_default();
        [b"h2c".as_slice(), b"h2", b"http", b"tls"].iter().any(|carrier| name.eq_ignore_ascii_case(carrier))
    })
}

/// A request as policies see it: with host and path in normal form.
pub(crate) struct Normal<'h, 'b> {
    pub(crate) head: &'h RequestHead<'h, 'b>,
    pub(crate) host: Cow<'b, str>,
    pub(crate) path: Cow<'b, str>,
    pub(crate) identity: Option<&'h policy::Identity>,
}

impl policy::RequestHead for Normal<'_, '_> {
    fn method(&self) -> &str {
        self.head.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.head.query
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn authority(&self) -> &str {
        self.head.host
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

    fn identity(&self) -> Option<&policy::Identity> {
        self.identity
    }

    fn every_field(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.head.fields.iter().map(|field| (field.name, field.value))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::head::{MAX_FIELDS, is_nominated};

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
}
