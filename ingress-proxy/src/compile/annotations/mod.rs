//! From the annotations of an Ingress to typed, checked settings: a pure function. `ANNOTATIONS.md` in this crate's
//! folder is the list for users.
//!
//! The names are ingress-nginx's, below `nginx.ingress.kubernetes.io/` so that manifests move unchanged, and below
//! `weir.dev/`, which wins. What is unknown, malformed, refused or not served yet is a problem and harms only
//! itself: requests are served as if it were not there. The exception is what keeps requests out (source ranges,
//! passwords, external authentication, client certificates): if that cannot be served, the Ingress's paths answer 503
//! and say why, for serving them would open what was meant to be closed.

mod access;
mod clients;
mod health;
mod known;
mod own_requests;
mod places;
mod reader;
mod traffic;
mod upstream_tls;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;

pub(crate) use access::PasswordSource;
#[cfg(test)]
pub(crate) use known::{KNOWN, Known};
pub(crate) use reader::is_ours;

use super::{EndpointTls, HealthCheck, ObjectKey, Protocol, Reason};
use crate::policy::{Canary, ClientCertificates, Redirects, Replacement, Settings, Template, ToHttps};
use crate::table::{HostPattern, normalize_host};
use reader::{Reader, list};

/// `Strict-Transport-Security` unless it is said otherwise: a year, as in ingress-nginx, but not for subdomains, which
/// can be other people's.
const HSTS_MAX_AGE_S: u32 = 31_536_000;
/// Aliases of one Ingress.
const MAX_ALIASES: usize = 64;

/// What the annotations of one Ingress say.
#[derive(Debug, PartialEq)]
pub(super) struct Annotations {
    pub(super) settings: Settings,
    /// Where the passwords are; their lookup is the caller's.
    pub(super) passwords: Option<PasswordSource>,
    /// Its paths are patterns: `use-regex`, or `rewrite-target`.
    pub(super) patterns: bool,
    pub(super) rewrite: Option<Replacement>,
    /// It is the other version of an Ingress, for these requests.
    pub(super) canary: Option<Canary>,
    pub(super) aliases: Vec<HostPattern>,
    /// `from-to-www-redirect`.
    pub(super) www: bool,
    /// The Service that answers when the rule's has no endpoints.
    pub(super) default_backend: Option<String>,
    /// What the endpoints speak, if it is said.
    pub(super) protocol: Option<Protocol>,
    pub(super) tls: EndpointTls,
    /// How the endpoints are checked, if they are.
    pub(super) health: Option<Arc<HealthCheck>>,
    /// What it asks of the clients of its hosts.
    pub(super) clients: Option<Arc<ClientCertificates>>,
    /// Connections of TLS for its hosts go to the endpoints as they are.
    pub(super) passthrough: bool,
    pub(super) problems: Vec<(Reason, String)>,
}

impl Annotations {
    /// Reads the annotations of the Ingress `key`.
    pub(super) fn read(key: &ObjectKey, annotations: &BTreeMap<String, String>) -> Self {
        let mut reader = Reader::new(annotations);
        let r = &mut reader;
        let (canary, protocol, passwords) =
            (traffic::canary(r), traffic::protocol(r), access::passwords(r, key));
        let (tls, clients) = (upstream_tls::settings(r, key), clients::certificates(r, key));
        let rewrite = r.read(
            "rewrite-target",
            "a path, in which $1 to $9 may stand for groups of the rule's path",
            Replacement::parse,
        );
        let patterns = r.is_on("use-regex") | r.text("rewrite-target").is_some();
        let settings = Settings {
            sources: access::sources(r),
            redirects: redirects(r),
            hsts: hsts(r),
            cors: access::cors(r),
            limits: access::limits(r, key),
            auth: None,
            external: own_requests::external(r, key).map(Arc::new),
            satisfy_any: own_requests::satisfy_any(r),
            mirror: own_requests::mirror(r, key).map(Arc::new),
            body_limit: traffic::body_limit(r),
            vhost: r.read("upstream-vhost", "a host, maybe with a port", vhost),
            prefix: r.read("x-forwarded-prefix", "a path", |text| {
                path(text).and_then(|path| HeaderValue::from_str(path).ok())
            }),
            affinity: traffic::affinity(r),
            hash_by: r.read("upstream-hash-by", HASH_BY, Template::parse),
            upstream: traffic::upstream(r),
            error_statuses: r
                .read("custom-http-errors", "a list of statuses from 400 to 599", statuses)
                .unwrap_or_default(),
            places: places::places(r),
            unlogged: r.flag("enable-access-log") == Some(false),
            untraced: r.flag("enable-opentelemetry") == Some(false),
            closed: None,
        };
        if protocol.is_some_and(Protocol::is_http2) && settings.upstream.proxy_protocol.is_some() {
            r.unserved("proxy-protocol", "is not spoken with endpoints of HTTP/2: it has no effect");
        }
        Self {
            passwords,
            patterns,
            rewrite,
            canary,
            aliases: r.read("server-alias", "a list of host names, at most 64", aliases).unwrap_or_default(),
            www: r.is_on("from-to-www-redirect"),
            default_backend: r.text("default-backend").filter(|name| !name.is_empty()).map(str::to_owned),
            protocol,
            tls,
            health: health::check(r, settings.upstream.proxy_protocol).map(Arc::new),
            clients,
            passthrough: r.guard("ssl-passthrough", "\"true\" or \"false\"", reader::flag).unwrap_or(false),
            // All others may add to it.
            settings: Settings { closed: reader.closed.map(String::into_boxed_str), ..settings },
            problems: reader.problems,
        }
    }
}

const HASH_BY: &str = "a text with variables such as $request_uri, $host, $remote_addr, $http_NAME, $cookie_NAME or \
                       $arg_NAME";
const PLACE: &str = "a URL or path, in which $scheme, $host, $request_uri, $uri and $args may stand";
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

fn redirects(r: &mut Reader<'_>) -> Redirects {
    let force = r.is_on("force-ssl-redirect");
    let to_https = match r.flag("ssl-redirect") {
        _ if force => ToHttps::Always,
        Some(false) => ToHttps::Never,
        Some(true) | None => ToHttps::WhenServed,
    };
    let mut to = |name: &str, code_name: &str, code: u16| {
        let place = r.read(name, PLACE, Template::parse_location);
        let status = r.read(code_name, "one of 301, 302, 303, 307, 308", |text| {
            text.parse().ok().filter(|code| REDIRECTS.contains(code))
        });
        place.map(|place| (status.unwrap_or(code), place))
    };
    let temporal = to("temporal-redirect", "temporal-redirect-code", 302);
    let permanent = to("permanent-redirect", "permanent-redirect-code", 301);
    let app_root = r.read("app-root", "a path", path).map(Into::into);
    Redirects { to_https, to_host: None, to: temporal.or(permanent), app_root }
}

/// On for hosts with TLS.
fn hsts(r: &mut Reader<'_>) -> Option<HeaderValue> {
    let max_age = r.number("hsts-max-age", 0..=u32::MAX).unwrap_or(HSTS_MAX_AGE_S);
    let subdomains = if r.is_on("hsts-include-subdomains") { "; includeSubDomains" } else { "" };
    let preload = if r.is_on("hsts-preload") { "; preload" } else { "" };
    if r.flag("hsts") == Some(false) {
        return None;
    }
    HeaderValue::try_from(format!("max-age={max_age}{subdomains}{preload}")).ok()
}

/// A path that can stand in a field.
fn path(text: &str) -> Option<&str> {
    (text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}

fn vhost(text: &str) -> Option<HeaderValue> {
    normalize_host(text).ok().filter(|host| !host.is_empty())?;
    HeaderValue::from_str(text).ok()
}

fn statuses(text: &str) -> Option<Box<[u16]>> {
    let status = |part: &str| part.parse().ok().filter(|status| (400..600).contains(status));
    list(text)?.into_iter().map(status).collect()
}

fn aliases(text: &str) -> Option<Vec<HostPattern>> {
    let names = list(text).filter(|names| names.len() <= MAX_ALIASES)?;
    names.into_iter().map(|name| HostPattern::parse(name).ok()).collect()
}

#[cfg(test)]
mod tests;
