//! Heads of requests and responses, read in place.
//!
//! What two readers of one byte stream could read differently is how requests are smuggled. So a head is read once, by
//! one strict reader, and what it does not understand gets 400 and a closed connection; what goes on to the endpoint is
//! written anew from what was understood.
mod request;
mod response;

use std::mem::MaybeUninit;

use httparse::Header;

pub(crate) use request::{HeadEnd, Normal, RequestHead};
pub(crate) use response::ResponseHead;

/// A head, from its first line to the empty one.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Fields of one head.
pub(crate) const MAX_FIELDS: usize = 128;

/// The versions of HTTP/1; a request that came by HTTP/2 counts as new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 1.0: no chunks, no interim responses, and connections are kept only if both sides say so.
    Old,
    /// 1.1.
    New,
}

/// Where the fields of a head are noted while it is read: on the stack, and not cleared first.
pub(crate) struct Space<'b>([MaybeUninit<Header<'b>>; MAX_FIELDS]);

impl Space<'_> {
    pub(crate) const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; MAX_FIELDS])
    }
}

/// Fields that mean something to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
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
    TraceParent,
    TraceState,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Other,
}

impl Known {
    /// By a field's name in any case. Cost: a jump by length and at most four comparisons.
    pub(crate) fn of(name: &str) -> Self {
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
                ("tracestate", Self::TraceState),
            ],
            11 => &[("traceparent", Self::TraceParent)],
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
    pub(crate) fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::KeepAlive | Self::ProxyConnection | Self::Te | Self::Upgrade)
    }
}

/// What `Connection` says.
#[expect(clippy::struct_excessive_bools, reason = "each is a token of one field")]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Connection {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// Other fields that concern this connection only.
    pub(crate) nominates: bool,
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

/// Whether a field named `Connection` names this one. Framing and routing cannot be talked away so.
pub(crate) fn is_nominated(fields: &[Header<'_>], name: &str, known: Known) -> bool {
    !matches!(known, Known::Host | Known::ContentLength | Known::TransferEncoding)
        && fields
            .iter()
            .filter(|field| Known::of(field.name) == Known::Connection)
            .any(|field| tokens(field.value).any(|token| token.eq_ignore_ascii_case(name.as_bytes())))
}

/// Digits and nothing else.
pub(crate) fn read_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
