//! The check that gRPC servers know: `grpc.health.v1.Health/Check` (gRPC's "Health Checking Protocol").
//!
//! One call over a connection of its own, by HTTP/2 whatever requests speak: a port for health may be another one, and nothing
//! else can carry gRPC. Healthy is who says `SERVING` with status 0; a server without the service says `UNIMPLEMENTED`, and one
//! that does not know the name that is asked for `NOT_FOUND`. h2 has the frames and prost the messages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Request, Uri};
use prost::Message as _;

use super::probe::{AGENT, Connector, WINDOW_BYTES};
use super::{CheckFailure, GrpcFailure};
use crate::wire::MAX_HEAD_BYTES;

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// A flag and a length go before each message (gRPC over HTTP/2, Length-Prefixed-Message).
const PREFIX_BYTES: usize = 5;
/// An answer is a number; servers may know fields that we do not.
const MAX_ANSWER_BYTES: usize = 1_024;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    /// Empty for the whole server.
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// A call that is made of each endpoint of a pool.
#[derive(Debug)]
pub(super) struct GrpcProbe {
    connector: Connector,
    port: Option<NonZeroU16>,
    uri: Uri,
    /// With its prefix.
    message: Bytes,
}

impl GrpcProbe {
    /// `host` can stand in a URI: the annotations' reader has seen to it.
    pub(super) fn new(connector: Connector, port: Option<NonZeroU16>, host: &str, service: &str) -> Self {
        let scheme = if connector.has_tls() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(METHOD).build();
        let message = framed(&HealthCheckRequest { service: service.to_owned() });
        Self { connector: connector.by_http2(), port, uri: uri.expect("a host and a constant"), message }
    }

    /// May take for ever: the caller has a timeout.
    pub(super) async fn ask(&self, address: SocketAddr) -> Result<(), CheckFailure> {
        let stream = self.connector.open(address, self.port).await?;
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let (sender, connection) = builder.handshake(stream).await.map_err(|error| failure(&error))?;
        // However it ends, the call hears of it, and may have its answer already.
        let driving = async {
            let _ = connection.await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            outcome = self.call(sender) => outcome,
            never = driving => match never {},
        }
    }

    async fn call(&self, sender: SendRequest<Bytes>) -> Result<(), CheckFailure> {
        let failed = |error| failure(&error);
        let request = Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, AGENT)
            .body(())
            .expect("constants are fields");
        let mut sender = sender.ready().await.map_err(failed)?;
        let (response, mut body) = sender.send_request(request, false).map_err(failed)?;
        body.send_data(self.message.clone(), true).map_err(failed)?;
        let (head, mut body) = response.await.map_err(failed)?.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(CheckFailure::Status(head.status.as_u16()));
        }
        let message = read(&mut body).await?;
        let trailers = body.trailers().await.map_err(failed)?;
        // A call that failed at once has its status in the head.
        judge(&message, trailers.as_ref().unwrap_or(&head.headers))
    }
}

/// The whole body.
async fn read(body: &mut RecvStream) -> Result<BytesMut, CheckFailure> {
    let mut message = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|error| failure(&error))?;
        if message.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(CheckFailure::Malformed);
        }
        // A window that the bound above does not reach needs no more room.
        message.extend_from_slice(&piece);
    }
    Ok(message)
}

/// What an answer comes to.
fn judge(message: &[u8], trailers: &HeaderMap) -> Result<(), CheckFailure> {
    let status = trailers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    match status {
        Some(0) => {}
        Some(status) => return Err(CheckFailure::Grpc(GrpcFailure::Status(status))),
        None => return Err(CheckFailure::Malformed),
    }
    let said = unframed(message).and_then(|message| HealthCheckResponse::decode(message).ok());
    match said.ok_or(CheckFailure::Malformed)?.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(CheckFailure::Grpc(GrpcFailure::Says(other.name()))),
    }
}

fn framed(message: &impl prost::Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
    framed.put_u8(0); // not compressed
    framed.put_u32(message.encoded_len() as u32);
    message.encode(&mut framed).expect("there is room");
    framed.freeze()
}

/// The one message of a body, which nobody was told to compress.
fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (&[0, a, b, c, d], message) = body.split_first_chunk::<PREFIX_BYTES>()? else { return None };
    (u32::from_be_bytes([a, b, c, d]) as usize == message.len()).then_some(message)
}

fn failure(error: &h2::Error) -> CheckFailure {
    if error.is_io() || error.is_remote() { CheckFailure::Closed } else { CheckFailure::Malformed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_a_prefix() {
        let service = |name: &str| framed(&HealthCheckRequest { service: name.to_owned() });
        assert_eq!(service("")[..], [0; 5]);
        assert_eq!(service("shop")[..], *b"\0\0\0\0\x06\x0a\x04shop");
        assert_eq!(unframed(b"\0\0\0\0\x02\x08\x01"), Some(&b"\x08\x01"[..]));
    }

    #[test]
    fn whatever_is_a_host_is_an_authority() {
        for host in
            ["a.n.svc", "a_b.example", "A.Example.", "a:81", "a:", "10.0.0.1:81", "[2001:db8::1]", "[::1]:81"]
        {
            assert!(crate::table::normalize_host(host).is_ok(), "{host}");
            let probe = GrpcProbe::new(Connector::default(), None, host, "");
            assert_eq!(probe.uri.authority().unwrap(), host);
        }
    }

    #[test]
    fn only_serving_is_healthy() {
        let malformed = Err(CheckFailure::Malformed);
        let grpc = |failure| Err(CheckFailure::Grpc(failure));
        for (what, message, status, expected) in [
            ("SERVING", &b"\0\0\0\0\x02\x08\x01"[..], Some("0"), Ok(())),
            ("SERVING, and a field of tomorrow", b"\0\0\0\0\x05\x08\x01\x12\x01x", Some("0"), Ok(())),
            ("NOT_SERVING", b"\0\0\0\0\x02\x08\x02", Some("0"), grpc(GrpcFailure::Says("NOT_SERVING"))),
            (
                "SERVICE_UNKNOWN",
                b"\0\0\0\0\x02\x08\x03",
                Some("0"),
                grpc(GrpcFailure::Says("SERVICE_UNKNOWN")),
            ),
            ("the default", b"\0\0\0\0\0", Some("0"), grpc(GrpcFailure::Says("UNKNOWN"))),
            ("a number of tomorrow", b"\0\0\0\0\x02\x08\x09", Some("0"), grpc(GrpcFailure::Says("UNKNOWN"))),
            (
                "SERVING, and then an error",
                b"\0\0\0\0\x02\x08\x01",
                Some("13"),
                grpc(GrpcFailure::Status(13)),
            ),
            ("no message", b"", Some("12"), grpc(GrpcFailure::Status(12))),
            ("no message, and no error", b"", Some("0"), malformed),
            ("no status", b"\0\0\0\0\x02\x08\x01", None, malformed),
            ("no number", b"\0\0\0\0\x02\x08\x01", Some("OK"), malformed),
            ("half a prefix", b"\0\0\0", Some("0"), malformed),
            ("half a message", b"\0\0\0\0\x02\x08", Some("0"), malformed),
            ("two messages", b"\0\0\0\0\x02\x08\x01\0\0\0\0\x02\x08\x01", Some("0"), malformed),
            ("compressed", b"\x01\0\0\0\x02\x08\x01", Some("0"), malformed),
            ("a length of 4 GiB", b"\0\xff\xff\xff\xff\x08\x01", Some("0"), malformed),
            ("another type", b"\0\0\0\0\x03\x0a\x01x", Some("0"), malformed),
        ] {
            let trailers = status.map(|status| ("grpc-status".parse().unwrap(), status.parse().unwrap()));
            assert_eq!(judge(message, &trailers.into_iter().collect()), expected, "{what}");
        }
    }
}
