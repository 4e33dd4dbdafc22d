//! One check: what is asked of an endpoint.
//!
//! A call by gRPC is [`super::grpc`]'s. Otherwise the exchange is pingora's [`HttpHealthCheck`], by HTTP/1.1 or HTTP/2. The connection that it goes over is ours: what an
//! endpoint is judged by comes about as requests' connections do, with the same names, certificates and trust in TLS, and
//! the same PROXY header. pingora's own TLS could not do that (it has no name without SNI, and no key that is held as rustls
//! holds it), and needs certificate authorities on the machine even where nothing is verified. `tcp` is that connection
//! and nothing else.
//!
//! Every check has a connection of its own. A kept one would hide that an endpoint takes no new ones any more, and would
//! hold a buffer for each endpoint.
//!
//! pingora's own timeouts are off: they are for each step, and a thread of their own wakes a hundred times a second for
//! them. Who calls has one for all of a check.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::connectors::http::Connector as HttpConnector;
use pingora_core::connectors::{ConnectorOptions, L4Connect};
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream as PeerStream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::{BError, Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::{HealthCheck as _, HttpHealthCheck};

use super::super::connect::connect_to;
use super::super::tls::EndpointTls;
use super::CheckFailure;
use super::grpc::GrpcProbe;
use crate::compile::{BackendKey, CheckKind, HealthCheck, Protocol};
use crate::proxy::said_of;
use crate::stream::Stream;

/// Windows of HTTP/2: what an endpoint can send that nobody has read. pingora's default is 8 MiB.
pub(super) const WINDOW_BYTES: u32 = 65_535;
/// What a check calls itself.
pub(super) const AGENT: &str = concat!("weir-health-check/", env!("CARGO_PKG_VERSION"));
/// Where pingora, if it is built with TLS, reads authorities from: none. Without a file it reads the machine's, and panics
/// where one of them is broken.
const NO_AUTHORITIES: &str = "/dev/null";

/// What is asked of the endpoints of a pool.
pub(super) enum Probe {
    Http(Box<HttpHealthCheck>),
    Grpc(Box<GrpcProbe>),
    Tcp(Connector, Option<NonZeroU16>),
}

impl Probe {
    /// In the protocol that the endpoints speak, unless it says by itself what it speaks.
    pub(super) fn new(
        backend: &BackendKey,
        check: &HealthCheck,
        protocol: Protocol,
        tls: Option<Arc<EndpointTls>>,
    ) -> Self {
        let header = check.proxy_protocol.map_or(&[][..], |version| version.own_header());
        let connector = Connector { tls, header };
        let named = |host: &Option<String>| {
            let service = || format!("{}.{}.svc", backend.service.name, backend.service.namespace);
            host.clone().unwrap_or_else(service)
        };
        match &check.kind {
            CheckKind::Tcp => Self::Tcp(connector, check.port),
            CheckKind::Grpc { service, host } => {
                Self::Grpc(Box::new(GrpcProbe::new(connector, check.port, &named(host), service)))
            }
            CheckKind::Http { path, host } => {
                let mut probe = http(connector, protocol, &named(host), path);
                probe.port_override = check.port.map(NonZeroU16::get);
                Self::Http(Box::new(probe))
            }
        }
    }

    /// Asks the endpoint at this address. May take for ever: the caller has a timeout.
    pub(super) async fn ask(&self, address: SocketAddr) -> Result<(), CheckFailure> {
        match self {
            Self::Http(probe) => {
                let backend = Backend::new(&address.to_string()).map_err(|_| CheckFailure::Panicked)?;
                probe.check(&backend).await.map_err(|error| failure(&error))
            }
            Self::Grpc(probe) => probe.ask(address).await,
            Self::Tcp(connector, port) => connector.open(address, *port).await.map(drop),
        }
    }
}

/// `host` and `path` can stand in a head: the annotations' reader has seen to it.
fn http(connector: Connector, protocol: Protocol, host: &str, path: &str) -> HttpHealthCheck {
    let options = ConnectorOptions { ca_file: Some(NO_AUTHORITIES.to_owned()), ..ConnectorOptions::new(0) };
    let mut probe = HttpHealthCheck::new_custom(host, false, HttpConnector::new(Some(options)));
    let mut fields = vec![("User-Agent", AGENT)];
    if !protocol.is_http2() {
        fields.push(("Connection", "close"));
    }
    for (name, value) in fields {
        probe.req.insert_header(name, value).expect("constants are fields");
    }
    probe.req.set_raw_path(path.as_bytes()).expect("a path of visible ASCII");
    probe.validator = Some(Box::new(|head| match head.status.as_u16() {
        200..400 => Ok(()),
        status => Err(Error::new(ErrorType::CustomCode("status", status))),
    }));
    let options = &mut probe.peer_template.options;
    (options.connection_timeout, options.read_timeout) = (None, None);
    options.custom_l4 = Some(Arc::new(connector));
    if protocol.is_http2() {
        options.set_http_version(2, 2);
        options.h2_stream_window_size = Some(WINDOW_BYTES);
        options.h2_connection_window_size = Some(WINDOW_BYTES);
    }
    probe
}

fn failure(error: &BError) -> CheckFailure {
    match error.etype() {
        ErrorType::Custom(why) => CheckFailure::NoConnection(why),
        ErrorType::CustomCode(_, status) => CheckFailure::Status(*status),
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => CheckFailure::Closed,
        _ => CheckFailure::Malformed,
    }
}

/// Makes connections as requests have them.
#[derive(Debug, Default)]
pub(super) struct Connector {
    tls: Option<Arc<EndpointTls>>,
    /// In front of what is sent.
    header: &'static [u8],
}

impl Connector {
    /// The same, that asks for HTTP/2 where there is TLS.
    pub(super) fn by_http2(self) -> Self {
        let tls = self.tls.map(|tls| Arc::new(tls.by_http2()));
        Self { tls, ..self }
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A connection to an endpoint, at this port of it if one is given.
    pub(super) async fn open(
        &self,
        mut address: SocketAddr,
        port: Option<NonZeroU16>,
    ) -> Result<Stream, CheckFailure> {
        address.set_port(port.map_or(address.port(), NonZeroU16::get));
        self.connect(address).await.map_err(CheckFailure::NoConnection)
    }

    /// A connection, or why there is none.
    async fn connect(&self, address: SocketAddr) -> Result<Stream, &'static str> {
        connect_to(address, self.tls.as_deref(), self.header).await.map_err(|failure| said_of(failure).1)
    }
}

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &PeerAddress) -> Result<PeerStream, BError> {
        let address = address.as_inet().ok_or_else(|| Error::new(ErrorType::InternalError))?;
        let stream = Self::connect(self, *address).await.map_err(|why| Error::new(ErrorType::Custom(why)))?;
        Ok(VirtualSocketStream::new(Box::new(stream)).into())
    }
}

impl VirtualSocket for Stream {
    /// It has those of all our connections.
    fn set_socket_option(&self, _: VirtualSockOpt) -> std::io::Result<()> {
        Ok(())
    }
}
