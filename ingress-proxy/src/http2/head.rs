//! Heads, between HTTP/2's fields and HTTP/1.1's.

use bytes::Bytes;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use httparse::Header;

use crate::config::Network;
use crate::metrics::UpstreamFailure;
use crate::policy::Passage;
use crate::proxy::{Fault, Peer, RequestId, Trouble, forwarding};
use crate::table::HostError;
use crate::trace::Trace;
use crate::wire::{
    self, Body, Known, MAX_FIELDS, Normal, RequestHead, ResponseHead, goes_on_to_client, read_length,
};

/// A cookie may come in crumbs, one field each; HTTP/1.1 has it in one piece (RFC 9113 §8.2.3).
pub(super) fn cookie(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (first, second) = (crumbs.next()?, crumbs.next()?);
    let mut whole = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb.as_bytes());
    }
    Some(whole)
}

/// The fields of a request, as a list. `cookie` is the one that was put together, if it had to be.
///
/// Cost: one allocation, and nothing copied.
pub(super) fn fields<'b>(headers: &'b HeaderMap, cookie: Option<&'b [u8]>) -> Result<Vec<Header<'b>>, Fault> {
    if headers.len() > MAX_FIELDS {
        return Err(Fault::TooManyFields);
    }
    let field = |name: &'b HeaderName, value| Header { name: name.as_str(), value };
    let mut fields = Vec::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        if cookie.is_none() || name != header::COOKIE {
            fields.push(field(name, value.as_bytes()));
        }
    }
    fields.extend(cookie.map(|whole| field(&header::COOKIE, whole)));
    Ok(fields)
}

/// Understands a request. `is_all`: no body follows.
///
/// The frames were checked before (RFC 9113 §8.2 and §8.3): names are lower case, there is one of each pseudo field, and none
/// that concerns a connection of HTTP/1.1. What is left is what the two versions could read differently.
pub(super) fn read<'h, 'b>(
    parts: &'b Parts,
    fields: &'h [Header<'b>],
    is_all: bool,
) -> Result<RequestHead<'h, 'b>, Fault> {
    let (mut host, mut length, mut expects, mut user_agent) = (None, None, false, &b""[..]);
    for Header { name, value } in fields {
        match Known::of(name) {
            Known::Host if host.is_some() => return Err(Fault::TwoHosts),
            Known::Host => host = Some(std::str::from_utf8(value).map_err(|_| HostError::Character)?),
            Known::ContentLength if length.is_some() => return Err(Fault::Length),
            Known::ContentLength => length = Some(read_length(value).ok_or(Fault::Length)?),
            Known::TransferEncoding => return Err(Fault::TransferEncoding),
            Known::Expect => expects = true,
            Known::UserAgent => user_agent = value,
            _ => {}
        }
    }
    let method = match parts.method.as_str() {
        "TRACE" => return Err(Fault::Trace),
        "CONNECT" => return Err(Fault::Connect),
        method => method,
    };
    let host = match (parts.uri.authority().map(Authority::as_str), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Fault::HostsDiffer);
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err(Fault::NoHost),
    };
    let body = match (length, is_all) {
        (Some(1..), true) => return Err(Fault::Length),
        (_, true) => Body::Done,
        (Some(length), false) => Body::of(length),
        (None, false) => Body::CHUNKED,
    };
    Ok(RequestHead {
        method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        target: parts.uri.path_and_query().map_or("", PathAndQuery::as_str),
        version: wire::Version::New,
        fields,
        host,
        body,
        connection: wire::Connection::default(),
        upgrade: None,
        expects,
        chunks: body == Body::CHUNKED,
        user_agent,
    })
}

/// The same request for an endpoint that speaks HTTP/2.
pub(super) fn for_http2(
    request: &Normal<'_, '_>,
    headers: &HeaderMap,
    over_tls: bool,
    peer: &Peer,
    id: &RequestId,
    networks: &[Network],
    passage: Option<&Passage>,
) -> Result<Request<()>, Fault> {
    let head = request.head;
    let target = match (passage.and_then(Passage::target), head.query) {
        (Some(target), _) => target.to_owned(),
        (None, Some(query)) => format!("{}?{query}", request.path),
        (None, None) => request.path.clone().into_owned(),
    };
    let host = passage.and_then(Passage::host).map_or(head.host.as_bytes(), HeaderValue::as_bytes);
    let mut headers = headers.clone();
    for name in [header::HOST, HeaderName::from_static("x-real-ip")] {
        headers.remove(name);
    }
    if !peer.trusted {
        for name in ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded"] {
            headers.remove(name);
        }
    }
    if id.trace().is_some_and(Trace::is_new) {
        headers.remove("tracestate");
    }
    if let Some(passage) = passage {
        let dropped: Vec<HeaderName> =
            headers.keys().filter(|name| passage.drops(name.as_str())).cloned().collect();
        for name in dropped {
            headers.remove(name);
        }
        for (name, value) in passage.fields() {
            headers.append(name, value.clone());
        }
    }
    let given = |name: &'static str| {
        let fields = head.fields.iter().filter(move |field| field.name == name);
        fields.map(|field| field.value)
    };
    let mut result = Ok(());
    forwarding(peer, head.host, id, networks, given, |name, value| match HeaderValue::from_bytes(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => result = Err(Fault::Rewrite),
    });
    result?;
    let uri = Uri::builder().scheme(scheme(over_tls)).authority(host).path_and_query(target).build();
    let mut forwarded = Request::new(());
    *forwarded.method_mut() = head.method.parse().map_err(|_| Fault::Malformed)?;
    *forwarded.uri_mut() = uri.map_err(|_| Fault::Rewrite)?;
    *forwarded.version_mut() = Version::HTTP_2;
    *forwarded.headers_mut() = headers;
    Ok(forwarded)
}

/// The request of a head that [was written](wire::write_request) for an HTTP/1.1 endpoint, for one that speaks HTTP/2.
///
/// Cost: one copy of the head, which all its values share, and a map of its fields.
pub(crate) fn from_http1(head: &[u8], over_tls: bool) -> Result<Request<()>, Fault> {
    let whole = Bytes::copy_from_slice(head);
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next().unwrap_or_default().split(|&byte| byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    let mut authority: &[u8] = b"";
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = memchr::memmem::find(line, b": ").ok_or(Fault::Malformed)?;
        let (name, value) = (&line[..colon], &line[colon + 2..]);
        match Known::of(std::str::from_utf8(name).map_err(|_| Fault::Malformed)?) {
            Known::Host => authority = value,
            // Whoever waits with a body is asked for it here.
            Known::TransferEncoding | Known::Expect => {}
            known if known.is_hop_by_hop() => {}
            _ => {
                let value = HeaderValue::from_maybe_shared({
                    let at = value.as_ptr().addr() - head.as_ptr().addr();
                    whole.slice(at..at + value.len())
                });
                let name = HeaderName::from_bytes(name).map_err(|_| Fault::Malformed)?;
                headers.append(name, value.map_err(|_| Fault::Malformed)?);
            }
        }
    }
    // They reach the client, who may not know them: gRPC asks for this.
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let uri = Uri::builder().scheme(scheme(over_tls)).authority(authority).path_and_query(target).build();
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method).map_err(|_| Fault::Malformed)?;
    *request.uri_mut() = uri.map_err(|_| Fault::Rewrite)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

fn scheme(over_tls: bool) -> Scheme {
    if over_tls { Scheme::HTTPS } else { Scheme::HTTP }
}

/// Makes another request of one: for this target, if there is one, and with these fields.
pub(super) fn redirect(
    request: &mut Request<()>,
    target: Option<&'static str>,
    fields: Vec<(&'static str, Vec<u8>)>,
) {
    if let Some(target) = target {
        let mut uri = request.uri().clone().into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static(target));
        if let Ok(uri) = Uri::from_parts(uri) {
            *request.uri_mut() = uri;
        }
    }
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
            request.headers_mut().insert(name, value);
        }
    }
}

/// The head that the client gets of an HTTP/1.1 response whose head is the first of `bytes`.
///
/// Cost: one copy of the head, which all its values share.
pub(super) fn of_http1(
    head: &ResponseHead<'_, '_>,
    bytes: &[u8],
    passage: Option<&Passage>,
) -> Result<Response<()>, Trouble> {
    const MALFORMED: Trouble = Trouble::Endpoint(UpstreamFailure::InvalidResponse);
    let whole = Bytes::copy_from_slice(&bytes[..head.length]);
    let start = bytes.as_ptr().addr();
    let mut headers = HeaderMap::with_capacity(head.fields.len() + 2);
    for Header { name, value } in head.fields {
        if !goes_on_to_client(head, name) || Known::of(name) == Known::TransferEncoding {
            continue;
        }
        let at = value.as_ptr().addr() - start;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| MALFORMED)?;
        let value = HeaderValue::from_maybe_shared(whole.slice(at..at + value.len()));
        headers.append(name, value.map_err(|_| MALFORMED)?);
    }
    let status = StatusCode::from_u16(head.status).map_err(|_| MALFORMED)?;
    Ok(response(status, headers, passage.filter(|_| !status.is_informational())))
}

/// The head that the client gets of an HTTP/2 response.
pub(super) fn of_http2(status: StatusCode, headers: HeaderMap, passage: Option<&Passage>) -> Response<()> {
    response(status, headers, passage)
}

fn response(status: StatusCode, mut headers: HeaderMap, passage: Option<&Passage>) -> Response<()> {
    if let Some(passage) = passage {
        passage.after(status.as_u16(), &mut headers);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = headers;
    response
}
