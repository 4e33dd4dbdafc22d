//! What the endpoint is told about the client.
//!
//! Anyone can write `X-Forwarded-For: 127.0.0.1`. From a peer outside the trusted networks every such header is
//! overwritten with what this proxy saw itself; from a trusted one it is kept, and the peer's address added.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::{HeaderName, header};
use pingora::http::{RequestHeader, ResponseHeader};

use crate::config::Network;
use crate::policy;
use crate::upstream::random;

/// The longest id that is taken over from a trusted peer.
const MAX_REQUEST_ID_LEN: usize = 128;
/// Fields that concern one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 3] =
    [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), header::CONNECTION];

/// The name that a request has in logs, here and behind.
#[derive(Debug, Clone)]
pub(crate) enum RequestId {
    /// Made here: 128 random bits in hexadecimal digits.
    Fresh([u8; 32]),
    /// By a trusted peer.
    Given(Box<str>),
}

impl RequestId {
    /// The trusted peer's, or a fresh one.
    pub(crate) fn of(given: Option<&[u8]>, trusted: bool) -> Self {
        let usable = given.filter(|id| {
            trusted && (1..=MAX_REQUEST_ID_LEN).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
        });
        match usable.and_then(|id| std::str::from_utf8(id).ok()) {
            Some(id) => Self::Given(id.into()),
            None => Self::fresh(),
        }
    }

    fn fresh() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        let bits = [random(), random()];
        for (at, digit) in text.iter_mut().enumerate() {
            *digit = DIGITS[(bits[at / 16] >> (at % 16 * 4) & 0xf) as usize];
        }
        Self::Fresh(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Fresh(text) => std::str::from_utf8(text).unwrap_or_default(),
            Self::Given(text) => text,
        }
    }
}

/// The other end of a client's connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The same as text.
    pub(crate) text: String,
    /// Whether what it says of the client is believed.
    pub(crate) trusted: bool,
    pub(crate) tls: bool,
    /// The listener's port, as text.
    pub(crate) port: String,
}

/// Sets every forwarding field that the endpoint gets, by name and value. What a trusted peer wrote of protocol, host and
/// port is kept and so not set. `host` is the host as the client wrote it, `given` the values that the request has.
///
/// Cost from an untrusted peer: no allocation, no look at the request's fields.
pub(crate) fn forwarding<'v, V: Iterator<Item = &'v [u8]>>(
    peer: &Peer,
    host: &str,
    id: &RequestId,
    networks: &[Network],
    given: impl Fn(&'static str) -> V,
    mut set: impl FnMut(&'static str, &str),
) {
    if peer.trusted {
        let mut chain = String::new();
        for text in given("x-forwarded-for").filter_map(|value| std::str::from_utf8(value).ok()) {
            let _ = write!(chain, "{text}, ");
        }
        let hops = chain.rsplit(',').filter_map(|text| text.trim().parse::<IpAddr>().ok());
        let client = policy::behind(peer.address, hops, networks);
        chain.push_str(&peer.text);
        set("x-forwarded-for", &chain);
        set("x-real-ip", &client.to_string());
    } else {
        set("x-forwarded-for", &peer.text);
        set("x-real-ip", &peer.text);
    }
    set("x-request-id", id.as_str());
    for (name, value) in [
        ("x-forwarded-proto", if peer.tls { "https" } else { "http" }),
        ("x-forwarded-host", host),
        ("x-forwarded-port", &peer.port),
    ] {
        if !(peer.trusted && given(name).next().is_some()) {
            set(name, value);
        }
    }
}

/// Writes the forwarding fields into pingora's request.
pub(crate) fn forward(
    request: &mut RequestHeader,
    peer: &Peer,
    host: &str,
    id: &RequestId,
    networks: &[Network],
) -> pingora::Result<()> {
    let given = if peer.trusted { request.headers.clone() } else { http::HeaderMap::new() };
    let mut result = Ok(());
    if !peer.trusted {
        request.remove_header(&header::FORWARDED);
    }
    forwarding(
        peer,
        host,
        id,
        networks,
        |name| given.get_all(name).iter().map(http::HeaderValue::as_bytes),
        |name, value| {
            if let Err(error) = request.insert_header(name, value) {
                result = Err(error);
            }
        },
    );
    result
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
        let address: IpAddr = peer.parse().unwrap();
        let trusted = policy::is_in(&networks, address);
        let peer = Peer { address, text: peer.to_owned(), trusted, tls: true, port: "443".to_owned() };
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in given {
            request.append_header(*name, *value).unwrap();
        }
        let id = RequestId::of(request.headers.get("x-request-id").map(http::HeaderValue::as_bytes), trusted);
        forward(&mut request, &peer, "shop.example", &id, &networks).unwrap();
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
