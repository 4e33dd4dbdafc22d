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
    /// By a field's name in any case. Cost: a jump by length, and mostly one comparison without a loop.
    pub(crate) fn of(name: &str) -> Self {
        let name = name.as_bytes();
        match name.len() {
            2 if is(name, b"te") => Self::Te,
            4 if is(name, b"host") => Self::Host,
            6 if is(name, b"expect") => Self::Expect,
            7 if is(name, b"upgrade") => Self::Upgrade,
            9 if is(name, b"x-real-ip") => Self::RealIp,
            9 if is(name, b"forwarded") => Self::Forwarded,
            10 if is(name, b"user-agent") => Self::UserAgent,
            10 if is(name, b"connection") => Self::Connection,
            10 if is(name, b"keep-alive") => Self::KeepAlive,
            10 if is(name, b"tracestate") => Self::TraceState,
            11 if is(name, b"traceparent") => Self::TraceParent,
            12 if is(name, b"x-request-id") => Self::RequestId,
            14 if is(name, b"content-length") => Self::ContentLength,
            15 if is(name, b"x-forwarded-for") => Self::ForwardedFor,
            16 if is(name, b"x-forwarded-host") => Self::ForwardedHost,
            16 if is(name, b"x-forwarded-port") => Self::ForwardedPort,
            16 if is(name, b"proxy-connection") => Self::ProxyConnection,
            17 if is(name, b"transfer-encoding") => Self::TransferEncoding,
            17 if is(name, b"x-forwarded-proto") => Self::ForwardedProto,
            _ => Self::Other,
        }
    }

    /// Whether it concerns one connection only (RFC 9110 §7.6.1).
    pub(crate) fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::KeepAlive | Self::ProxyConnection | Self::Te | Self::Upgrade)
    }
}

/// Whether a field's name is this one, in any case. All bytes are compared at once: a length that the compiler knows makes it
/// a few operations on words.
#[inline]
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    // Of the bytes that a name may have (RFC 9110 §5.6.2), only letters have a letter by this bit, and only the hyphen a hyphen.
    const LOWER: u8 = 0x20;
    <&[u8; N]>::try_from(name)
        .is_ok_and(|name| name.iter().zip(known).fold(0, |rest, (a, b)| rest | ((a | LOWER) ^ b)) == 0)
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
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let longer = |length: u64, byte: &u8| length.checked_mul(10)?.checked_add(digit(*byte)?);
    value.iter().try_fold(0, longer).filter(|_| !value.is_empty())
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
