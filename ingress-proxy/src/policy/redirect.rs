//! Redirects: to HTTPS, to another host, to another place.

use super::head::origin_form;
use super::template::Template;
use super::{By, Client, Reply, RequestHead};

/// The status of redirects that keep the request as it is (ingress-nginx's `http-redirect-code`).
const PERMANENT: u16 = 308;
/// What certificate authorities ask for over plain HTTP (RFC 8555 §8.3) is never redirected.
const ACME: &str = "/.well-known/acme-challenge/";

/// When a request over plain HTTP is sent to HTTPS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ToHttps {
    /// When the host has TLS: `ssl-redirect`, which is on unless it is said otherwise.
    #[default]
    WhenServed,
    /// Never: `ssl-redirect: "false"`.
    Never,
    /// Always: `force-ssl-redirect`, for TLS that ends in front of us.
    Always,
}

/// All redirects of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Redirects {
    pub(crate) to_https: ToHttps,
    /// The same request on another host: `from-to-www-redirect`.
    pub(crate) to_host: Option<Box<str>>,
    /// Status and place: `permanent-redirect`, `temporal-redirect`.
    pub(crate) to: Option<(u16, Template)>,
    /// Where `/` is sent: `app-root`.
    pub(crate) app_root: Option<Box<str>>,
}

impl Redirects {
    /// `host_has_tls`: some Ingress names a certificate for the rule's host.
    pub(super) fn answer(
        &self,
        head: &impl RequestHead,
        client: &Client,
        host_has_tls: bool,
    ) -> Option<Reply> {
        let wants_https = match self.to_https {
            ToHttps::WhenServed => host_has_tls,
            ToHttps::Never => false,
            ToHttps::Always => true,
        };
        if wants_https && !client.https && !head.path().starts_with(ACME) {
            if head.host().is_empty() {
                let text = "the request has no Host, so it cannot be sent on to HTTPS";
                return Some(Reply::new(400, By::Redirect, text));
            }
            let location = format!("https://{}{}", head.host(), origin_form(head));
            return Some(Reply::redirect(PERMANENT, &location));
        }
        if let Some(host) = &self.to_host {
            let scheme = if client.https { "https" } else { "http" };
            let location = format!("{scheme}://{host}{}", origin_form(head));
            return Some(Reply::redirect(PERMANENT, &location));
        }
        if let Some((status, place)) = &self.to {
            let location = String::from_utf8(place.expand(head, client)).unwrap_or_default();
            return Some(Reply::redirect(*status, &location));
        }
        let root = self.app_root.as_ref().filter(|_| head.path() == "/")?;
        Some(Reply::redirect(302, root))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    fn answer(redirects: &Redirects, target: &str, https: bool, tls: bool) -> Option<(u16, String)> {
        let client = Client { address: "192.0.2.1".parse().unwrap(), https, now_us: 0, dice: 0 };
        redirects.answer(&get(target, &[]), &client, tls).map(|reply| {
            let location = reply.fields.get("location").map(|value| value.to_str().unwrap().to_owned());
            (reply.status, location.unwrap_or_default())
        })
    }

    fn to(status: u16, location: &str) -> (u16, String) {
        (status, location.to_owned())
    }

    #[test]
    fn plain_http_goes_to_https_where_it_is_served() {
        let with = |to_https| Redirects { to_https, ..Redirects::default() };
        let target = "http://a.com/x/?q=1";
        let there = Some(to(308, "https://a.com/x/?q=1"));
        for (to_https, https, tls, expected) in [
            (ToHttps::WhenServed, false, true, there.clone()),
            (ToHttps::WhenServed, true, true, None),
            (ToHttps::WhenServed, false, false, None),
            (ToHttps::Never, false, true, None),
            (ToHttps::Always, false, false, there),
            (ToHttps::Always, true, false, None),
        ] {
            assert_eq!(answer(&with(to_https), target, https, tls), expected, "{to_https:?} {https} {tls}");
        }
        let default = Redirects::default();
        assert_eq!(answer(&default, "http://a.com/.well-known/acme-challenge/t", false, true), None);
        assert_eq!(answer(&default, "http:///x", false, true), Some(to(400, "")));
    }

    #[test]
    fn hosts_and_places() {
        let www = Redirects { to_host: Some("www.a.com".into()), ..Redirects::default() };
        assert_eq!(answer(&www, "http://a.com/x?y", false, false), Some(to(308, "http://www.a.com/x?y")));
        assert_eq!(answer(&www, "http://a.com/x?y", true, false), Some(to(308, "https://www.a.com/x?y")));

        let place = Template::parse_location("https://b.com$request_uri").unwrap();
        let moved = Redirects { to: Some((301, place)), ..Redirects::default() };
        assert_eq!(answer(&moved, "http://a.com/x?y", true, false), Some(to(301, "https://b.com/x?y")));

        let root = Redirects { app_root: Some("/app".into()), ..Redirects::default() };
        assert_eq!(answer(&root, "http://a.com/?q", false, false), Some(to(302, "/app")));
        assert_eq!(answer(&root, "http://a.com/app", false, false), None);
    }

    /// A query that would break out of the field is answered, not repeated.
    #[test]
    fn a_location_is_one_field() {
        let www = Redirects { to_host: Some("b.com".into()), ..Redirects::default() };
        assert_eq!(answer(&www, "http://a.com/x?y\r\nSet-Cookie: z", false, false), Some(to(400, "")));
    }
}
