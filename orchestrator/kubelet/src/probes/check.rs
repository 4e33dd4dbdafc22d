//! One try of one probe: HTTP, TCP, or a command in the container.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::runtime::{ContainerId, Runtime};

/// How much of an answer's body is read: an event shows no more, and a connection must be left clean.
const BODY_LIMIT_BYTES: usize = 10 * 1024;

/// What a probe does, with its port already looked up.
#[derive(Debug)]
pub(crate) enum Check {
    /// GET; any status from 200 to 399 is good.
    Http(HTTPGetAction, IpAddr, Result<u16, String>),
    /// Connect.
    Tcp(String, Result<u16, String>),
    /// Exit code 0.
    Exec(Vec<String>),
    /// A probe this kubelet does not have; always bad, saying so.
    Unsupported(&'static str),
}

impl Check {
    pub(crate) fn new(probe: &Probe, container: &Container, ip: IpAddr) -> Self {
        if let Some(get) = &probe.http_get {
            Self::Http(get.clone(), ip, port(container, &get.port))
        } else if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| ip.to_string());
            Self::Tcp(host, port(container, &tcp.port))
        } else if let Some(exec) = &probe.exec {
            Self::Exec(exec.command.clone().unwrap_or_default())
        } else {
            Self::Unsupported("grpc probes are not supported by this kubelet; use httpGet, tcpSocket or exec")
        }
    }

    /// Tries once; the error is the text of the `Unhealthy` event.
    pub(crate) async fn run<R: Runtime>(
        &self,
        runtime: &R,
        id: &ContainerId,
        timeout: Duration,
    ) -> Result<(), String> {
        match self {
            Self::Http(get, ip, port) => {
                let status = http_get(get, *ip, port.clone()?, timeout).await?;
                if (200..400).contains(&status) {
                    Ok(())
                } else {
                    Err(format!("HTTP probe failed with statuscode: {status}"))
                }
            }
            Self::Tcp(host, port) => {
                let address = (host.as_str(), port.clone()?);
                match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(format!("dial tcp {}:{}: {error}", address.0, address.1)),
                    Err(_) => Err(format!("dial tcp {}:{}: i/o timeout", address.0, address.1)),
                }
            }
            Self::Exec(command) => match runtime.exec_sync(id, command, timeout).await {
                Ok(output) if output.exit_code == 0 => Ok(()),
                Ok(output) => {
                    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
                    Err(String::from_utf8_lossy(text).trim_end().to_owned())
                }
                Err(error) => Err(error.to_string()),
            },
            Self::Unsupported(text) => Err((*text).to_owned()),
        }
    }
}

/// A port by number, or by the name that the container gave it.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok())
            .ok_or_else(|| format!("container \"{}\" has no port named \"{name}\"", container.name))?,
    };
    u16::try_from(number).map_err(|_| format!("invalid port {number}"))
}

/// GETs and returns the status code. Probes and lifecycle hooks use it; certificates are not verified, as upstream
/// does not: a pod's certificate is for its clients' names, not for its address.
pub(crate) async fn http_get(
    get: &HTTPGetAction,
    ip: IpAddr,
    port: u16,
    timeout: Duration,
) -> Result<u16, String> {
    let https = get.scheme.as_deref() == Some("HTTPS");
    let scheme = if https { "https" } else { "http" };
    let host = get.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    });
    let path = get.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{scheme}://{host}:{port}{path}");
    let failed = |error: String| format!("Get \"{url}\": {error}");
    let work = async {
        let address = tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
            .await
            .map_err(|error| failed(error.to_string()))?
            .next()
            .unwrap_or_else(|| SocketAddr::new(ip, port));
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| failed(format!("dial tcp {address}: {error}")))?;
        if https {
            let name = ServerName::IpAddress(address.ip().into());
            let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting_client().map_err(&failed)?));
            let stream = connector.connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
            exchange(stream, get, &host, port, &path).await.map_err(&failed)
        } else {
            exchange(stream, get, &host, port, &path).await.map_err(&failed)
        }
    };
    tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
        Err(failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()))
    })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    get: &HTTPGetAction,
    host: &str,
    port: u16,
    path: &str,
) -> Result<u16, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut request =
        Request::get(path).header(header::USER_AGENT, "kube-probe/1.33").header(header::ACCEPT, "*/*");
    let mut named = false;
    for pair in get.http_headers.iter().flatten() {
        named |= pair.name.eq_ignore_ascii_case("host");
        request = request.header(&pair.name, &pair.value);
    }
    if !named {
        request = request.header(header::HOST, format!("{host}:{port}"));
    }
    let request =
        request.header(header::CONNECTION, "close").body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        // Read, so that the server does not see a reset; its content does not matter.
        let _ = Limited::new(response.into_body(), BODY_LIMIT_BYTES).collect().await;
        Ok(status)
    };
    tokio::pin!(answer);
    tokio::select! {
        // The connection is driven here, so that it ends with the probe.
        result = connection => match result {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
        status = &mut answer => status,
    }
}

fn trusting_client() -> Result<ClientConfig, String> {
    let provider = CryptoProvider::get_default().ok_or("no TLS provider is installed in this process")?;
    Ok(ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider.clone())))
        .with_no_client_auth())
}

/// Accepts every certificate, but checks that the peer holds its key.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
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
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn serve(answer: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn http_status_and_refusal_are_told_apart() {
        let get = HTTPGetAction { path: Some("/health".into()), ..HTTPGetAction::default() };
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let second = Duration::from_secs(1);
        let port = serve("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno").await;
        assert_eq!(http_get(&get, ip, port, second).await, Ok(503));
        let error = http_get(&get, ip, 1, second).await.unwrap_err();
        assert!(error.starts_with("Get \"http://127.0.0.1:1/health\": dial tcp"), "{error}");
    }

    #[test]
    fn ports_are_found_by_name() {
        let container: Container = serde_json::from_value(serde_json::json!(
            {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}
        ))
        .unwrap();
        assert_eq!(port(&container, &IntOrString::String("web".into())), Ok(8080));
        assert_eq!(port(&container, &IntOrString::Int(70000)), Err("invalid port 70000".into()));
        assert!(port(&container, &IntOrString::String("nope".into())).unwrap_err().contains("nope"));
    }
}
