//! Certificates by SNI, rotation, and HTTP/2 over TLS.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::backend::Backend;
use super::cluster::Cluster;
use crate::compile::SecretFact;
use crate::upstream::AnyCertificate;

pub(super) async fn connect(cluster: &Cluster, name: &str, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    connect_as(&client(alpn), cluster, name).await
}

/// What a client remembers between connections.
fn client(alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::default()))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

pub(super) async fn connect_as(
    client: &Arc<ClientConfig>,
    cluster: &Cluster,
    name: &str,
) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(cluster.https).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(client)).connect(name, stream).await.unwrap()
}

pub(super) fn pair(name: &str) -> Arc<CertifiedKey> {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let pair = crate::tls::read_pair(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes());
    Arc::new(pair.unwrap())
}

async fn certificate(cluster: &Cluster, name: &str) -> CertificateDer<'static> {
    let stream = connect(cluster, name, &[]).await;
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

pub(super) fn tls_spec(host: &str, secret: &str) -> serde_json::Value {
    let backend = serde_json::json!({"service": {"name": "a", "port": {"number": 80}}});
    serde_json::json!({
        "tls": [{"hosts": [host], "secretName": secret}],
        "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sni_chooses_and_rotation_closes_nothing() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    let (exact, wildcard) = (pair("a.foo.com"), pair("*.foo.com"));
    cluster.ingress("exact", tls_spec("a.foo.com", "exact"));
    cluster.ingress("wildcard", tls_spec("*.foo.com", "wildcard"));
    cluster.ingress("broken", tls_spec("broken.com", "broken"));
    cluster.secret("exact", SecretFact::Usable(Arc::clone(&exact), None));
    cluster.secret("wildcard", SecretFact::Usable(Arc::clone(&wildcard), None));
    cluster.secret("broken", SecretFact::Broken("no PEM".into()));
    for (name, expected) in [
        ("a.foo.com", &exact),
        ("b.foo.com", &wildcard),
        ("broken.com", &cluster.default_certificate),
        ("unknown.com", &cluster.default_certificate),
    ] {
        assert_eq!(certificate(&cluster, name).await, expected.cert[0], "{name}");
    }

    let mut open = connect(&cluster, "a.foo.com", &[b"http/1.1"]).await;
    let rotated = pair("a.foo.com");
    cluster.secret("exact", SecretFact::Usable(Arc::clone(&rotated), None));
    assert_eq!(certificate(&cluster, "a.foo.com").await, rotated.cert[0]);
    open.write_all(b"GET / HTTP/1.1\r\nHost: a.foo.com\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    open.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(response.contains("\"x-forwarded-proto\":\"https\""), "{response}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_is_known() {
    let cluster = Cluster::start();
    let client = client(&[b"http/1.1"]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut stream = connect_as(&client, &cluster, "x.com").await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\n\r\n").await.unwrap();
        // The ticket comes behind the handshake.
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_negotiated() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("x.com", "/", "a");
    let stream = connect(&cluster, "x.com", &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answers = (0..50).map(|i| {
        let mut sender = sender.clone();
        async move {
            let request = hyper::Request::get(format!("https://x.com/{i}")).body(Full::<Bytes>::default());
            let response = sender.send_request(request.unwrap()).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(seen["uri"], format!("/{i}"));
            assert_eq!(seen["headers"]["host"], "x.com");
        }
    });
    futures::future::join_all(answers).await;
}
