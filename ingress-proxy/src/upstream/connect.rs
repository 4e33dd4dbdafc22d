//! Connections to endpoints.

use std::io;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use crate::metrics::UpstreamFailure;
use crate::rewound::Rewound;
use crate::stream::Stream;

/// A fresh connection to an endpoint; TLS where that is spoken there.
pub(crate) async fn connect(endpoint: &Endpoint, longest: Duration) -> Result<Stream, UpstreamFailure> {
    let connecting = async {
        let stream = TcpStream::connect(endpoint.address()).await.map_err(|error| refusal(&error))?;
        stream.set_nodelay(true).map_err(|error| refusal(&error))?;
        let Some(tls) = endpoint.tls() else { return Ok(Stream::Plain(stream)) };
        let name: ServerName<'static> = tls.name.clone();
        match tls.connector.connect(name, Rewound::from(stream)).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream.into()))),
            Err(error) => {
                tracing::debug!(endpoint = %endpoint.address(), %error, "TLS handshake with an endpoint failed");
                Err(if is_distrust(&error) {
                    UpstreamFailure::TlsUntrusted
                } else {
                    UpstreamFailure::TlsHandshake
                })
            }
        }
    };
    timeout(longest, connecting).await.unwrap_or(Err(UpstreamFailure::ConnectTimeout))
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
