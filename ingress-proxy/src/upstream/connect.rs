//! Connections to endpoints.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::tls::EndpointTls;
use crate::metrics::UpstreamFailure;
use crate::rewound::Rewound;
use crate::stream::Stream;

/// A connection for one request of HTTP/1.1, and whether it is one that was kept. With a `header` it is fresh, and is for
/// nobody else afterwards.
pub(crate) async fn take(
    endpoint: &Endpoint,
    now: Instant,
    longest: Duration,
    header: Option<&[u8]>,
) -> Result<(Stream, bool), UpstreamFailure> {
    let kept = if header.is_none() { endpoint.idle().take(now) } else { None };
    match kept {
        Some(kept) => Ok((kept, true)),
        // Apart: what a connect needs would be room in every task that asks for a connection.
        None => Ok((Box::pin(connect(endpoint, longest, header.unwrap_or_default())).await?, false)),
    }
}

/// A fresh connection, in front of which `header` goes.
pub(crate) async fn connect_tcp(
    address: SocketAddr,
    longest: Duration,
    header: &[u8],
) -> Result<TcpStream, UpstreamFailure> {
    timeout(longest, tcp(address, header)).await.unwrap_or(Err(UpstreamFailure::ConnectTimeout))
}

async fn tcp(address: SocketAddr, header: &[u8]) -> Result<TcpStream, UpstreamFailure> {
    let connecting = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if !header.is_empty() {
            stream.write_all(header).await?;
        }
        Ok(stream)
    };
    connecting.await.map_err(|error: io::Error| refusal(&error))
}

/// A fresh connection to an endpoint, in front of which `header` goes; TLS where that is spoken there.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    longest: Duration,
    header: &[u8],
) -> Result<Stream, UpstreamFailure> {
    let connecting = connect_to(endpoint.address(), endpoint.tls(), header);
    timeout(longest, connecting).await.unwrap_or(Err(UpstreamFailure::ConnectTimeout))
}

/// The same to wherever an endpoint listens, for as long as it takes.
pub(super) async fn connect_to(
    address: SocketAddr,
    tls: Option<&EndpointTls>,
    header: &[u8],
) -> Result<Stream, UpstreamFailure> {
    let stream = tcp(address, header).await?;
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    let name: ServerName<'static> = tls.name.clone();
    match tls.connector.connect(name, Rewound::from(stream)).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream.into()))),
        Err(error) => {
            tracing::debug!(endpoint = %address, %error, "TLS handshake with an endpoint failed");
            Err(if is_distrust(&error) {
                UpstreamFailure::TlsUntrusted
            } else {
                UpstreamFailure::TlsHandshake
            })
        }
    }
}

fn refusal(error: &io::Error) -> UpstreamFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => UpstreamFailure::ConnectRefused,
        io::ErrorKind::TimedOut => UpstreamFailure::ConnectTimeout,
        _ => UpstreamFailure::ConnectOther,
    }
}

/// Whether it is us who did not take the endpoint's certificate.
fn is_distrust(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}
