//! Client certificates: who has to show one, whose is taken, and what the endpoint hears of it.
//!
//! The handshake lets everybody through who has the key of the certificate that is shown, or shows none; what that is worth
//! is decided here, so that a client gets an answer that says what is wrong instead of a connection that ends.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::template::Template;
use super::{By, Client, Reply, RequestHead};
use crate::table::Pattern;

const CERTIFICATE: HeaderName = HeaderName::from_static("ssl-client-cert");
const VERIFY: HeaderName = HeaderName::from_static("ssl-client-verify");
const SUBJECT: HeaderName = HeaderName::from_static("ssl-client-subject-dn");
const ISSUER: HeaderName = HeaderName::from_static("ssl-client-issuer-dn");
/// What ingress-nginx calls them; no client's word is passed on in these.
pub(super) const FIELDS: [HeaderName; 4] = [CERTIFICATE, VERIFY, SUBJECT, ISSUER];

/// Who must show a certificate: `auth-tls-verify-client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Everybody, and it must be good.
    Required,
    /// Nobody, but what is shown must be good.
    Optional,
    /// Nobody, and the endpoint judges.
    Unverified,
}

/// What a host asks of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificates {
    /// The Secret with the authorities, `namespace/name`: which handshake asks for the certificate.
    pub(crate) authorities: Arc<str>,
    pub(crate) demand: Demand,
    /// `auth-tls-match-cn`: what the subject must match.
    pub(crate) subject: Option<Pattern>,
    /// `auth-tls-pass-certificate-to-upstream`.
    pub(crate) passes: bool,
    /// `auth-tls-error-page`: where clients without a good certificate are sent.
    pub(crate) error_page: Option<Template>,
}

/// What a client showed of itself when its connection was opened.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The Secret whose authorities it was asked by.
    pub(crate) asked_by: Arc<str>,
    pub(crate) shown: Option<Shown>,
}

/// A certificate whose key the client has.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Why it is not taken.
    pub(crate) fault: Option<String>,
    /// As RFC 2253 writes names.
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// PEM, in percent-encoding.
    pub(crate) certificate: String,
}

impl ClientCertificates {
    /// The answer to who must not come in.
    pub(super) fn answer(&self, head: &impl RequestHead, client: &Client) -> Option<Reply> {
        let reply = |status, text: String| Some(Reply::new(status, By::ClientCertificate, text));
        let identity = head.identity().filter(|identity| identity.asked_by == self.authorities);
        let Some(identity) = identity else {
            return if client.https {
                // The client can ask on a connection that was opened for this host (RFC 9110 §15.5.20).
                reply(
                    421,
                    "this connection was opened for a host that asks for other certificates".to_owned(),
                )
            } else {
                reply(400, "a client certificate is asked for, which needs HTTPS".to_owned())
            };
        };
        let lack = match (&identity.shown, self.demand) {
            (None, Demand::Required) => Some("no client certificate was shown".to_owned()),
            (Some(Shown { fault: Some(fault), .. }), Demand::Required | Demand::Optional) => {
                Some(format!("the client certificate is not taken: {fault}"))
            }
            _ => None,
        };
        if let Some(lack) = lack {
            let Some(page) = &self.error_page else { return reply(400, lack) };
            let location = String::from_utf8(page.expand(head, client)).unwrap_or_default();
            return Some(Reply { by: By::ClientCertificate, ..Reply::redirect(302, &location) });
        }
        let subject = identity.shown.as_ref().map_or("", |shown| &shown.subject);
        let fits = self.subject.as_ref().is_none_or(|pattern| pattern.matches(subject.as_bytes()));
        if fits { None } else { reply(403, "the client certificate is another one's".to_owned()) }
    }

    /// What must be shown, for who only asks.
    pub(super) fn passes_when(&self) -> String {
        let demand = match self.demand {
            Demand::Required => "must show one that is signed",
            Demand::Optional => "may show one that is signed",
            Demand::Unverified => "may show any, and the endpoint hears whether it is signed",
        };
        let subject = self
            .subject
            .as_ref()
            .map(|pattern| format!(", and whose subject matches {:?}", pattern.as_str()));
        let subject = subject.unwrap_or_default();
        format!("the client {demand} by the authorities of Secret {}{subject}", self.authorities)
    }

    /// What the endpoint hears.
    pub(super) fn fields(&self, identity: Option<&Identity>) -> Vec<(HeaderName, HeaderValue)> {
        let Some(shown) = identity.and_then(|identity| identity.shown.as_ref()) else {
            return vec![(VERIFY, HeaderValue::from_static("NONE"))];
        };
        let verdict = shown.fault.as_ref().map_or("SUCCESS".to_owned(), |fault| format!("FAILED:{fault}"));
        let certificate = self.passes.then_some((CERTIFICATE, &shown.certificate));
        let fields = [(VERIFY, &verdict), (SUBJECT, &shown.subject), (ISSUER, &shown.issuer)];
        let fields = fields.into_iter().chain(certificate);
        // What cannot stand in a field is left out rather than cut.
        fields.filter_map(|(name, text)| Some((name, HeaderValue::from_str(text).ok()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Head, get};
    use super::*;

    fn asked(demand: Demand) -> ClientCertificates {
        ClientCertificates {
            authorities: "n/ca".into(),
            demand,
            subject: None,
            passes: false,
            error_page: None,
        }
    }

    fn shown(fault: Option<&str>) -> Head {
        let shown = Shown {
            fault: fault.map(str::to_owned),
            subject: "CN=ann,O=Shop".to_owned(),
            issuer: "CN=ca".to_owned(),
            certificate: "-----BEGIN%20CERTIFICATE".to_owned(),
        };
        of(Some(Identity { asked_by: "n/ca".into(), shown: Some(shown) }))
    }

    fn of(identity: Option<Identity>) -> Head {
        Head { identity: identity.map(Arc::new), ..get("http://a/x", &[]) }
    }

    fn status(asked: &ClientCertificates, head: &Head, https: bool) -> u16 {
        let client = Client { address: "192.0.2.1".parse().unwrap(), https, now_us: 0, dice: 0 };
        asked.answer(head, &client).map_or(200, |reply| reply.status)
    }

    #[test]
    fn who_shows_what_is_let_in_as_the_rule_demands() {
        let none = || of(Some(Identity { asked_by: "n/ca".into(), shown: None }));
        for (demand, without, bad, good) in [
            (Demand::Required, 400, 400, 200),
            (Demand::Optional, 200, 400, 200),
            (Demand::Unverified, 200, 200, 200),
        ] {
            let asked = asked(demand);
            assert_eq!(status(&asked, &none(), true), without, "{demand:?}");
            assert_eq!(status(&asked, &shown(Some("expired")), true), bad, "{demand:?}");
            assert_eq!(status(&asked, &shown(None), true), good, "{demand:?}");
        }
        let page = Template::parse_location("https://a.example/certificates");
        assert_eq!(
            status(&ClientCertificates { error_page: page, ..asked(Demand::Required) }, &none(), true),
            302
        );
    }

    #[test]
    fn a_connection_of_another_host_is_misdirected() {
        let asked = asked(Demand::Optional);
        assert_eq!(status(&asked, &of(None), true), 421);
        assert_eq!(status(&asked, &of(Some(Identity { asked_by: "n/b".into(), shown: None })), true), 421);
        assert_eq!(status(&asked, &of(None), false), 400);
    }

    #[test]
    fn the_subject_must_match() {
        let matching = |text| ClientCertificates {
            subject: Some(Pattern::text(text).unwrap()),
            ..asked(Demand::Optional)
        };
        assert_eq!(status(&matching("CN=ann"), &shown(None), true), 200);
        assert_eq!(status(&matching("CN=bob"), &shown(None), true), 403);
        let none = of(Some(Identity { asked_by: "n/ca".into(), shown: None }));
        assert_eq!(status(&matching("CN=ann"), &none, true), 403, "nobody has no name");
    }

    #[test]
    fn endpoints_hear_who_it_is() {
        let text = |head: &Head, passes| -> Vec<String> {
            let fields = ClientCertificates { passes, ..asked(Demand::Optional) }.fields(head.identity());
            fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
        };
        assert_eq!(text(&of(None), true), ["ssl-client-verify: NONE"]);
        assert_eq!(
            text(&shown(Some("expired")), true),
            [
                "ssl-client-verify: FAILED:expired",
                "ssl-client-subject-dn: CN=ann,O=Shop",
                "ssl-client-issuer-dn: CN=ca",
                "ssl-client-cert: -----BEGIN%20CERTIFICATE",
            ]
        );
        assert_eq!(text(&shown(None), false)[0], "ssl-client-verify: SUCCESS");
        assert_eq!(text(&shown(None), false).len(), 3);
    }
}
