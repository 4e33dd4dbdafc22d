//! What is refused before it is routed.
//!
//! pingora's parser is lenient where leniency is how requests are smuggled: two readers of one byte stream
//! that disagree about where a request ends. Here a request is looked at as it came, and what another parser
//! might read differently gets 400 and a closed connection.

use http::{Method, Version, header};
use pingora::http::RequestHeader;

use crate::serve::MAX_HEAD_BYTES;
use crate::table::{HostError, PathError};

/// Why a request is refused; the text goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the request head is larger than {MAX_HEAD_BYTES} bytes")]
    TooLarge,
    #[error("the request head has too many fields")]
    TooManyFields,
    #[error("the request head is malformed")]
    Malformed,
    #[error("a line of the request head ends in a bare line feed")]
    BareLineFeed,
    #[error("the request has both Content-Length and Transfer-Encoding")]
    TwoLengths,
    #[error("the Content-Length is not exactly one number")]
    Length,
    #[error("the Transfer-Encoding is not exactly one \"chunked\"")]
    TransferEncoding,
    #[error("the request has no Host")]
    NoHost,
    #[error("the request has more than one Host")]
    TwoHosts,
    #[error("the request's target and its Host differ")]
    HostsDiffer,
    #[error("the method TRACE is not served")]
    Trace,
    #[error("the method CONNECT is not served")]
    Connect,
    #[error("the request target cannot be brought into normal form")]
    Rewrite,
    #[error("{0}")]
    Host(#[from] HostError),
    #[error("{0}")]
    Path(#[from] PathError),
}

impl Fault {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::TooLarge | Self::TooManyFields => 431,
            Self::Trace | Self::Connect => 405,
            _ => 400,
        }
    }
}

/// Looks at the head as it came over an HTTP/1 connection.
pub(crate) fn check_raw_head(raw: &[u8], request: &RequestHeader) -> Result<(), Fault> {
    if raw.len() > MAX_HEAD_BYTES {
        return Err(Fault::TooLarge);
    }
    let mut before = b'\n'; // an empty line in front of the request is as bare as any other
    for &byte in raw {
        if byte == b'\n' && before != b'\r' {
            return Err(Fault::BareLineFeed);
        }
        before = byte;
    }
    let mut codings = request.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // pingora drops the length when both are there, so that only the bytes tell.
        if has_content_length(raw) {
            return Err(Fault::TwoLengths);
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Fault::TransferEncoding);
        }
    }
    Ok(())
}

fn has_content_length(raw: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw.split(|&byte| byte == b'\n')
        .any(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME))
}

/// What holds for every protocol.
pub(crate) fn check_request(request: &RequestHeader) -> Result<(), Fault> {
    if request.method == Method::TRACE {
        return Err(Fault::Trace);
    }
    if request.version == Version::HTTP_11 && !request.headers.contains_key(header::HOST) {
        return Err(Fault::NoHost);
    }
    Ok(())
}

/// The host as the client wrote it: the `Host` header, or HTTP/2's `:authority`. pingora refused requests in
/// which they differ.
pub(crate) fn written_host(request: &RequestHeader) -> Result<&str, Fault> {
    match request.headers.get(header::HOST) {
        Some(value) => value.to_str().map_err(|_| Fault::Host(HostError::Character)),
        None => Ok(request.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> RequestHeader {
        let mut lines = raw.lines();
        let mut words = lines.next().unwrap().split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut request = RequestHeader::build(method, path.as_bytes(), None).unwrap();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            request.append_header(name.to_owned(), value.trim()).unwrap();
        }
        request
    }

    #[test]
    fn raw_heads() {
        for (raw, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(())),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Err(Fault::BareLineFeed)),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Err(Fault::BareLineFeed)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", Err(Fault::BareLineFeed)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Ok(())),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 3\r\n\r\n",
                Err(Fault::TwoLengths),
            ),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Err(Fault::TransferEncoding)),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Err(Fault::TransferEncoding),
            ),
        ] {
            assert_eq!(check_raw_head(raw.as_bytes(), &parse(raw)), expected, "{raw:?}");
        }
        let large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEAD_BYTES));
        assert_eq!(check_raw_head(large.as_bytes(), &parse(&large)), Err(Fault::TooLarge));
    }
}
