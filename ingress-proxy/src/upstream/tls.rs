//! TLS with endpoints, as the proxy is their client.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::compile::{BackendKey, Credentials, Protocol};
use crate::tls::H2;

/// Why TLS cannot be spoken with a backend's endpoints.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// No certificate can carry it.
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
    /// There is nothing to verify by.
    #[error("there is no ca.crt to verify endpoints by")]
    NoAuthorities,
    /// It is no PEM, or without certificates.
    #[error("ca.crt holds no usable PEM certificate")]
    Authorities,
    /// rustls refuses.
    #[error(transparent)]
    Setup(#[from] rustls::Error),
}

/// How TLS is spoken with the endpoints of one backend. They resume each other's sessions, as replicas often can.
#[derive(Clone)]
pub(crate) struct EndpointTls {
    pub(crate) connector: TlsConnector,
    pub(crate) name: ServerName<'static>,
}

impl EndpointTls {
    /// As annotations and Secret say.
    pub(crate) fn new(
        backend: &BackendKey,
        protocol: Protocol,
        credentials: &Credentials,
    ) -> Result<Self, TlsError> {
        let settings = &backend.tls;
        let service = || format!("{}.{}.svc", backend.service.name, backend.service.namespace);
        let name = settings.name.clone().unwrap_or_else(service);
        let server = ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions()?;
        let builder = if settings.verifies {
            let pem = credentials.authorities.as_deref().ok_or(TlsError::NoAuthorities)?;
            builder.with_root_certificates(read_authorities(pem)?)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        };
        let mut config = match &credentials.pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(pair))))
            }
        };
        config.enable_sni = settings.tells_name;
        if protocol.is_http2() {
            config.alpn_protocols = vec![H2.to_vec()];
        }
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name: server })
    }

    /// The same, that asks for HTTP/2.
    pub(crate) fn by_http2(&self) -> Self {
        let mut config = ClientConfig::clone(self.connector.config());
        config.alpn_protocols = vec![H2.to_vec()];
        Self { connector: TlsConnector::from(Arc::new(config)), name: self.name.clone() }
    }
}

impl std::fmt::Debug for EndpointTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EndpointTls").field(&self.name).finish()
    }
}

/// Certificates of authorities, out of PEM.
pub(crate) fn read_authorities(pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| TlsError::Authorities)?;
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate).map_err(|_| TlsError::Authorities)?;
    }
    if store.is_empty() { Err(TlsError::Authorities) } else { Ok(Arc::new(store)) }
}

/// Takes any certificate, as nginx does unless it is told to verify: what is gained is that nobody who only listens on the
/// way to the pod reads along. That the other side has the certificate's key is checked all the same.
#[derive(Debug)]
pub(crate) struct AnyCertificate(Arc<CryptoProvider>);

impl Default for AnyCertificate {
    fn default() -> Self {
        Self(Arc::new(ring::default_provider()))
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
