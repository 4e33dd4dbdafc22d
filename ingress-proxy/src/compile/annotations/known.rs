//! Every annotation there is: those of ingress-nginx, and Weir's own.
//!
//! What is not served is on the list too, so that a manifest that asks for it is told so instead of being served as
//! if it had not asked.

/// How an annotation is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It does what it does in ingress-nginx, or what its documentation here says.
    Served,
    /// It is about something that does not exist here; the text says what.
    Idle(&'static str),
    /// It is not served yet: requests are served without it.
    NotYet,
    /// It never will be; the text says why.
    Refused(&'static str),
}

const STREAMED: Known = Known::Idle("bodies are passed on as they come and are never buffered");
const KEPT: Known =
    Known::Idle("connections to authentication servers are kept and used again by themselves");
const TRACED: Known = Known::Idle(
    "spans are of OpenTelemetry and named by their methods; callers in --trusted-proxies decide what is recorded",
);
const CODE: Known = Known::Refused(
    "it is configuration in nginx's language, which is code: use the annotations that \
                                    do what it does",
);

/// By name, without prefix.
pub(crate) fn known(name: &str) -> Option<Known> {
    let found = KNOWN.binary_search_by_key(&name, |(known, _)| known).ok()?;
    Some(KNOWN[found].1)
}

/// The name that a misspelt one was most likely to be.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    /// Letters that may be wrong.
    const MOST: usize = 2;
    let distance = |known: &str| strsim::osa_distance(known, name);
    let nearest = KNOWN.iter().map(|(known, _)| *known).min_by_key(|known| distance(known));
    nearest.filter(|known| distance(known) <= MOST)
}

/// Sorted by name.
pub(crate) const KNOWN: &[(&str, Known)] = &[
    ("affinity", Known::Served),
    ("affinity-canary-behavior", Known::Served),
    ("affinity-mode", Known::Served),
    ("allowlist-source-range", Known::Served),
    ("app-root", Known::Served),
    ("auth-always-set-cookie", Known::Served),
    ("auth-cache-duration", Known::Served),
    ("auth-cache-key", Known::Served),
    ("auth-keepalive", KEPT),
    ("auth-keepalive-requests", KEPT),
    ("auth-keepalive-share-vars", KEPT),
    ("auth-keepalive-timeout", KEPT),
    ("auth-method", Known::Served),
    ("auth-proxy-set-headers", Known::NotYet),
    ("auth-realm", Known::Served),
    ("auth-request-redirect", Known::Served),
    ("auth-response-headers", Known::Served),
    ("auth-secret", Known::Served),
    ("auth-secret-type", Known::Served),
    ("auth-signin", Known::Served),
    ("auth-signin-redirect-param", Known::Served),
    ("auth-snippet", CODE),
    ("auth-tls-error-page", Known::Served),
    ("auth-tls-match-cn", Known::Served),
    ("auth-tls-pass-certificate-to-upstream", Known::Served),
    ("auth-tls-secret", Known::Served),
    ("auth-tls-verify-client", Known::Served),
    ("auth-tls-verify-depth", Known::Idle("chains of any sensible length are verified")),
    ("auth-type", Known::Served),
    ("auth-url", Known::Served),
    ("backend-protocol", Known::Served),
    ("canary", Known::Served),
    ("canary-by-cookie", Known::Served),
    ("canary-by-header", Known::Served),
    ("canary-by-header-pattern", Known::Served),
    ("canary-by-header-value", Known::Served),
    ("canary-weight", Known::Served),
    ("canary-weight-total", Known::Served),
    ("client-body-buffer-size", STREAMED),
    ("configuration-snippet", CODE),
    ("connection-proxy-header", Known::NotYet),
    ("cors-allow-credentials", Known::Served),
    ("cors-allow-headers", Known::Served),
    ("cors-allow-methods", Known::Served),
    ("cors-allow-origin", Known::Served),
    ("cors-expose-headers", Known::Served),
    ("cors-max-age", Known::Served),
    ("custom-headers", Known::NotYet),
    ("custom-http-errors", Known::Served),
    ("default-backend", Known::Served),
    ("denylist-source-range", Known::Served),
    ("disable-proxy-intercept-errors", Known::NotYet),
    ("enable-access-log", Known::Served),
    ("enable-cors", Known::Served),
    ("enable-global-auth", Known::Idle("there is no authentication for all Ingresses")),
    ("enable-influxdb", Known::NotYet),
    ("enable-modsecurity", Known::NotYet),
    ("enable-opentelemetry", Known::Served),
    ("enable-opentracing", TRACED),
    ("enable-owasp-core-rules", Known::NotYet),
    ("enable-rewrite-log", Known::Idle("there is no log of rewrites")),
    ("force-ssl-redirect", Known::Served),
    ("from-to-www-redirect", Known::Served),
    ("global-rate-limit", Known::NotYet),
    ("global-rate-limit-ignored-cidrs", Known::NotYet),
    ("global-rate-limit-key", Known::NotYet),
    ("global-rate-limit-window", Known::NotYet),
    ("health-check", Known::Served),
    ("health-check-fall", Known::Served),
    ("health-check-grpc-service", Known::Served),
    ("health-check-host", Known::Served),
    ("health-check-interval", Known::Served),
    ("health-check-path", Known::Served),
    ("health-check-port", Known::Served),
    ("health-check-rise", Known::Served),
    ("health-check-timeout", Known::Served),
    ("hsts", Known::Served),
    ("hsts-include-subdomains", Known::Served),
    ("hsts-max-age", Known::Served),
    ("hsts-preload", Known::Served),
    ("http2-push-preload", Known::Idle("no browser takes pushed responses any more")),
    ("limit-allowlist", Known::Served),
    ("limit-burst-multiplier", Known::Served),
    ("limit-connections", Known::Served),
    ("limit-rate", Known::NotYet),
    ("limit-rate-after", Known::NotYet),
    ("limit-rpm", Known::Served),
    ("limit-rps", Known::Served),
    ("limit-whitelist", Known::Served),
    ("load-balance", Known::Served),
    ("max-connections", Known::Served),
    ("mirror-host", Known::Served),
    ("mirror-request-body", Known::Served),
    ("mirror-target", Known::Served),
    ("modsecurity-snippet", CODE),
    ("modsecurity-transaction-id", Known::NotYet),
    ("opentelemetry-operation-name", TRACED),
    ("opentelemetry-trust-incoming-span", TRACED),
    ("opentracing-trust-incoming-span", TRACED),
    ("permanent-redirect", Known::Served),
    ("permanent-redirect-code", Known::Served),
    ("preserve-trailing-slash", Known::Idle("redirects keep the path as it is")),
    ("proxy-body-size", Known::Served),
    ("proxy-buffer-size", STREAMED),
    ("proxy-buffering", STREAMED),
    ("proxy-buffers-number", STREAMED),
    ("proxy-busy-buffers-size", STREAMED),
    ("proxy-connect-timeout", Known::Served),
    ("proxy-cookie-domain", Known::Served),
    ("proxy-cookie-path", Known::Served),
    (
        "proxy-http-version",
        Known::Idle("HTTP/1.1 is spoken with endpoints, HTTP/2 with those of backend-protocol GRPC or GRPCS"),
    ),
    ("proxy-max-temp-file-size", STREAMED),
    ("proxy-next-upstream", Known::Served),
    ("proxy-next-upstream-timeout", Known::Served),
    ("proxy-next-upstream-tries", Known::Served),
    ("proxy-protocol", Known::Served),
    ("proxy-read-timeout", Known::Served),
    ("proxy-redirect-from", Known::Served),
    ("proxy-redirect-to", Known::Served),
    ("proxy-request-buffering", STREAMED),
    ("proxy-send-timeout", Known::Served),
    ("proxy-ssl-ciphers", Known::Idle("TLS with endpoints has the ciphers of rustls, which are all strong")),
    ("proxy-ssl-name", Known::Served),
    ("proxy-ssl-protocols", Known::Idle("TLS with endpoints is 1.2 or 1.3")),
    ("proxy-ssl-secret", Known::Served),
    ("proxy-ssl-server-name", Known::Served),
    ("proxy-ssl-verify", Known::Served),
    ("proxy-ssl-verify-depth", Known::Idle("chains of any sensible length are verified")),
    ("relative-redirects", Known::NotYet),
    ("rewrite-target", Known::Served),
    ("satisfy", Known::Served),
    ("server-alias", Known::Served),
    ("server-snippet", CODE),
    ("service-upstream", Known::NotYet),
    ("session-cookie-change-on-failure", Known::NotYet),
    ("session-cookie-conditional-samesite-none", Known::NotYet),
    ("session-cookie-domain", Known::Served),
    ("session-cookie-expires", Known::Served),
    ("session-cookie-max-age", Known::Served),
    ("session-cookie-name", Known::Served),
    ("session-cookie-path", Known::Served),
    ("session-cookie-samesite", Known::Served),
    ("session-cookie-secure", Known::Served),
    ("slow-start", Known::Served),
    ("ssl-ciphers", Known::NotYet),
    ("ssl-passthrough", Known::Served),
    ("ssl-prefer-server-ciphers", Known::NotYet),
    ("ssl-redirect", Known::Served),
    ("stream-snippet", CODE),
    ("temporal-redirect", Known::Served),
    ("temporal-redirect-code", Known::Served),
    ("upstream-hash-by", Known::Served),
    ("upstream-hash-by-subset", Known::NotYet),
    ("upstream-hash-by-subset-size", Known::NotYet),
    ("upstream-vhost", Known::Served),
    ("use-regex", Known::Served),
    ("whitelist-source-range", Known::Served),
    ("x-forwarded-prefix", Known::Served),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_told_apart() {
        assert!(KNOWN.is_sorted_by(|(a, _), (b, _)| a < b));
        assert_eq!(known("ssl-redirect"), Some(Known::Served));
        assert_eq!(known("ssl-redirects"), None);
    }

    #[test]
    fn a_misspelt_name_is_recognised() {
        assert_eq!(nearest("proxy-body-sise"), Some("proxy-body-size"));
        assert_eq!(nearest("ssl-redirekts"), Some("ssl-redirect"));
        assert_eq!(nearest("something-else"), None);
    }

    /// The list for users says the same as this one.
    #[test]
    fn the_documentation_has_every_name_in_its_section() {
        let text = include_str!("../../../ANNOTATIONS.md");
        let section = |title: &str| {
            let rest = text.split_once(&format!("\n## {title}\n")).expect(title).1;
            rest.split("\n## ").next().unwrap_or_default()
        };
        for (name, known) in KNOWN {
            let section = match known {
                Known::Served => section("Served"),
                Known::Idle(_) => section("Without anything to act on"),
                Known::Refused(_) => section("Refused"),
                Known::NotYet => section("Not served yet"),
            };
            assert!(section.contains(&format!("`{name}`")), "{name}");
        }
    }
}
