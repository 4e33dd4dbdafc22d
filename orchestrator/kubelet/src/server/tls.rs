//! The server's certificate and its clients' authority, from files that may change while it serves.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, Result};

/// Reads the files again when one of them changes. What worked goes on working while new files are half written.
pub(crate) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    // A plain mutex: held for three stats and a swap, once a connection.
    current: Mutex<(Vec<Option<SystemTime>>, Arc<ServerConfig>)>,
}

impl Tls {
    /// Reads certificate, key and authority; a file that cannot be used is named.
    pub(crate) fn new((cert, key, client_ca): (PathBuf, PathBuf, PathBuf)) -> Result<Self> {
        let config = load(&cert, &key, &client_ca)?;
        let current = Mutex::new((times(&[&cert, &key, &client_ca]), config));
        Ok(Self { cert, key, client_ca, current })
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = times(&[&self.cert, &self.key, &self.client_ca]);
        if current.0 != now {
            match load(&self.cert, &self.key, &self.client_ca) {
                Ok(config) => *current = (now, config),
                Err(error) => tracing::warn!(%error, "the old certificate stays in use"),
            }
        }
        TlsAcceptor::from(current.1.clone())
    }
}

fn times(paths: &[&Path]) -> Vec<Option<SystemTime>> {
    paths.iter().map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
}

fn load(cert: &Path, key: &Path, client_ca: &Path) -> Result<Arc<ServerConfig>> {
    let chain = certificates(cert)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(unusable(key))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(client_ca)? {
        roots.add(certificate).map_err(unusable(client_ca))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(unusable(client_ca))?;
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key_der)
        .map_err(unusable(cert))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unusable(path))
}

fn unusable<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |error| Error::Certificate { path, problem: error.to_string() }
}
