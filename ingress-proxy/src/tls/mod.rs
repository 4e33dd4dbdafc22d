//! Which certificate answers a handshake, and which handshakes ask for one.
//!
//! rustls asks for one per handshake, synchronously; the answer comes from a table that is swapped whole when it
//! changes which secret is a host's. What is in a secret can be exchanged in its place, whatever the number of its hosts.
//! Connections that are up keep what they were opened with, so a rotation closes none.

mod clients;

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

pub(crate) use clients::ClientAuth;

use crate::table::{HostMap, HostPattern};

/// HTTP/2 in ALPN.
pub(crate) const H2: &[u8] = b"h2";

/// The pair of one secret.
pub(crate) type Pair = Arc<ArcSwap<CertifiedKey>>;

/// Certificates by host. A copy is cheap, see [`HostMap`].
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    hosts: HostMap<Pair>,
    default: Pair,
}

impl Certificates {
    /// A table with nothing but the pair for hosts that have none.
    pub(crate) fn new(default: Arc<CertifiedKey>) -> Self {
        Self { hosts: HostMap::default(), default: Arc::new(ArcSwap::new(default)) }
    }

    /// Gives a host this pair, or the default one.
    pub(crate) fn set(&mut self, host: &HostPattern, pair: Option<Pair>) {
        // No name in a handshake is every name.
        if *host != HostPattern::Any {
            self.hosts.set(host, pair);
        }
    }

    /// What hosts without one get, in all copies.
    pub(crate) fn default_pair(&self) -> &Pair {
        &self.default
    }

    /// Exact, then wildcard, then the default. `name` is in lower case, as rustls delivers it.
    pub(crate) fn choose(&self, name: &str) -> Arc<CertifiedKey> {
        self.pair(name).load_full()
    }

    /// The same, and which secret's it is.
    pub(crate) fn pair(&self, name: &str) -> &Pair {
        self.hosts.exact(name).or_else(|| self.hosts.wildcard(name)).unwrap_or(&self.default)
    }

    /// Hosts with a pair of their own, in no order.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (HostPattern, &Pair)> {
        self.hosts.iter()
    }
}

/// Asks the current table.
#[derive(Debug)]
pub(crate) struct Resolver(pub(crate) Arc<ArcSwap<Certificates>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.0.load();
        Some(match hello.server_name() {
            Some(name) => table.choose(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().as_str()),
            None => table.default.load_full(),
        })
    }
}

/// TLS 1.2 and 1.3, HTTP/2 preferred; of the ciphers, which are all strong, the one that costs least. `clients` asks for
/// their certificates.
pub(crate) fn server_config(
    certificates: Arc<ArcSwap<Certificates>>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let mut provider = rustls::crypto::ring::default_provider();
    // AES with 128 bits in front, as Mozilla's lists have it; the order is otherwise rustls's.
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128"));
    let builder =
        ServerConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Resolver(certificates)));
    config.ignore_client_order = true;
    // A client can resume wherever its first connection was served. One ticket: each costs an encryption and a record, and
    // few clients open two connections at once with what they learned from one.
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Why a pair is not usable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PairError {
    /// The secret lacks a key.
    #[error("it has no {0:?}")]
    Missing(&'static str),
    /// Not PEM, or without a certificate.
    #[error("tls.crt holds no PEM certificate")]
    Certificate,
    /// Not PEM, or without a private key.
    #[error("tls.key holds no PEM private key")]
    Key,
    /// The key is of a kind that cannot sign.
    #[error("tls.key is of an unsupported kind: use ECDSA P-256 or P-384, Ed25519, or RSA")]
    KeyKind,
    /// The two do not belong together.
    #[error("tls.key does not belong to the certificate in tls.crt")]
    Mismatch,
    /// The certificate is no X.509.
    #[error("tls.crt is malformed: {0}")]
    Malformed(rustls::Error),
}

/// Reads a PEM chain and key, and makes sure that they belong together.
pub(crate) fn read_pair(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, PairError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|_| PairError::Certificate)?;
    if chain.is_empty() {
        return Err(PairError::Certificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairError::Key)?;
    let key = any_supported_type(&key).map_err(|_| PairError::KeyKind)?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(pair),
        Err(rustls::Error::InconsistentKeys(_)) => Err(PairError::Mismatch),
        Err(error) => Err(PairError::Malformed(error)),
    }
}

/// A certificate that no one trusts, made at start for hosts that have none: the connection is encrypted, the
/// client sees at once what is missing, and nothing has to be configured for a first try.
pub(crate) fn self_signed() -> Result<CertifiedKey, rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(vec!["ingress.weir.invalid".to_owned()])?;
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "Weir ingress default certificate");
    let certificate = parameters.self_signed(&key)?;
    read_pair(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
        .map_err(|_| rcgen::Error::CouldNotParseCertificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn usable(name: &str) -> Arc<CertifiedKey> {
        let (chain, key) = pair(name);
        Arc::new(read_pair(chain.as_bytes(), key.as_bytes()).unwrap())
    }

    #[test]
    fn exact_then_wildcard_then_default() {
        let (exact, wildcard) = (usable("a.foo.com"), usable("*.foo.com"));
        let default = Arc::new(self_signed().unwrap());
        let mut table = Certificates::new(default.clone());
        let pair = |key: &Arc<CertifiedKey>| Some(Arc::new(ArcSwap::new(Arc::clone(key))));
        table.set(&HostPattern::Exact("a.foo.com".into()), pair(&exact));
        table.set(&HostPattern::Wildcard("foo.com".into()), pair(&wildcard));
        table.set(&HostPattern::Any, pair(&wildcard));
        for (name, expected) in [
            ("a.foo.com", &exact),
            ("b.foo.com", &wildcard),
            ("a.b.foo.com", &default),
            ("foo.com", &default),
            ("localhost", &default),
        ] {
            assert!(Arc::ptr_eq(&table.choose(name), expected), "{name}");
        }
        let copy = table.clone();
        copy.default_pair().store(exact.clone());
        assert!(Arc::ptr_eq(&table.choose("localhost"), &exact), "it is one default for all copies");
    }

    #[test]
    fn broken_pairs_say_what_is_broken() {
        let (chain, key) = pair("a.com");
        let (_, other_key) = pair("b.com");
        let text =
            |chain: &str, key: &str| read_pair(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(text("", &key).contains("tls.crt holds no PEM"));
        assert!(text("garbage", &key).contains("tls.crt holds no PEM"));
        assert!(text(&chain, "garbage").contains("tls.key holds no PEM"));
        assert!(text(&chain, &other_key).contains("does not belong"));
        let not_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(text(not_x509, &key).contains("malformed"));
    }
}
