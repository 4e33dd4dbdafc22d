//! Responses: what their heads say.

use httparse::Header;

use super::{Connection, Known, Space, read_length};
use crate::wire::Body;

/// A response that is not HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint's response is malformed")]
pub(crate) struct BadResponse;

/// A response's head.
#[derive(Debug)]
pub(crate) struct ResponseHead<'h, 'b> {
    pub(crate) status: u16,
    pub(crate) reason: &'b str,
    pub(crate) fields: &'h [Header<'b>],
    pub(crate) body: Body,
    pub(crate) connection: Connection,
    /// Bytes that the head has.
    pub(crate) length: usize,
    /// Whether the endpoint means to use the connection again.
    pub(crate) keeps_alive: bool,
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// Reads a head if all of it is there. `is_to_head`: it answers HEAD, and so has no body.
    pub(crate) fn read(
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
