//! Host names: the one form they are compared in.

use std::borrow::Cow;

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

/// Lower case, without port and without the root's trailing dot. Borrows when nothing had to change.
pub fn normalize_host(raw: &str) -> Result<Cow<'_, str>, HostError> {
    if raw.len() > MAX_HOST_LEN {
        return Err(HostError::TooLong);
    }
    let (name, port) = if let Some(rest) = raw.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(HostError::Character)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| HostError::Character)?;
        (&raw[..address.len() + 2], port)
    } else {
        let end = raw.find(':').unwrap_or(raw.len());
        let name = &raw[..end];
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
            return Err(HostError::Character);
        }
        (name.strip_suffix('.').unwrap_or(name), &raw[end..])
    };
    match port.strip_prefix(':') {
        None if !port.is_empty() => return Err(HostError::Character),
        Some(digits) if !digits.is_empty() && digits.parse::<u16>().is_err() => {
            return Err(HostError::Character);
        }
        _ => {}
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Ok(Cow::Owned(name.to_ascii_lowercase()))
    } else {
        Ok(Cow::Borrowed(name))
    }
}
