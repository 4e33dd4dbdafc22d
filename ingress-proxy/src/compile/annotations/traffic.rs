//! Annotations about where requests go and how endpoints are asked.

use std::fmt::Write as _;
use std::num::NonZeroU64;

use super::reader::{Reader, flag};
use crate::compile::Protocol;
use crate::policy::{Affinity, Canary, HeaderRule, MAX_TRIES, Retry, Upstream};
use crate::table::Pattern;
use crate::upstream::{Balance, Method, ProxyProtocol};

const MAX_WEIGHT: u32 = 1_000_000;
/// As many connections as one address of ours can have to one of an endpoint's.
const MAX_CONNECTIONS: u32 = 65_535;
/// ingress-nginx's name of the session cookie.
const COOKIE: &str = "INGRESSCOOKIE";

pub(super) fn protocol(r: &mut Reader<'_>) -> Option<Protocol> {
    r.guard("backend-protocol", "HTTP, HTTPS, GRPC or GRPCS, which are what is served", |text| {
        Some(match text.to_ascii_uppercase().as_str() {
            "HTTP" => Protocol::Http,
            "GRPC" => Protocol::Grpc,
            "HTTPS" => Protocol::Https,
            "GRPCS" => Protocol::Grpcs,
            _ => return None,
        })
    })
}

pub(super) fn canary(r: &mut Reader<'_>) -> Option<Canary> {
    // What may be a canary must not become the main version.
    if !r
        .read("canary", "\"true\" or \"false\", and is taken for a canary without requests", flag)
        .unwrap_or(r.text("canary").is_some())
    {
        return None;
    }
    let name =
        r.read("canary-by-header", "the name of a header", |text| token(text).map(str::to_ascii_lowercase));
    let value = r.text("canary-by-header-value").filter(|value| !value.is_empty());
    let pattern = r.text("canary-by-header-pattern").and_then(|text| match Pattern::text(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            r.fault("canary-by-header-pattern", &format!("cannot be served: {error}"));
            None
        }
    });
    let rule = match (value, pattern) {
        (Some(value), _) => HeaderRule::Value(value.into()),
        (None, Some(pattern)) => HeaderRule::Pattern(pattern),
        // A pattern that cannot be served must not become the words.
        (None, None) if r.text("canary-by-header-pattern").is_some() => {
            HeaderRule::Value(String::new().into())
        }
        (None, None) => HeaderRule::Word,
    };
    let cookie = r.read("canary-by-cookie", "the name of a cookie", token);
    let total = r.number("canary-weight-total", 1..=MAX_WEIGHT).unwrap_or(100);
    let weight = r.number("canary-weight", 0..=total).unwrap_or(0);
    let header = name.map(|name| (name.into(), rule));
    Some(Canary { header, cookie: cookie.map(Into::into), weight, total })
}

pub(super) fn affinity(r: &mut Reader<'_>) -> Option<Affinity> {
    r.read("affinity", "\"cookie\", the only kind there is", |text| (text == "cookie").then_some(()))?;
    let mode = r.read("affinity-mode", "\"balanced\" or \"persistent\"", |text| {
        ["balanced", "persistent"].contains(&text).then_some(text)
    });
    if mode == Some("persistent") {
        r.unserved("affinity-mode", "is not served yet: a few sessions move when endpoints are added");
    }
    let name = r.read("session-cookie-name", "the name of a cookie", token).unwrap_or(COOKIE);
    let attribute =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';' && byte != b',');
    let path = r.read("session-cookie-path", "a path", |text| {
        (text.starts_with('/') && attribute(text)).then_some(text)
    });
    let mut attributes = format!("; Path={}", path.unwrap_or("/"));
    if let Some(domain) = r.read("session-cookie-domain", "a domain", |text| {
        (!text.is_empty() && attribute(text)).then_some(text)
    }) {
        let _ = write!(attributes, "; Domain={domain}");
    }
    // `Expires` says the same as `Max-Age`, relative to a clock that may be wrong.
    let expires = r.number("session-cookie-expires", 0..=u32::MAX);
    if let Some(max_age) = r.number("session-cookie-max-age", 0..=u32::MAX).or(expires) {
        let _ = write!(attributes, "; Max-Age={max_age}");
    }
    let same_site = r.read("session-cookie-samesite", "\"None\", \"Lax\" or \"Strict\"", |text| {
        ["None", "Lax", "Strict"].into_iter().find(|word| word.eq_ignore_ascii_case(text))
    });
    if let Some(same_site) = same_site {
        let _ = write!(attributes, "; SameSite={same_site}");
    }
    attributes.push_str("; HttpOnly");
    let with_canary = r.read("affinity-canary-behavior", "\"sticky\" or \"legacy\"", |text| match text {
        "sticky" => Some(true),
        "legacy" => Some(false),
        _ => None,
    });
    let secure = r.is_on("session-cookie-secure");
    Some(Affinity {
        name: name.into(),
        attributes: attributes.into(),
        secure,
        with_canary: with_canary.unwrap_or(true),
    })
}

/// A name of a header or cookie (RFC 9110 §5.6.2, without what needs care in other places).
pub(super) fn token(text: &str) -> Option<&str> {
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!text.is_empty() && text.bytes().all(fit)).then_some(text)
}

pub(super) fn upstream(r: &mut Reader<'_>) -> Upstream {
    const TRIES: u32 = MAX_TRIES as u32;
    let mut retry = r
        .read(
            "proxy-next-upstream",
            "nginx's list, such as \"error timeout http_502\", or \"off\"",
            Retry::parse,
        )
        .unwrap_or_default();
    // 0 is nginx's word for no limit.
    let no_limit = |text: Option<&str>| text == Some("0");
    if no_limit(r.text("proxy-next-upstream-tries")) {
        retry.tries = Some(MAX_TRIES);
    } else {
        retry.tries = r.number("proxy-next-upstream-tries", 1..=TRIES).map(|tries| tries as u8);
    }
    if !no_limit(r.text("proxy-next-upstream-timeout")) {
        retry.within = r.wait("proxy-next-upstream-timeout");
    }
    Upstream {
        balance: balance(r),
        connect: r.wait("proxy-connect-timeout"),
        read: r.wait("proxy-read-timeout"),
        send: r.wait("proxy-send-timeout"),
        proxy_protocol: r.read("proxy-protocol", "\"v1\" or \"v2\"", ProxyProtocol::parse),
        retry,
    }
}

fn balance(r: &mut Reader<'_>) -> Balance {
    let method = if r.is_own("load-balance") {
        r.read("load-balance", "\"ewma\", \"round_robin\" or \"least-request\"", Method::parse_own)
    } else {
        r.read(
            "load-balance",
            "\"ewma\" or \"round_robin\"; weir.dev/load-balance has \"least-request\" too",
            Method::parse,
        )
    };
    Balance {
        method: method.unwrap_or_default(),
        slow_start: r.wait("slow-start"),
        most: r.number("max-connections", 1..=MAX_CONNECTIONS),
    }
}

pub(super) fn body_limit(r: &mut Reader<'_>) -> Option<NonZeroU64> {
    let bytes =
        r.read("proxy-body-size", "a size, such as \"8m\", \"512k\", \"1g\", or \"0\" for no limit", size)?;
    NonZeroU64::new(bytes)
}

/// nginx's sizes: bytes, or with a unit.
fn size(text: &str) -> Option<u64> {
    let (digits, scale) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&text[..text.len() - 1], 1 << 10),
        b'm' => (&text[..text.len() - 1], 1 << 20),
        b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_nginx_units() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("10", Some(10)),
            ("8m", Some(8 << 20)),
            ("512K", Some(512 << 10)),
            ("1g", Some(1 << 30)),
            ("1t", None),
            ("m", None),
            ("", None),
            ("1.5m", None),
            ("99999999999999999999g", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
