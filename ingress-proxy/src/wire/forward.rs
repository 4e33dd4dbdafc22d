//! What is written to the other side: heads, made anew from what was understood of the ones that came.

use http::{HeaderName, HeaderValue};
use httparse::Header;

use super::head::{Known, Normal, ResponseHead, Version, is_nominated};
use crate::config::Network;
use crate::policy::{self, Passage};
use crate::proxy::{Peer, RequestId, forwarding};
use crate::trace::Trace;

/// Writes the head that the endpoint gets. `passage` is what the rule's policies make different.
///
/// Cost: one pass over the fields, copying; an allocation only when the buffer has never held so much.
pub(crate) fn write_request(
    out: &mut Vec<u8>,
    request: &Normal<'_, '_>,
    peer: &Peer,
    id: &RequestId,
    networks: &[Network],
    passage: Option<&Passage>,
) {
    let Normal { head, path, .. } = request;
    out.clear();
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    if let Some(target) = passage.and_then(Passage::target) {
        out.extend_from_slice(target.as_bytes());
    } else {
        out.extend_from_slice(path.as_bytes());
        if let Some(query) = head.query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
    }
    // An endpoint sends no chunks to who would not understand them.
    out.extend_from_slice(if head.version == Version::Old {
        b" HTTP/1.0\r\nconnection: close\r\n"
    } else {
        b" HTTP/1.1\r\n"
    });
    let host = passage.and_then(Passage::host).map_or(head.host.as_bytes(), HeaderValue::as_bytes);
    field(out, "host", host);
    let replaced = |name: &str| passage.is_some_and(|passage| passage.drops(name));
    for Header { name, value } in head.fields {
        let known = Known::of(name);
        let goes_on = match known {
            Known::Host | Known::ForwardedFor | Known::RealIp | Known::RequestId => false,
            Known::ForwardedProto | Known::ForwardedHost | Known::ForwardedPort | Known::Forwarded => {
                peer.trusted
            }
            Known::TraceParent => id.trace().is_none(),
            Known::TraceState => !id.trace().is_some_and(Trace::is_new),
            known => !known.is_hop_by_hop(),
        };
        if goes_on
            && !(head.connection.nominates && is_nominated(head.fields, name, known))
            && !replaced(name)
        {
            field(out, name, value);
        }
    }
    for (name, value) in passage.into_iter().flat_map(Passage::fields) {
        field(out, name.as_str(), value.as_bytes());
    }
    if let Some(protocol) = head.upgrade {
        field(out, "connection", b"upgrade");
        field(out, "upgrade", protocol);
    }
    if head.chunks {
        field(out, "transfer-encoding", b"chunked");
    }
    let given = |name: &'static str| {
        let fields = head.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value)
    };
    forwarding(peer, head.host, id, networks, given, |name, value| field(out, name, value));
    out.extend_from_slice(b"\r\n");
}

/// Adds fields to a head that was written.
pub(crate) fn add_fields<'f>(
    head: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'f HeaderName, &'f HeaderValue)>,
) {
    head.truncate(head.len() - 2);
    for (name, value) in fields {
        field(head, name.as_str(), value.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
}

/// Makes another request of a head that was written: for this target, if there is one, and with these fields.
pub(crate) fn redirect_request(head: &mut Vec<u8>, target: Option<&str>, fields: &[(&'static str, Vec<u8>)]) {
    if let Some(target) = target {
        let mut spaces = memchr::memchr_iter(b' ', head);
        if let (Some(start), Some(end)) = (spaces.next(), spaces.next()) {
            head.splice(start + 1..end, target.bytes());
        }
    }
    head.truncate(head.len() - 2);
    for (name, value) in fields {
        field(head, name, value);
    }
    head.extend_from_slice(b"\r\n");
}

/// How the client's connection goes on behind a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// As HTTP/1.1 means it by itself: with the next message.
    Nothing,
    /// With the next request, as HTTP/1.0 has to be told.
    KeepAlive,
    Close,
    /// With another protocol.
    Upgrade,
}

/// Writes the head that the client gets. `chunked` says that chunks will follow where the endpoint sent none; `passage` has
/// what the rule's policies do to it.
pub(crate) fn write_response(
    out: &mut Vec<u8>,
    head: &ResponseHead<'_, '_>,
    after: After,
    chunked: bool,
    passage: Option<&Passage>,
) {
    let edits = passage.map(|passage| {
        let mut edits = Edits { head, set: Vec::new(), appended: Vec::new() };
        passage.after(head.status, &mut edits);
        edits
    });
    let set = edits.as_ref().map_or(&[][..], |edits| &edits.set);
    let appended = edits.as_ref().map_or(&[][..], |edits| &edits.appended);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&[100, 10, 1].map(|unit| b'0' + (head.status / unit % 10) as u8));
    out.push(b' ');
    out.extend_from_slice(head.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for Header { name, value } in head.fields {
        let is_upgrade = || after == After::Upgrade && Known::of(name) == Known::Upgrade;
        if (goes_on_to_client(head, name) || is_upgrade())
            && !set.iter().any(|(set, _)| name.eq_ignore_ascii_case(set.as_str()))
        {
            field(out, name, value);
        }
    }
    for (name, value) in set.iter().chain(appended) {
        field(out, name.as_str(), value.as_bytes());
    }
    if chunked {
        field(out, "transfer-encoding", b"chunked");
    }
    match after {
        After::Nothing => {}
        After::KeepAlive => field(out, "connection", b"keep-alive"),
        After::Close => field(out, "connection", b"close"),
        After::Upgrade => field(out, "connection", b"upgrade"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a field of a response is the client's affair, not only that of the connection to the endpoint.
pub(crate) fn goes_on_to_client(head: &ResponseHead<'_, '_>, name: &str) -> bool {
    let known = Known::of(name);
    let is_nominated = || head.connection.nominates && is_nominated(head.fields, name, known);
    !known.is_hop_by_hop() && !is_nominated()
}

/// What policies do to a response's head.
struct Edits<'a> {
    head: &'a ResponseHead<'a, 'a>,
    set: Vec<(HeaderName, HeaderValue)>,
    appended: Vec<(HeaderName, HeaderValue)>,
}

impl policy::ResponseHead for Edits<'_> {
    fn has(&self, name: &HeaderName) -> bool {
        self.head.fields.iter().any(|field| field.name.eq_ignore_ascii_case(name.as_str()))
            || self.set.iter().chain(&self.appended).any(|(known, _)| known == name)
    }

    fn values(&self, name: &HeaderName) -> Vec<HeaderValue> {
        let is_set = self.set.iter().any(|(set, _)| set == name);
        let of_endpoint =
            self.head.fields.iter().filter(|field| !is_set && field.name.eq_ignore_ascii_case(name.as_str()));
        let of_endpoint = of_endpoint.filter_map(|field| HeaderValue::from_bytes(field.value).ok());
        let own = self.set.iter().chain(&self.appended).filter(|(known, _)| known == name);
        of_endpoint.chain(own.map(|(_, value)| value.clone())).collect()
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.set.retain(|(known, _)| *known != name);
        self.appended.retain(|(known, _)| *known != name);
        self.set.push((name, value));
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.appended.push((name, value));
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::head::{RequestHead, Space};
    use super::*;
    use crate::proxy::Ends;

    fn forwarded(request: &str, trusted: bool) -> String {
        let mut space = Space::new();
        let head = RequestHead::read(request.as_bytes(), &mut space).unwrap();
        let address = "192.0.2.9".parse().unwrap();
        let ends =
            Ends { source: "192.0.2.9:5000".parse().unwrap(), destination: "192.0.2.1:80".parse().unwrap() };
        let text = "192.0.2.9".to_owned();
        let peer = Peer { address, ends, text, trusted, tls: None, port: "80".to_owned() };
        let mut out = b"of the request before".to_vec();
        let id = RequestId::of(Some(b"id-1"), true);
        let normal = Normal { head: &head, host: "".into(), path: "/normal".into(), identity: None };
        write_request(&mut out, &normal, &peer, &id, &[], None);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_request_goes_on_without_what_is_not_its_own() {
        let request = "GET /raw?q=1 HTTP/1.1\r\nHOST: Shop.example\r\nAccept: */*\r\nConnection: keep-alive, X-Hop\r\n\
            X-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Forwarded-For: 127.0.0.1\r\n\
            X-FORWARDED-PROTO: https\r\nForwarded: for=127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nX-Request-ID: mine\r\n\r\n";
        assert_eq!(
            forwarded(request, false),
            "GET /normal?q=1 HTTP/1.1\r\nhost: Shop.example\r\nAccept: */*\r\nx-forwarded-for: 192.0.2.9\r\n\
             x-real-ip: 192.0.2.9\r\nx-request-id: id-1\r\nx-forwarded-proto: http\r\n\
             x-forwarded-host: Shop.example\r\nx-forwarded-port: 80\r\n\r\n"
        );
        assert_eq!(
            forwarded(request, true),
            "GET /normal?q=1 HTTP/1.1\r\nhost: Shop.example\r\nAccept: */*\r\nX-FORWARDED-PROTO: https\r\n\
             Forwarded: for=127.0.0.1\r\nx-forwarded-for: 127.0.0.1, 192.0.2.9\r\nx-real-ip: 127.0.0.1\r\n\
             x-request-id: id-1\r\nx-forwarded-host: Shop.example\r\nx-forwarded-port: 80\r\n\r\n"
        );
    }

    #[test]
    fn framing_and_host_cannot_be_talked_away() {
        let request = "POST / HTTP/1.1\r\nHost: x\r\nConnection: host, content-length, x-forwarded-for\r\n\
            Content-Length: 3\r\n\r\n";
        let forwarded = forwarded(request, false);
        for kept in ["\r\nhost: x\r\n", "\r\nContent-Length: 3\r\n", "\r\nx-forwarded-for: 192.0.2.9\r\n"] {
            assert!(forwarded.contains(kept), "{forwarded}");
        }
    }

    #[test]
    fn an_upgrade_is_asked_for_in_our_own_words() {
        let request =
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let forwarded = forwarded(request, false);
        assert!(forwarded.contains("\r\nconnection: upgrade\r\nupgrade: websocket\r\n"), "{forwarded}");
    }

    #[test]
    fn an_old_client_gets_an_old_request() {
        let forwarded = forwarded("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false);
        assert!(
            forwarded.starts_with("GET /normal HTTP/1.0\r\nconnection: close\r\nhost: \r\n"),
            "{forwarded}"
        );
    }

    #[test]
    fn a_response_says_how_the_connection_goes_on() {
        let write = |response: &str, after, chunked| {
            let mut space = Space::new();
            let head = ResponseHead::read(response.as_bytes(), &mut space, false).unwrap().unwrap();
            let mut out = Vec::new();
            write_response(&mut out, &head, after, chunked, None);
            String::from_utf8(out).unwrap()
        };
        let plain = "HTTP/1.0 200 Fine\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nA: b\r\n\r\n";
        assert_eq!(write(plain, After::Nothing, false), "HTTP/1.1 200 Fine\r\nA: b\r\n\r\n");
        assert_eq!(
            write(plain, After::Close, false),
            "HTTP/1.1 200 Fine\r\nA: b\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(
            write(plain, After::KeepAlive, true),
            "HTTP/1.1 200 Fine\r\nA: b\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n"
        );
        let switching =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(
            write(switching, After::Upgrade, false),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        );
    }
}
