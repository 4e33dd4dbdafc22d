//! Certificates that clients verify.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Whoever issues them.
pub struct Authority {
    /// Its own certificate, in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub struct Pair {
    /// The certificate alone: its authority's is what clients have.
    pub chain: String,
    /// The private key.
    pub key: String,
}

impl Authority {
    /// One with a new key.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        let mut params = params(Vec::new(), "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = key();
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Issues a new certificate for a host name or an address.
    pub fn issue(&self, name: &str) -> Pair {
        let key = key();
        let certificate = params(vec![name.to_owned()], name).signed_by(&key, &self.issuer);
        Pair { chain: certificate.expect("a certificate").pem(), key: key.serialize_pem() }
    }
}

/// What is to be in a certificate. One whose subject is its issuer's would count as self-signed.
fn params(names: Vec<String>, subject: &str) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("names of hosts or addresses");
    params.distinguished_name.push(DnType::CommonName, subject);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
