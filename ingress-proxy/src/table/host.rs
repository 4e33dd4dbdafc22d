//! Host names: the one form they are compared in.

use std::borrow::Cow;
use std::fmt;

/// The longest host name that is looked at: 253 bytes of DNS name, and room for a bracketed address.
const MAX_HOST_LEN: usize = 255;

/// What a rule says about the host, in normal form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Every host.
    Any,
    /// This host alone.
    Exact(String),
    /// Any one label in front of this parent: `*.foo.com` is `Wildcard("foo.com")`.
    Wildcard(String),
}

impl HostPattern {
    /// Reads an Ingress's `host` field: empty, a name, or `*.` and a name.
    pub fn parse(field: &str) -> Result<Self, HostError> {
        if field.is_empty() {
            return Ok(Self::Any);
        }
        let (wildcard, name) = match field.strip_prefix("*.") {
            Some(parent) => (true, parent),
            None => (false, field),
        };
        let normal = normalize_host(name)?.into_owned();
        if normal.len() != name.trim_end_matches('.').len() || normal.is_empty() {
            return Err(HostError::Character);
        }
        Ok(if wildcard { Self::Wildcard(normal) } else { Self::Exact(normal) })
    }
}

/// As an Ingress's `host` field has it, and `*` for every host.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Why a host cannot be routed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// More than [`MAX_HOST_LEN`] bytes.
    #[error("the host is longer than {MAX_HOST_LEN} bytes")]
    TooLong,
    /// A byte that no host name or address has, or a port that is no number.
    #[error("the host has a character that no host name has, or a malformed port")]
    Character,
}

/// What a byte is in a host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    Name,
    Upper,
    Colon,
    Other,
}

/// One look instead of comparisons: every request's host goes through it.
const BYTES: [Byte; 256] = {
    let mut bytes = [Byte::Other; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        bytes[byte as usize] = match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => Byte::Name,
            b'A'..=b'Z' => Byte::Upper,
            b':' => Byte::Colon,
            _ => Byte::Other,
        };
        byte += 1;
    }
    bytes
};

/// Lower case, without port and without the root's trailing dot. Borrows when nothing had to change.
pub fn normalize_host(raw: &str) -> Result<Cow<'_, str>, HostError> {
    if raw.len() > MAX_HOST_LEN {
        return Err(HostError::TooLong);
    }
    if let Some(rest) = raw.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(HostError::Character)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| HostError::Character)?;
        check_port(port)?;
        return Ok(lower_case(&raw[..address.len() + 2], raw.bytes().any(|b| b.is_ascii_uppercase())));
    }
    let mut upper = false;
    let mut end = raw.len();
    for (at, byte) in raw.bytes().enumerate() {
        match BYTES[usize::from(byte)] {
            Byte::Name => {}
            Byte::Upper => upper = true,
            Byte::Colon => {
                end = at;
                break;
            }
            Byte::Other => return Err(HostError::Character),
        }
    }
    let (name, port) = raw.split_at(end);
    check_port(port)?;
    Ok(lower_case(name.strip_suffix('.').unwrap_or(name), upper))
}

/// Nothing, or a colon and a number, or a colon.
fn check_port(port: &str) -> Result<(), HostError> {
    let Some(digits) = port.strip_prefix(':') else {
        return if port.is_empty() { Ok(()) } else { Err(HostError::Character) };
    };
    let number = digits.bytes().try_fold(0_u32, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(number * 10 + digit).filter(|number| u16::try_from(*number).is_ok())
    });
    number.map(drop).ok_or(HostError::Character)
}

fn lower_case(name: &str, has_upper: bool) -> Cow<'_, str> {
    if has_upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) }
}
