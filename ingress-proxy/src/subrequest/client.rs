//! HTTP clients with their connections, made when they are needed.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::sync::OnceCell;

/// Connections to one server that wait for a request, and how long they do.
const MAX_IDLE: usize = 64;
const IDLE: Duration = Duration::from_mins(1);
/// Bytes of a response's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// One client for HTTP, one for HTTPS: the machine's root certificates are read, once, when the first request needs them.
#[derive(Debug)]
pub(crate) struct Clients<B> {
    /// Longest wait for a connection.
    connect: Duration,
    plain: OnceLock<Client<HttpConnector, B>>,
    tls: OnceCell<Client<HttpsConnector<HttpConnector>, B>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the machine's root certificates cannot be read: {0}")]
    Roots(#[source] io::Error),
    #[error("the exchange failed: {0}")]
    Exchange(#[source] legacy::Error),
}

impl SendError {
    /// Whether there was a connection, so that the server may have seen the request.
    pub(super) fn is_after_connecting(&self) -> bool {
        matches!(self, Self::Exchange(error) if !error.is_connect())
    }
}

impl<B> Clients<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    pub(crate) fn new(connect: Duration) -> Self {
        Self { connect, plain: OnceLock::new(), tls: OnceCell::new() }
    }

    /// Sends a request with an absolute URL. The caller bounds the wait.
    pub(crate) async fn send(&self, request: Request<B>) -> Result<Response<Incoming>, SendError> {
        let sending = if request.uri().scheme() == Some(&Scheme::HTTPS) {
            self.tls.get_or_try_init(|| self.with_native_roots()).await?.request(request)
        } else {
            self.plain.get_or_init(|| with_pool(self.connector())).request(request)
        };
        sending.await.map_err(SendError::Exchange)
    }

    fn connector(&self) -> HttpConnector {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(self.connect));
        connector.set_nodelay(true);
        connector
    }

    async fn with_native_roots(&self) -> Result<Client<HttpsConnector<HttpConnector>, B>, SendError> {
        // Hundreds of files, maybe.
        let reading = tokio::task::spawn_blocking(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            Ok(config.map_err(io::Error::other)?.with_native_roots()?.with_no_client_auth())
        });
        let config = reading.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        Ok(self.with_tls(config.map_err(SendError::Roots)?))
    }

    fn with_tls(&self, config: ClientConfig) -> Client<HttpsConnector<HttpConnector>, B> {
        let mut connector = self.connector();
        connector.enforce_http(false);
        let tls = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
        with_pool(tls.wrap_connector(connector))
    }
}

fn with_pool<C, B>(connector: C) -> Client<C, B>
where
    C: Connect + Clone,
    B: Body<Data = Bytes> + Send,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .http1_max_buf_size(MAX_HEAD_BYTES)
        .build(connector)
}

#[cfg(test)]
impl<B> Clients<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// Believes in these roots instead of the machine's.
    pub(super) fn trust(&self, roots: rustls::RootCertStore) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        assert!(self.tls.set(self.with_tls(config)).is_ok(), "it was used before");
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use rustls::RootCertStore;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn a_server_is_believed_by_its_certificate() {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let stream = listener.accept().await.unwrap().0;
                let Ok(mut stream) = TlsAcceptor::from(Arc::new(config.clone())).accept(stream).await else {
                    continue;
                };
                let _ = stream.read(&mut [0; 1024]).await;
                stream.write_all(b"HTTP/1.1 204 Fine\r\n\r\n").await.unwrap();
            }
        });
        let send = async |clients: &Clients<Empty<Bytes>>| {
            let uri = format!("https://{address}/");
            let sent = clients.send(Request::get(uri).body(Empty::new()).unwrap()).await;
            sent.map(|response| response.status().as_u16())
        };
        let (friend, stranger) = (Clients::new(Duration::from_secs(5)), Clients::new(Duration::from_secs(5)));
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        friend.trust(roots);
        stranger.trust(RootCertStore::empty());
        assert_eq!(send(&friend).await.unwrap(), 204);
        assert!(!send(&stranger).await.unwrap_err().is_after_connecting());
        server.abort();
    }
}
