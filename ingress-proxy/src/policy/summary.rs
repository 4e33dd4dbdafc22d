//! Policies by the names of their annotations, for people: which a rule has, and in which two rules differ.

use super::{Policy, Settings, Upstream};
use crate::upstream::Balance;

impl Policy {
    /// What it does that a rule without policies does not.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.differences(&Self::default())
    }

    /// In what the two differ.
    pub(crate) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let Self { settings, host_has_tls, clients, passthrough, rewrite, canary, scope: _ } = self;
        let mut names = settings.differences(&other.settings);
        let own = [
            ("auth-tls", *clients != other.clients),
            ("ssl-passthrough", *passthrough != other.passthrough),
            ("tls", *host_has_tls != other.host_has_tls),
            ("rewrite-target", *rewrite != other.rewrite),
            ("canary", *canary != other.canary),
        ];
        names.extend(own.into_iter().filter_map(|(name, differs)| differs.then_some(name)));
        names
    }
}

impl Settings {
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        // Without `..`: a setting that is new here is to have a name.
        let Self {
            closed,
            sources,
            redirects,
            hsts,
            cors,
            limits,
            auth,
            external,
            satisfy_any,
            mirror,
            body_limit,
            vhost,
            prefix,
            affinity,
            hash_by,
            upstream,
            error_statuses,
            places,
            unlogged,
            untraced,
        } = self;
        let Upstream { connect, read, send, retry, balance, proxy_protocol } = upstream;
        let others = other.upstream.balance;
        let all = [
            ("closed", *closed != other.closed),
            ("source-range", *sources != other.sources),
            ("redirect", *redirects != other.redirects),
            ("hsts", *hsts != other.hsts),
            ("cors", *cors != other.cors),
            ("limit", *limits != other.limits),
            ("auth", *auth != other.auth),
            ("auth-url", *external != other.external),
            ("satisfy", *satisfy_any != other.satisfy_any),
            ("mirror", *mirror != other.mirror),
            ("proxy-body-size", *body_limit != other.body_limit),
            ("upstream-vhost", *vhost != other.vhost),
            ("x-forwarded-prefix", *prefix != other.prefix),
            ("affinity", *affinity != other.affinity),
            ("upstream-hash-by", *hash_by != other.hash_by),
            ("proxy-protocol", *proxy_protocol != other.upstream.proxy_protocol),
            ("proxy-connect-timeout", *connect != other.upstream.connect),
            ("proxy-read-timeout", *read != other.upstream.read),
            ("proxy-send-timeout", *send != other.upstream.send),
            ("proxy-next-upstream", *retry != other.upstream.retry),
            ("load-balance", Balance { most: None, ..*balance } != Balance { most: None, ..others }),
            ("max-connections", balance.most != others.most),
            ("custom-http-errors", *error_statuses != other.error_statuses),
            ("proxy-redirect", places.redirect != other.places.redirect),
            ("proxy-cookie-domain", places.cookie_domain != other.places.cookie_domain),
            ("proxy-cookie-path", places.cookie_path != other.places.cookie_path),
            ("enable-access-log", *unlogged != other.unlogged),
            ("enable-opentelemetry", *untraced != other.untraced),
        ];
        all.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_differs_has_its_name() {
        let plain = Policy::default();
        let large = Policy {
            settings: Arc::new(Settings { body_limit: NonZeroU64::new(9), ..Settings::default() }),
            host_has_tls: true,
            ..Policy::default()
        };
        assert_eq!(plain.names(), [""; 0]);
        assert_eq!(large.names(), ["proxy-body-size", "tls"]);
        assert_eq!(large.differences(&large), [""; 0]);
        let timeouts = Upstream { read: Some(std::time::Duration::from_secs(1)), ..Upstream::default() };
        let slow = Policy {
            settings: Arc::new(Settings { upstream: timeouts, ..Settings::default() }),
            ..Policy::default()
        };
        assert_eq!(slow.differences(&large), ["proxy-body-size", "proxy-read-timeout", "tls"]);
    }
}
