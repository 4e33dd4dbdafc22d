//! Annotations about TLS with endpoints: `proxy-ssl-*`.

use rustls::pki_types::ServerName;

use super::access::own_secret;
use super::reader::Reader;
use crate::compile::{EndpointTls, ObjectKey};

pub(super) fn settings(r: &mut Reader<'_>, ingress: &ObjectKey) -> EndpointTls {
    let name = r.read("proxy-ssl-name", "a host name or an address", |text| {
        ServerName::try_from(text).is_ok().then(|| text.to_owned())
    });
    let word = |text: &str| match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => super::reader::flag(text),
    };
    let verifies = r.guard("proxy-ssl-verify", "\"on\" or \"off\"", word).unwrap_or(false);
    let tells_name = r.read("proxy-ssl-server-name", "\"on\" or \"off\"", word);
    let secret = own_secret(r, "proxy-ssl-secret", ingress);
    if verifies && secret.is_none() {
        r.close("proxy-ssl-verify", "needs proxy-ssl-secret, a Secret with ca.crt to verify endpoints by");
    }
    EndpointTls { tells_name: tells_name.unwrap_or(name.is_some()), name, verifies, secret }
}
