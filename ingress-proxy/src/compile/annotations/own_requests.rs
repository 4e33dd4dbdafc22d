//! Annotations that make the proxy send requests of its own: external authentication, mirrors.

use http::{HeaderName, HeaderValue, Method};

use super::reader::{Reader, list};
use super::traffic::token;
use super::vhost;
use crate::compile::ObjectKey;
use crate::policy::{
    Caching, ExternalAuth, Lifetimes, MAX_RESPONSE_FIELDS, Mirror, Template, Url, is_proxys,
};

/// ingress-nginx's `auth-signin-redirect-param`.
const WAY_BACK: &str = "rd";

pub(super) fn external(r: &mut Reader<'_>, ingress: &ObjectKey) -> Option<ExternalAuth> {
    let method =
        r.guard("auth-method", "one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS", |text| match text {
            "" => Some(Method::GET),
            "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" => text.parse().ok(),
            _ => None,
        });
    let response_fields = r.guard("auth-response-headers", RESPONSE_FIELDS, response_fields);
    let sign_in = sign_in(r);
    let redirect = r.read("auth-request-redirect", "a text with variables such as $request_uri", |text| {
        Template::parse(text).filter(|_| HeaderValue::from_str(text).is_ok())
    });
    let always_set_cookie = r.is_on("auth-always-set-cookie");
    let caching = caching(r);
    let text = r.text("auth-url")?;
    let url = r.guard("auth-url", Url::EXPECTED, Url::parse)?;
    Some(ExternalAuth {
        url,
        method: method.unwrap_or(Method::GET),
        response_fields: response_fields.unwrap_or_default(),
        sign_in,
        redirect,
        always_set_cookie,
        caching: caching.map(|(key, lifetimes)| Caching { key, lifetimes, asked: text.into() }),
        group: ingress.to_string().into(),
    })
}

/// Whether one of those that may let in is enough.
pub(super) fn satisfy_any(r: &mut Reader<'_>) -> bool {
    let any = r.guard("satisfy", "\"any\" or \"all\"", |text| match text {
        "any" => Some(true),
        "all" | "" => Some(false),
        _ => None,
    });
    any.unwrap_or(false)
}

const RESPONSE_FIELDS: &str = "a list of at most 64 names of fields, none of which is the proxy's or the connection's own \
                               (such as Host, Content-Length, X-Forwarded-For or X-Request-ID)";

fn response_fields(text: &str) -> Option<Box<[HeaderName]>> {
    if text.is_empty() {
        return Some(Box::default());
    }
    let names = list(text).filter(|names| names.len() <= MAX_RESPONSE_FIELDS)?;
    let name = |text: &str| HeaderName::try_from(text).ok().filter(|name| !is_proxys(name));
    names.into_iter().map(name).collect()
}

/// The place, which is told the way back, unless it says that itself.
fn sign_in(r: &mut Reader<'_>) -> Option<Template> {
    let param = r.read("auth-signin-redirect-param", "the name of a parameter", token).unwrap_or(WAY_BACK);
    let place = |text: &str| {
        let (_, query) = text.split_once('?').unwrap_or((text, ""));
        let names_it =
            |pair: &str| pair.split_once('=').is_some_and(|(name, value)| name == param && !value.is_empty());
        if query.split('&').any(names_it) {
            return Template::parse_location(text);
        }
        let separator = if query.is_empty() { '?' } else { '&' };
        let text = text.strip_suffix('?').unwrap_or(text);
        Template::parse_location(&format!(
            "{text}{separator}{param}=$scheme://$http_host$escaped_request_uri"
        ))
    };
    r.read("auth-signin", SIGN_IN, place)
}

const SIGN_IN: &str = "a URL or path, in which $scheme, $host, $http_host, $request_uri, $escaped_request_uri, $uri and \
                       $args may stand";

/// What cannot be read is no reason to remember too much.
fn caching(r: &mut Reader<'_>) -> Option<(Template, Lifetimes)> {
    let key = r.read(
        "auth-cache-key",
        "a text with variables such as $http_authorization or $cookie_NAME",
        Template::parse,
    );
    let lifetimes = match r.text("auth-cache-duration").filter(|text| !text.is_empty()) {
        None => Some(Lifetimes::default()),
        Some(text) => Lifetimes::parse(text),
    };
    if lifetimes.is_none() {
        r.fault("auth-cache-duration", &format!("is not {}: no answer is remembered", Lifetimes::EXPECTED));
    }
    key.zip(lifetimes)
}

pub(super) fn mirror(r: &mut Reader<'_>, ingress: &ObjectKey) -> Option<Mirror> {
    let with_body = r.read("mirror-request-body", "\"on\" or \"off\"", |text| match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    });
    let host = r.read("mirror-host", "a host, maybe with a port", vhost);
    let url = r.read("mirror-target", Url::EXPECTED, Url::parse)?;
    Some(Mirror { url, host, with_body: with_body.unwrap_or(true), group: ingress.to_string().into() })
}
