//! The way to a kubelet: HTTPS with the client certificate that kubelets know.
//!
//! One connection per request. Logs are followed by people, a few at a time; a pool would only hold connections open.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use weir_api::Status;

use crate::pki::Pki;
use crate::response::{self, Body};
use crate::serve::TlsError;

/// How long a kubelet has to accept, and to begin its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a kubelet's refusal that are passed on.
const REFUSAL_BYTES: usize = 4 << 10;

/// Where a kubelet listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// Makes requests of kubelets.
pub(crate) struct Client {
    pki: Pki,
}

impl Client {
    pub(crate) fn new(pki: Pki) -> Client {
        Client { pki }
    }

    /// Gets `target` and passes the answer on as it comes.
    pub(crate) async fn get(
        &self,
        endpoint: &Endpoint,
        target: &str,
        shutdown: &CancellationToken,
    ) -> Result<Response<Body>, Status> {
        let address = SocketAddr::new(endpoint.address, endpoint.port);
        let unreachable = |why: &dyn std::fmt::Display| {
            Status::internal(format!("the kubelet at https://{address} cannot be reached: {why}"))
        };
        let answer = tokio::time::timeout(PATIENCE, self.send(address, target)).await;
        let answer =
            answer.map_err(|_| unreachable(&"it does not answer"))?.map_err(|error| unreachable(&error))?;

        if !answer.status().is_success() {
            let code = answer.status();
            let body = Limited::new(answer.into_body(), REFUSAL_BYTES).collect().await;
            let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
            return Err(refusal(code, &text.unwrap_or_default()));
        }
        let kind = answer.headers().get(CONTENT_TYPE).cloned();
        let stopped = shutdown.clone().cancelled_owned();
        let chunks = BodyStream::new(answer.into_body())
            // A kubelet that goes away in the middle ends the stream, as it would end if it were asked directly.
            .take_while(|frame| std::future::ready(frame.is_ok()))
            .filter_map(|frame| std::future::ready(frame.ok().and_then(|frame| frame.into_data().ok())))
            .take_until(stopped);
        let mut response = Response::new(response::stream(chunks));
        let plain = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(CONTENT_TYPE, kind.unwrap_or(plain));
        Ok(response)
    }

    async fn send(
        &self,
        address: SocketAddr,
        target: &str,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        // Read each time: the files may have been renewed.
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let tls = connector.connect(ServerName::IpAddress(address.ip().into()), tcp).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a kubelet ended early");
            }
        });
        let request = Request::get(target).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
        Ok(sender.send_request(request).await?)
    }

    fn tls(&self) -> Result<rustls::ClientConfig, TlsError> {
        let read = |path: std::path::PathBuf, error: rustls::pki_types::pem::Error| TlsError::Read {
            path,
            why: error.to_string(),
        };
        let mut roots = rustls::RootCertStore::empty();
        let ca = self.pki.certificate("ca");
        roots.add(CertificateDer::from_pem_file(&ca).map_err(|error| read(ca, error))?)?;
        let certificate = self.pki.certificate("apiserver-kubelet-client");
        let chain =
            vec![CertificateDer::from_pem_file(&certificate).map_err(|error| read(certificate, error))?];
        let key = self.pki.key("apiserver-kubelet-client");
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| read(key, error))?;
        Ok(rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?)
    }
}

/// What the client is told when the kubelet says no.
fn refusal(code: StatusCode, text: &str) -> Status {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::BAD_REQUEST => "BadRequest",
        _ => "InternalError",
    };
    let message = if text.is_empty() { format!("the kubelet answered {code}") } else { text.to_owned() };
    Status { code: code.as_u16(), reason, message, ..Status::default() }
}
