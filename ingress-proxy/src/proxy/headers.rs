//! What the endpoint is told about the client.
//!
//! Anyone can write `X-Forwarded-For: 127.0.0.1`. From a peer outside the trusted networks every such header is
//! overwritten with what this proxy saw itself; from a trusted one it is kept, and the peer's address added.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::config::Network;
use crate::policy;
use crate::upstream::random;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over from a trusted peer.
const MAX_REQUEST_ID_LEN: usize = 128;
/// Fields that concern one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 3] =
    [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), header::CONNECTION];

/// What is known about where a request came from.
#[derive(Debug, Clone)]
pub(crate) struct Origin<'a> {
    /// The other end of the connection.
    pub(crate) peer: IpAddr,
    pub(crate) tls: bool,
    /// The port of the listener.
    pub(crate) port: u16,
    /// The host as the client wrote it.
    pub(crate) host: &'a HeaderValue,
    pub(crate) id: &'a HeaderValue,
    pub(crate) trusted: bool,
}

/// Whether the peer is one of ours.
pub(crate) fn is_trusted(networks: &[Network], peer: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(peer))
}

/// The trusted peer's request id, or a fresh one.
pub(crate) fn request_id(headers: &HeaderMap, trusted: bool) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        trusted
            && (1..=MAX_REQUEST_ID_LEN).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        let text = format!("{:016x}{:016x}", random(), random());
        HeaderValue::try_from(text).expect("hexadecimal digits are a header value")
    })
}

/// Writes the forwarding headers for the endpoint.
pub(crate) fn forward(
    request: &mut RequestHeader,
    origin: &Origin<'_>,
    networks: &[Network],
) -> pingora::Result<()> {
    let mut chain = String::new();
    let mut client = origin.peer;
    if origin.trusted {
        for value in request.headers.get_all(&FORWARDED_FOR) {
            if let Ok(text) = value.to_str() {
                let _ = write!(chain, "{text}, ");
            }
        }
        let hops = chain.rsplit(',').filter_map(|text| text.trim().parse::<IpAddr>().ok());
        client = policy::behind(origin.peer, hops, networks);
    }
    let _ = write!(chain, "{}", origin.peer);
    request.insert_header(FORWARDED_FOR, chain)?;
    request.insert_header(REAL_IP, client.to_string())?;
    request.insert_header(REQUEST_ID, origin.id.clone())?;
    if !origin.trusted {
        request.remove_header(&header::FORWARDED);
    }
    let keep =
        |request: &RequestHeader, name: &HeaderName| origin.trusted && request.headers.contains_key(name);
    if !keep(request, &FORWARDED_PROTO) {
        let proto = HeaderValue::from_static(if origin.tls { "https" } else { "http" });
        request.insert_header(FORWARDED_PROTO, proto)?;
    }
    if !keep(request, &FORWARDED_HOST) {
        request.insert_header(FORWARDED_HOST, origin.host.clone())?;
    }
    if !keep(request, &FORWARDED_PORT) {
        request.insert_header(FORWARDED_PORT, HeaderValue::from(origin.port))?;
    }
    Ok(())
}

/// Drops what an endpoint said about its own connection; pingora writes ours.
pub(crate) fn strip_hop_by_hop(response: &mut ResponseHeader) {
    if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let nominated: Vec<HeaderName> = response
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Framing is pingora's affair, and an endpoint must not talk it out of it.
        .filter(|name| *name != header::TRANSFER_ENCODING && *name != header::CONTENT_LENGTH)
        .collect();
    for name in nominated.iter().chain(&HOP_BY_HOP) {
        response.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(peer: &str, trusted: &[&str], given: &[(&'static str, &str)]) -> RequestHeader {
        let networks: Vec<Network> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let peer: IpAddr = peer.parse().unwrap();
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in given {
            request.append_header(*name, *value).unwrap();
        }
        let trusted = is_trusted(&networks, peer);
        let id = request_id(&request.headers, trusted);
        let host = HeaderValue::from_static("shop.example");
        let origin = Origin { peer, tls: true, port: 443, host: &host, id: &id, trusted };
        forward(&mut request, &origin, &networks).unwrap();
        request
    }

    fn text<'a>(request: &'a RequestHeader, name: &str) -> &'a str {
        assert!(request.headers.get_all(name).iter().count() <= 1, "{name} more than once");
        request.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    const SPOOF: [(&str, &str); 8] = [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-for", "10.1.1.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-port", "1"),
        ("x-request-id", "mine"),
        ("forwarded", "for=127.0.0.1"),
    ];

    #[test]
    fn an_untrusted_peer_is_overwritten() {
        let request = forwarded("192.0.2.9", &["10.0.0.0/8"], &SPOOF);
        for (name, expected) in [
            ("x-forwarded-for", "192.0.2.9"),
            ("x-real-ip", "192.0.2.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-port", "443"),
            ("forwarded", ""),
        ] {
            assert_eq!(text(&request, name), expected, "{name}");
        }
        assert_eq!(text(&request, "x-request-id").len(), 32);
    }

    #[test]
    fn a_trusted_peer_is_believed_and_appended() {
        let request = forwarded("10.0.0.5", &["10.0.0.0/8"], &SPOOF);
        for (name, expected) in [
            ("x-forwarded-for", "127.0.0.1, 10.1.1.1, 10.0.0.5"),
            ("x-real-ip", "127.0.0.1"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-host", "evil"),
            ("x-request-id", "mine"),
            ("forwarded", "for=127.0.0.1"),
        ] {
            assert_eq!(text(&request, name), expected, "{name}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_nobody_vouches_for() {
        let chain = [("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.7")];
        assert_eq!(text(&forwarded("10.0.0.5", &["10.0.0.0/8"], &chain), "x-real-ip"), "2.2.2.2");
    }

    #[test]
    fn responses_lose_their_hop_by_hop_fields() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-kept", "1"),
        ] {
            response.append_header(name, value).unwrap();
        }
        strip_hop_by_hop(&mut response);
        let mut left: Vec<_> = response.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["transfer-encoding", "x-kept"]);
    }
}
