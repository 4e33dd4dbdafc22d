//! Annotations about client certificates: `auth-tls-*`.

use std::sync::Arc;

use super::access::own_secret;
use super::reader::{Reader, flag};
use crate::compile::ObjectKey;
use crate::policy::{ClientCertificates, Demand, Template};
use crate::table::Pattern;

/// `None` also where nobody is asked: `auth-tls-verify-client: off`.
pub(super) fn certificates(r: &mut Reader<'_>, ingress: &ObjectKey) -> Option<Arc<ClientCertificates>> {
    let demand =
        r.guard("auth-tls-verify-client", "\"on\", \"off\", \"optional\" or \"optional_no_ca\"", |text| {
            match text {
                "on" => Some(Some(Demand::Required)),
                "optional" => Some(Some(Demand::Optional)),
                "optional_no_ca" => Some(Some(Demand::Unverified)),
                "off" => Some(None),
                _ => None,
            }
        });
    let subject = r.text("auth-tls-match-cn").and_then(|text| match Pattern::text(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            r.close("auth-tls-match-cn", &format!("cannot be served: {error}"));
            None
        }
    });
    let passes = r.read("auth-tls-pass-certificate-to-upstream", "\"true\" or \"false\"", flag);
    let error_page = r.read(
        "auth-tls-error-page",
        "a URL or path, in which $scheme, $host, $request_uri, $uri and $args may stand",
        Template::parse_location,
    );
    if r.text("auth-tls-secret").is_none_or(str::is_empty) {
        for name in ["auth-tls-verify-client", "auth-tls-match-cn"] {
            // Nobody is to believe that someone is asked.
            if demand != Some(None) && r.text(name).is_some() {
                r.close(name, "needs auth-tls-secret, a Secret with ca.crt to verify clients by");
            }
        }
    }
    let secret = own_secret(r, "auth-tls-secret", ingress)?;
    Some(Arc::new(ClientCertificates {
        authorities: secret.to_string().into(),
        demand: demand.unwrap_or(Some(Demand::Required))?,
        subject,
        passes: passes.unwrap_or(false),
        error_page,
    }))
}
