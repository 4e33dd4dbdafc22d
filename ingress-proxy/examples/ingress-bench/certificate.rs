//! The certificate of the bench's host, on P-256: as files for proxies, and as what clients trust.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use rustls::{ClientConfig, RootCertStore, client::Resumption, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Whom requests are for.
pub(crate) const HOST: &str = "bench.example";

/// A certificate and its key.
pub(crate) struct Certificate {
    /// In PEM.
    pub(crate) chain: String,
    /// In PEM.
    pub(crate) key: String,
    /// Where the chain is.
    pub(crate) chain_file: PathBuf,
    /// Where the key is.
    pub(crate) key_file: PathBuf,
    /// Where both are, one behind the other.
    pub(crate) pair_file: PathBuf,
    client: TlsConnector,
}

impl Certificate {
    /// Makes one and writes it there.
    pub(crate) fn make(directory: &Path) -> Result<Self> {
        // Of rcgen's own choice, which is P-256.
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).context("making a certificate")?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).context("trusting the certificate")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            chain_file: write("chain.pem", &chain)?,
            key_file: write("key.pem", &key)?,
            pair_file: write("pair.pem", &format!("{chain}{key}"))?,
            chain,
            key,
            client: TlsConnector::from(Arc::new(client)),
        })
    }

    /// How clients of HTTP/1.1 connect; no session is ever resumed.
    pub(crate) fn client(&self) -> Client {
        Client(self.client.clone())
    }
}

/// A client that trusts the certificate.
#[derive(Clone)]
pub(crate) struct Client(TlsConnector);

impl Client {
    pub(crate) async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(HOST).expect("a host name");
        self.0.connect(name, stream).await.context("the TLS handshake")
    }
}
