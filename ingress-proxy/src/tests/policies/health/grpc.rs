//! Checks by gRPC's own protocol, before servers that speak it well and badly.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weir_tests::Authority;

use super::super::super::backend::Backend;
use super::super::super::cluster::eventually;
use super::super::super::tls_to_endpoints::{secret, server_config};
use super::{back, checking, names, out};

/// Checks that find out at once.
const GRPC: [(&str, &str); 6] = [
    ("backend-protocol", "GRPC"),
    ("health-check", "grpc"),
    ("health-check-interval", "200ms"),
    ("health-check-timeout", "200ms"),
    ("health-check-fall", "1"),
    ("health-check-rise", "1"),
];
const PASSED: &str = "weir_ingress_health_checks_total{result=\"Passed\"}";
const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";

/// What a server answers.
#[derive(Clone, Copy)]
enum Answer {
    /// A body, and after it this status of the call, if any.
    Says(&'static [u8], Option<&'static str>),
    /// A head and no more: the call failed.
    Fails(&'static str),
    /// A body that breaks off.
    BreaksOff(&'static [u8]),
    /// No gRPC: a status of HTTP.
    Http(u16),
    /// More than anybody wants to know.
    TooMuch,
}

/// A head and what came behind it.
type Call = (Parts, Vec<u8>);

/// A server of HTTP/2.
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    /// What it was asked.
    heard: Arc<Mutex<Vec<Call>>>,
}

impl Server {
    async fn start(answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, answer: Arc::new(Mutex::new(answer)), heard: Arc::default() };
        let (answer, heard) = (Arc::clone(&server.answer), Arc::clone(&server.heard));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, heard, tls) = (Arc::clone(&answer), Arc::clone(&heard), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, answer, heard).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answer, heard).await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The first call.
    async fn heard(&self) -> Call {
        eventually("it is asked", async || !self.heard.lock().unwrap().is_empty()).await;
        self.heard.lock().unwrap().remove(0)
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Arc<Mutex<Answer>>,
    heard: Arc<Mutex<Vec<Call>>>,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (answer, heard) = (*answer.lock().unwrap(), Arc::clone(&heard));
        tokio::spawn(async move {
            // Who asks may be gone.
            if let Ok(call) = read(request).await {
                heard.lock().unwrap().push(call);
                let _ = give(answer, respond);
            }
        });
    }
}

async fn read(request: Request<RecvStream>) -> Result<Call, h2::Error> {
    let (parts, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        message.extend_from_slice(&piece);
    }
    Ok((parts, message))
}

fn give(answer: Answer, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let head = |status: u16, name: &str, value: &str| {
        Response::builder().status(status).header(name, value).body(()).unwrap()
    };
    let ok = || head(200, "content-type", "application/grpc");
    let ends =
        |status: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
    match answer {
        Answer::Http(status) => respond.send_response(head(status, "server", "a"), true).map(drop),
        Answer::Fails(status) => respond.send_response(head(200, "grpc-status", status), true).map(drop),
        Answer::Says(body, status) => {
            let mut stream = respond.send_response(ok(), false)?;
            stream.send_data(Bytes::from_static(body), status.is_none())?;
            status.map_or(Ok(()), |status| stream.send_trailers(ends(status)))
        }
        Answer::BreaksOff(body) => {
            let mut stream = respond.send_response(ok(), false)?;
            stream.send_data(Bytes::from_static(body), false)?;
            stream.send_reset(Reason::INTERNAL_ERROR);
            Ok(())
        }
        Answer::TooMuch => {
            let mut stream = respond.send_response(ok(), false)?;
            stream.send_data(Bytes::from(vec![0; 2_000]), false)?;
            stream.send_trailers(ends("0"))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_serves_gets_requests() {
    let a = Server::start(Answer::Says(SERVING, Some("0")), None).await;
    let cluster = checking(&[a.address], &GRPC);
    let malformed = "the endpoint's response is malformed";
    for (answer, expected) in [
        (Answer::Says(b"\0\0\0\0\x02\x08\x02", Some("0")), "the endpoint says that it is NOT_SERVING"),
        (Answer::Says(b"\0\0\0\0\0", Some("0")), "the endpoint says that it is UNKNOWN"),
        (Answer::Fails("12"), "the endpoint answered with gRPC status 12, UNIMPLEMENTED"),
        (Answer::Says(SERVING, Some("13")), "the endpoint answered with gRPC status 13, INTERNAL"),
        (Answer::Fails("5"), "the endpoint answered with gRPC status 5, NOT_FOUND"),
        (Answer::Says(&SERVING[..6], Some("0")), malformed),
        (Answer::Http(503), "the endpoint answered with status 503"),
        (Answer::Says(SERVING, None), malformed),
        (Answer::BreaksOff(&SERVING[..6]), "the endpoint closed the connection without a full response"),
        (Answer::TooMuch, malformed),
        (Answer::Fails("99"), "the endpoint answered with gRPC status 99, which is none"),
    ] {
        a.answers(answer);
        out(&cluster, a.address, expected).await;
    }
    a.answers(Answer::Says(SERVING, Some("0")));
    back(&cluster, a.address).await;
    let metrics = cluster.metrics();
    assert!(metrics.contains("weir_ingress_health_checks_total{result=\"Grpc\"}"), "{metrics}");
    assert!(!metrics.contains("Panicked"), "{metrics}");
}

/// Half a message, and nobody is there any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_in_a_message_is_a_failure() {
    // SETTINGS; HEADERS of stream 1 with `:status: 200`; DATA with half a prefix (RFC 9113).
    const HALF: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
        \0\0\x01\x01\x04\0\0\0\x01\x88\
        \0\0\x03\0\0\0\0\0\x01\0\0\0";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while !asked.ends_with(b"shop") {
                    let Ok(1..) = stream.read_buf(&mut asked).await else { return };
                }
                let _ = stream.write_all(HALF).await;
            });
        }
    });
    let cluster = checking(&[address], &[&GRPC[..], &[("health-check-grpc-service", "shop")]].concat());
    out(&cluster, address, "the endpoint closed the connection without a full response").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_call_is_what_the_protocol_says() {
    let server = Server::start(Answer::Says(SERVING, Some("0")), None).await;
    let cluster = checking(&[server.address], &GRPC);
    let (head, message) = server.heard().await;
    assert_eq!((head.method.as_str(), head.version), ("POST", http::Version::HTTP_2));
    assert_eq!(head.uri, "http://a.n.svc/grpc.health.v1.Health/Check");
    assert_eq!(head.headers["content-type"], "application/grpc");
    assert_eq!(head.headers["te"], "trailers");
    assert!(head.headers["user-agent"].to_str().unwrap().starts_with("weir-health-check/"));
    assert_eq!(message, [0; 5], "the server as a whole");
    drop(cluster);

    // Another port, while requests speak HTTP/1.1.
    let (a, server) =
        (Backend::start("a").await, Server::start(Answer::Says(SERVING, Some("0")), None).await);
    let port = server.address.port().to_string();
    let others = [
        ("health-check", "grpc"),
        ("health-check-grpc-service", "shop.v1.Shop"),
        ("health-check-host", "up.example:81"),
        ("health-check-port", &port),
    ];
    let cluster = checking(&[a.address], &others);
    let (head, message) = server.heard().await;
    assert_eq!(head.uri, "http://up.example:81/grpc.health.v1.Health/Check");
    assert_eq!(message, b"\0\0\0\0\x0e\x0a\x0cshop.v1.Shop");
    eventually("it passes", async || cluster.metrics().contains(PASSED)).await;
    assert_eq!(names(&cluster, 1).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_it_asks_for_http2_whatever_requests_speak() {
    for protocol in ["GRPCS", "HTTPS"] {
        let authority = Authority::new();
        let mut config = server_config(&authority, "a.n.svc", None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        let server = Server::start(Answer::Says(SERVING, Some("0")), Some(tls)).await;
        let others = [
            ("backend-protocol", protocol),
            ("health-check", "grpc"),
            ("proxy-ssl-verify", "on"),
            ("proxy-ssl-secret", "ca"),
        ];
        let cluster = checking(&[], &others);
        cluster.secret("ca", secret(&authority, None));
        cluster.endpoints("a", &[server.address]);
        assert_eq!(server.heard().await.0.uri, "https://a.n.svc/grpc.health.v1.Health/Check", "{protocol}");
        eventually("it passes", async || cluster.metrics().contains(PASSED)).await;
    }
}
