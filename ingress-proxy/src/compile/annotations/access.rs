//! Annotations about who may come in, and how often.

use http::HeaderValue;

use super::reader::{NETWORKS, Reader, list, networks};
use crate::compile::ObjectKey;
use crate::policy::{BasicAuth, Cors, Limits, MAX_ORIGINS, Origin, Origins, Per, Rate, Sources};

/// The largest limit that can be asked for.
const MAX_LIMIT: u32 = 1_000_000;
const MAX_BURST_MULTIPLIER: u32 = 1_000;
/// ingress-nginx's default of `limit-burst-multiplier`.
const BURST_MULTIPLIER: u32 = 5;
/// ingress-nginx's defaults of `cors-*`.
const CORS_METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const CORS_HEADERS: &str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,\
                            Range,Authorization";
const CORS_MAX_AGE_S: u32 = 1_728_000;

/// Where the passwords of `auth-type: basic` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PasswordSource {
    pub(crate) secret: ObjectKey,
    /// One key per user instead of a file in the key `auth`.
    pub(crate) is_map: bool,
    pub(crate) challenge: HeaderValue,
}

pub(super) fn sources(r: &mut Reader<'_>) -> Sources {
    let whitelist = r.guard("whitelist-source-range", NETWORKS, networks);
    let allow = r.guard("allowlist-source-range", NETWORKS, networks).or(whitelist);
    let deny = r.guard("denylist-source-range", NETWORKS, networks).unwrap_or_default();
    Sources { allow, deny }
}

pub(super) fn passwords(r: &mut Reader<'_>, ingress: &ObjectKey) -> Option<PasswordSource> {
    r.guard("auth-type", "\"basic\", the only type that is served", |text| (text == "basic").then_some(()))?;
    let realm = r.text("auth-realm").unwrap_or("Authentication Required");
    let challenge = BasicAuth::challenge(realm).unwrap_or_else(|| {
        r.fault("auth-realm", "has a character that no realm can have: another realm is used");
        HeaderValue::from_static("Basic realm=\"Authentication Required\", charset=\"UTF-8\"")
    });
    let is_map = r.guard("auth-secret-type", "\"auth-file\" or \"auth-map\"", |text| match text {
        "auth-file" => Some(false),
        "auth-map" => Some(true),
        _ => None,
    });
    if r.text("auth-secret").is_none_or(str::is_empty) {
        r.close("auth-type", "needs auth-secret, the name of a Secret with users and password hashes");
    }
    let secret = own_secret(r, "auth-secret", ingress)?;
    Some(PasswordSource { secret, is_map: is_map.unwrap_or(false), challenge })
}

/// A Secret that an annotation names, with or without its namespace. A team that may write Ingresses must not be able to use
/// another team's Secrets through the proxy.
pub(super) fn own_secret(r: &mut Reader<'_>, annotation: &str, ingress: &ObjectKey) -> Option<ObjectKey> {
    let name = r.text(annotation).filter(|name| !name.is_empty())?;
    let name = match name.split_once('/') {
        Some((namespace, name)) if namespace == ingress.namespace => name,
        Some(_) => {
            r.close(annotation, "is in another namespace: Secrets are read in the Ingress's own only");
            return None;
        }
        None => name,
    };
    Some(ObjectKey::new(&ingress.namespace, name))
}

pub(super) fn limits(r: &mut Reader<'_>, ingress: &ObjectKey) -> Option<Limits> {
    let multiplier = r.number("limit-burst-multiplier", 1..=MAX_BURST_MULTIPLIER).unwrap_or(BURST_MULTIPLIER);
    let mut rate = |name: &str, per| {
        let requests = r.number(name, 1..=MAX_LIMIT)?;
        Some(Rate { requests, per, burst: requests.saturating_mul(multiplier) })
    };
    let rates: Vec<Rate> =
        [rate("limit-rpm", Per::Minute), rate("limit-rps", Per::Second)].into_iter().flatten().collect();
    let at_a_time = r.number("limit-connections", 1..=MAX_LIMIT);
    let whitelist = r.read("limit-whitelist", NETWORKS, networks);
    let exempt = r.read("limit-allowlist", NETWORKS, networks).or(whitelist).unwrap_or_default();
    if rates.is_empty() && at_a_time.is_none() {
        return None;
    }
    Some(Limits { group: ingress.to_string().into(), at_a_time, rates: rates.into(), exempt })
}

pub(super) fn cors(r: &mut Reader<'_>) -> Option<Cors> {
    if !r.is_on("enable-cors") {
        return None;
    }
    // An origin that cannot be read must not become every origin.
    let origins = match r.text("cors-allow-origin") {
        None => Origins::Any,
        Some(_) => r.read("cors-allow-origin", ORIGINS, origins).unwrap_or(Origins::Listed(Box::default())),
    };
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut words = |name: &str, expected: &str, is_fit: &dyn Fn(u8) -> bool| {
        r.read(name, expected, |text| {
            let fit = list(text)?.iter().all(|word| word.bytes().all(is_fit));
            fit.then(|| HeaderValue::from_str(text).ok())?
        })
    };
    let methods = words("cors-allow-methods", "a list of methods", &|byte| byte.is_ascii_alphabetic());
    let headers = words("cors-allow-headers", "a list of field names", &is_token);
    let expose = words("cors-expose-headers", "a list of field names, or *", &|b| is_token(b) || b == b'*');
    let credentials = r.flag("cors-allow-credentials").unwrap_or(true);
    let max_age = r.number("cors-max-age", 0..=u32::MAX).unwrap_or(CORS_MAX_AGE_S);
    Some(Cors {
        origins,
        methods: methods.unwrap_or(HeaderValue::from_static(CORS_METHODS)),
        headers: headers.unwrap_or(HeaderValue::from_static(CORS_HEADERS)),
        expose,
        credentials,
        max_age: max_age.into(),
    })
}

const ORIGINS: &str = "*, or a list of origins such as https://a.example or https://*.a.example:8443";

fn origins(text: &str) -> Option<Origins> {
    let parts = list(text).filter(|parts| parts.len() <= MAX_ORIGINS)?;
    if parts.contains(&"*") {
        return Some(Origins::Any);
    }
    let parsed: Option<Box<[Origin]>> = parts.into_iter().map(Origin::parse).collect();
    parsed.map(Origins::Listed)
}
