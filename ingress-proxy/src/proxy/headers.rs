//! What the endpoint is told about the client.
//!
//! Anyone can write `X-Forwarded-For: 127.0.0.1`. From a peer outside the trusted networks every such header is
//! overwritten with what this proxy saw itself; from a trusted one it is kept, and the peer's address added.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::config::Network;
use crate::policy::{self, Identity, Passage};
use crate::trace::Trace;
use crate::upstream::random;

/// The longest id that is taken over from a trusted peer.
const MAX_REQUEST_ID_LEN: usize = 128;

/// The names that a request has in logs and traces, here and behind.
#[derive(Debug, Clone)]
pub(crate) struct RequestId {
    name: Name,
    /// Where it stands in a trace, if there is who is told.
    trace: Option<Trace>,
}

#[derive(Debug, Clone)]
enum Name {
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
        let given = usable.and_then(|id| std::str::from_utf8(id).ok());
        Self { name: given.map_or_else(Name::fresh, |id| Name::Given(id.into())), trace: None }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match &self.name {
            Name::Fresh(text) => text,
            Name::Given(text) => text.as_bytes(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    pub(crate) fn stands_in(&mut self, trace: Option<Trace>) {
        self.trace = trace;
    }
}

impl Name {
    fn fresh() -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        let (halves, _) = text.as_chunks_mut::<16>();
        for half in halves {
            let (pairs, _) = half.as_chunks_mut();
            for (pair, byte) in pairs.iter_mut().zip(random().to_be_bytes()) {
                *pair = [byte >> 4, byte & 0xf].map(|digit| DIGITS[usize::from(digit)]);
            }
        }
        Self::Fresh(text)
    }
}

/// The other end of a client's connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// Between where and where its connection is.
    pub(crate) ends: Ends,
    /// The address as text.
    pub(crate) text: String,
    /// Whether what it says of the client is believed.
    pub(crate) trusted: bool,
    /// What its handshake said, if it speaks TLS.
    pub(crate) tls: Option<Handshake>,
    /// The listener's port, as text.
    pub(crate) port: String,
}

/// The two ends of a client's connection, as it was made: a load balancer may have said so in the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

impl Peer {
    /// What goes in front of a connection to an endpoint, where the rule asks for that.
    pub(crate) fn header(&self, passage: Option<&Passage>) -> Option<Vec<u8>> {
        Some(passage?.upstream().proxy_protocol?.header(self.ends))
    }
}

/// What is known from a TLS handshake.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    /// The name that the client asked for, in lower case.
    pub(crate) name: Option<Box<str>>,
    /// Requests for other hosts may come too: it is HTTP/2.
    pub(crate) is_shared: bool,
    /// What it showed of itself, where it was asked to.
    pub(crate) identity: Option<Identity>,
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
    mut set: impl FnMut(&'static str, &[u8]),
) {
    if peer.trusted {
        let mut chain = String::new();
        for text in given("x-forwarded-for").filter_map(|value| std::str::from_utf8(value).ok()) {
            let _ = write!(chain, "{text}, ");
        }
        let hops = chain.rsplit(',').filter_map(|text| text.trim().parse::<IpAddr>().ok());
        let client = policy::behind(peer.address, hops, networks);
        chain.push_str(&peer.text);
        set("x-forwarded-for", chain.as_bytes());
        set("x-real-ip", client.to_string().as_bytes());
    } else {
        set("x-forwarded-for", peer.text.as_bytes());
        set("x-real-ip", peer.text.as_bytes());
    }
    set("x-request-id", id.as_bytes());
    if let Some(trace) = id.trace() {
        set("traceparent", trace.header().as_bytes());
    }
    for (name, value) in [
        ("x-forwarded-proto", if peer.tls.is_some() { "https" } else { "http" }),
        ("x-forwarded-host", host),
        ("x-forwarded-port", &peer.port),
    ] {
        if !(peer.trusted && given(name).next().is_some()) {
            set(name, value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(
        peer: &str,
        trusted: &[&str],
        given: &[(&'static str, &str)],
    ) -> Vec<(&'static str, String)> {
        let networks: Vec<Network> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let address: IpAddr = peer.parse().unwrap();
        let trusted = policy::is_in(&networks, address);
        let ends =
            Ends { source: SocketAddr::new(address, 5_000), destination: SocketAddr::new(address, 443) };
        let peer = Peer {
            address,
            ends,
            text: peer.to_owned(),
            trusted,
            tls: Some(Handshake::default()),
            port: "443".to_owned(),
        };
        let values = |name: &'static str| {
            given.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_bytes())
        };
        let id = RequestId::of(values("x-request-id").next(), trusted);
        let mut set: Vec<(&'static str, String)> = Vec::new();
        forwarding(&peer, "shop.example", &id, &networks, values, |name, value| {
            set.push((name, String::from_utf8(value.to_vec()).unwrap()));
        });
        set
    }

    fn text<'a>(set: &'a [(&'static str, String)], name: &str) -> Option<&'a str> {
        let mut found = set.iter().filter(|(set, _)| *set == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} more than once");
        value
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
        ] {
            assert_eq!(text(&request, name), Some(expected), "{name}");
        }
        assert_eq!(text(&request, "x-request-id").map(str::len), Some(32));
    }

    #[test]
    fn a_trusted_peer_is_believed_and_appended() {
        let request = forwarded("10.0.0.5", &["10.0.0.0/8"], &SPOOF);
        for (name, expected) in [
            ("x-forwarded-for", Some("127.0.0.1, 10.1.1.1, 10.0.0.5")),
            ("x-real-ip", Some("127.0.0.1")),
            ("x-request-id", Some("mine")),
            // What it wrote stays.
            ("x-forwarded-proto", None),
            ("x-forwarded-host", None),
            ("x-forwarded-port", None),
        ] {
            assert_eq!(text(&request, name), expected, "{name}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_nobody_vouches_for() {
        let chain = [("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.7")];
        assert_eq!(text(&forwarded("10.0.0.5", &["10.0.0.0/8"], &chain), "x-real-ip"), Some("2.2.2.2"));
    }
}
