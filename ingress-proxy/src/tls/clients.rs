//! Certificates of clients: how they are asked for, and what is known of one that was shown.

use std::fmt::Write as _;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use super::{Certificates, server_config};
use crate::policy::{Identity, Shown};
use crate::upstream::{TlsError, read_authorities};

/// A handshake that asks for a certificate of these authorities.
pub(crate) struct ClientAuth {
    /// Their Secret, `namespace/name`.
    name: Arc<str>,
    verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) config: Arc<ServerConfig>,
}

impl std::fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientAuth").field(&self.name).finish()
    }
}

impl ClientAuth {
    /// By the certificates in this PEM.
    pub(crate) fn new(
        name: &Arc<str>,
        authorities: &[u8],
        certificates: Arc<ArcSwap<Certificates>>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(read_authorities(authorities)?, provider);
        let verifier = builder.build().map_err(|_| TlsError::Authorities)?;
        let lenient = Arc::new(Lenient(Arc::clone(&verifier)));
        let config = server_config(certificates, Some(lenient))?;
        Ok(Self { name: Arc::clone(name), verifier, config: Arc::new(config) })
    }

    /// What the client has shown, in a handshake that is over.
    pub(crate) fn identity(&self, chain: Option<&[CertificateDer<'_>]>) -> Identity {
        let shown = chain.and_then(<[_]>::split_first).map(|(own, others)| {
            let verified = self.verifier.verify_client_cert(own, others, UnixTime::now());
            let (subject, issuer) = names(own).unwrap_or_default();
            Shown {
                fault: verified.err().map(|error| error.to_string()),
                subject,
                issuer,
                certificate: encode(own),
            }
        });
        Identity { asked_by: Arc::clone(&self.name), shown }
    }
}

/// PEM in percent-encoding, as nginx's `$ssl_client_escaped_cert`.
fn encode(certificate: &CertificateDer<'_>) -> String {
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in BASE64_STANDARD.encode(certificate).as_bytes().chunks(64) {
        let _ = writeln!(pem, "{}", String::from_utf8_lossy(line)); // writing into memory does not fail
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    percent_encode(pem.as_bytes(), NON_ALPHANUMERIC).to_string()
}

/// Subject and issuer.
fn names(certificate: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some((name(parsed.subject()), name(parsed.issuer())))
}

/// A name as RFC 2253 writes it: the last part first, and what has a meaning there escaped.
fn name(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_attributes().collect();
    let mut text = String::new();
    for part in parts.into_iter().rev() {
        let oid = part.attr_type();
        let key = x509_parser::objects::oid2abbrev(oid, x509_parser::objects::oid_registry());
        let key = key.map_or_else(|_| oid.to_id_string(), str::to_owned);
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{key}="); // writing into memory does not fail
        for character in part.as_str().unwrap_or_default().chars() {
            if ",+\"\\<>;".contains(character) {
                text.push('\\');
            }
            text.push(character);
        }
    }
    text
}

/// Asks for a certificate, and takes any whose key the client has, or none: what it is worth is asked afterwards.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// Browsers offer only what these signed.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_rfc_2253_has_them() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let names = &mut parameters.distinguished_name;
        *names = rcgen::DistinguishedName::new();
        names.push(rcgen::DnType::OrganizationName, "Shop, Inc.");
        names.push(rcgen::DnType::CommonName, "ann");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let expected = "CN=ann,O=Shop\\, Inc.".to_owned();
        assert_eq!(names_of(&certificate), (expected.clone(), expected));
        let text = encode(certificate.der());
        assert!(text.starts_with("%2D%2D%2D%2D%2DBEGIN%20CERTIFICATE%2D%2D%2D%2D%2D%0AMII"), "{text}");
        let pem = percent_encoding::percent_decode_str(&text).decode_utf8().unwrap();
        assert_eq!(pem.replace("\r\n", "\n").trim(), certificate.pem().replace("\r\n", "\n").trim());
    }

    fn names_of(certificate: &rcgen::Certificate) -> (String, String) {
        names(certificate.der()).unwrap()
    }
}
