//! TLS of the listener: who we are, and whom we believe.
//!
//! The certificate is behind a pointer that can be swapped while connections come and go, so that a renewed certificate
//! needs no restart. Clients are verified against the CA's key; a CA certificate that was renewed under the same key
//! verifies the same clients.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::pki::Pki;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key cannot be read.
    #[error("cannot read {path}: {why}; remove it to have it made anew")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key do not go together, or cannot be used.
    #[error("the certificates cannot be used for TLS: {0}")]
    Unusable(#[from] rustls::Error),
    /// The CA cannot verify clients.
    #[error("the certificate authority cannot be used to verify clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificate that the server shows.
#[derive(Debug)]
pub(crate) struct Certificates {
    pki: Pki,
    current: ArcSwap<CertifiedKey>,
}

impl Certificates {
    pub(crate) fn read(pki: Pki) -> Result<Arc<Certificates>, TlsError> {
        let current = ArcSwap::from_pointee(load(&pki)?);
        Ok(Arc::new(Certificates { pki, current }))
    }

    /// Takes the files as they are now; new connections get the new certificate.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(load(&self.pki)?));
        Ok(())
    }

    /// The configuration of the listener. Client certificates are welcome and not required: others bring a token.
    pub(crate) fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let path = self.pki.certificate("ca");
        let ca = CertificateDer::from_pem_file(&path)
            .map_err(|error| TlsError::Read { path, why: error.to_string() })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn load(pki: &Pki) -> Result<CertifiedKey, TlsError> {
    let read =
        |path: PathBuf, error: rustls::pki_types::pem::Error| TlsError::Read { path, why: error.to_string() };
    let path = pki.certificate("apiserver");
    let certificate = CertificateDer::from_pem_file(&path).map_err(|error| read(path, error))?;
    let path = pki.key("apiserver");
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| read(path, error))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(vec![certificate], key);
    certified.keys_match()?;
    Ok(certified)
}
