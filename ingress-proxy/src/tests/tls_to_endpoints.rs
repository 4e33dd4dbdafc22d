//! Endpoints that are spoken TLS to, and what is asked of their certificates.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weir_tests::{Authority, Pair};

use super::cluster::{Cluster, eventually};
use super::streams::{Client, post};
use crate::compile::SecretFact;

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    crate::upstream::read_authorities(authority.pem.as_bytes()).unwrap()
}

/// A Secret with the authority's certificate, and one that it issued, if there is to be one.
pub(super) fn secret(authority: &Authority, name: Option<&str>) -> SecretFact {
    match name {
        None => {
            let data = BTreeMap::from([("ca.crt".to_owned(), authority.pem.clone().into_bytes())]);
            SecretFact::Opaque(Arc::new(data))
        }
        Some(name) => {
            SecretFact::Usable(Arc::new(pair(authority, name)), Some(authority.pem.as_bytes().into()))
        }
    }
}

fn pair(authority: &Authority, name: &str) -> CertifiedKey {
    let Pair { chain, key } = authority.issue(name);
    crate::tls::read_pair(chain.as_bytes(), key.as_bytes()).unwrap()
}

/// TLS with a certificate for a name. `clients`: who must have signed the client's.
pub(super) fn server_config(authority: &Authority, name: &str, clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = match clients {
        None => builder.unwrap().with_no_client_auth(),
        Some(clients) => builder.unwrap().with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots(clients), provider).build().unwrap(),
        ),
    };
    builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair(authority, name))))
}

/// An endpoint with a certificate for `name`, that says what it saw: version, SNI, whether the client had a certificate,
/// and the body. `clients`: who must have signed the client's.
pub(super) async fn endpoint(authority: &Authority, name: &str, clients: Option<&Authority>) -> SocketAddr {
    let mut config = server_config(authority, name, clients);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let (_, tls) = stream.get_ref();
                let seen = format!(
                    "sni {:?} client {} resumed {}",
                    tls.server_name(),
                    tls.peer_certificates().is_some(),
                    tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
                );
                let service = service_fn(move |request: Request<Incoming>| {
                    let seen = seen.clone();
                    async move {
                        let version = request.version();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let text = format!("{version:?} {seen} body {}", body.len());
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

fn cluster(address: SocketAddr, annotations: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start();
    cluster.service("a", false, &[address]);
    cluster.route("x", "/", "a");
    cluster.annotate("a-x-", annotations);
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_both_versions_go_to_endpoints_of_both_over_tls() {
    let address = endpoint(&Authority::new(), "whoever", None).await;
    for (protocol, version) in [("HTTPS", "HTTP/1.1"), ("GRPCS", "HTTP/2.0")] {
        let cluster = cluster(address, &[("backend-protocol", protocol)]);
        // More than TLS keeps in its buffers.
        let body = "x".repeat(300_000);
        let request = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = cluster.raw(request.as_bytes()).await;
        let expected = format!("{version} sni None client false resumed false body 300000");
        assert!(answer.ends_with(&expected), "{answer}");
        let client = Client::connect(&cluster).await;
        let answer = client.ask(post("/", &[]), Some("hello")).await.unwrap();
        let expected = format!("{version} sni None client false resumed false body 5");
        assert_eq!(answer.body, expected, "the connection was kept");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_verified_where_that_is_asked_for() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = endpoint(&authority, "a.n.svc", None).await;
    let verified = &[("backend-protocol", "HTTPS"), ("proxy-ssl-verify", "on"), ("proxy-ssl-secret", "ca")];
    let cluster = cluster(address, verified);
    let (status, body) = cluster.get("x", "/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("was not read yet"), "{body}");
    cluster.secret("ca", secret(&other, None));
    let (status, body) = cluster.get("x", "/").await;
    assert_eq!(status, 502, "{body}");
    assert!(body.contains("the endpoint's certificate is not trusted"), "{body}");
    assert!(cluster.metrics().contains("reason=\"TlsUntrusted\""));
    cluster.secret("ca", secret(&authority, None));
    let (status, body) = cluster.get("x", "/").await;
    assert_eq!((status, body.as_str()), (200, "HTTP/1.1 sni None client false resumed false body 0"));
    // The name of the Service is what the certificate must have, unless another is said.
    let named = [verified.as_slice(), &[("proxy-ssl-name", "b.example")]].concat();
    cluster.annotate("a-x-", &named);
    assert_eq!(cluster.get("x", "/").await.0, 502);
    cluster.annotate("a-x-", &[verified.as_slice(), &[("proxy-ssl-server-name", "on")]].concat());
    let (_, body) = cluster.get("x", "/").await;
    assert_eq!(body, "HTTP/1.1 sni Some(\"a.n.svc\") client false resumed false body 0");
    let broken = BTreeMap::from([("ca.crt".to_owned(), b"no PEM".to_vec())]);
    cluster.secret("ca", SecretFact::Opaque(Arc::new(broken)));
    let (status, body) = cluster.get("x", "/").await;
    assert_eq!(status, 503);
    assert!(body.contains("ca.crt holds no usable PEM certificate"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_ask_for_a_certificate_get_ours_and_its_rotation() {
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let address = endpoint(&servers, "a.n.svc", Some(&clients)).await;
    let cluster = cluster(address, &[("backend-protocol", "HTTPS"), ("proxy-ssl-secret", "us")]);
    cluster.secret("us", secret(&others, Some("weir")));
    // TLS 1.3 tells of a certificate that is not taken only behind the handshake.
    let (status, _) = cluster.get("x", "/").await;
    assert_eq!(status, 502);
    cluster.secret("us", secret(&clients, Some("weir")));
    eventually("a request with the new certificate", async || {
        cluster.get("x", "/").await.1.contains("client true")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_without_tls_is_told_of() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let cluster = cluster(address, &[("backend-protocol", "HTTPS")]);
    let (status, body) = cluster.get("x", "/").await;
    assert_eq!(status, 502);
    assert!(body.contains("TLS could not be agreed on with the endpoint"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_wait_for_a_secret_are_counted_when_they_come() {
    let authority = Authority::new();
    let address = endpoint(&authority, "a.n.svc", None).await;
    let verified = [("backend-protocol", "HTTPS"), ("proxy-ssl-verify", "on"), ("proxy-ssl-secret", "ca")];
    let cluster = cluster(address, &verified);
    let counted = || {
        let metrics = cluster.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix("weir_ingress_endpoints "));
        line.unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(counted(), 0);
    cluster.secret("ca", secret(&authority, None));
    assert_eq!(counted(), 1);
    cluster.endpoints("a", &[]);
    assert_eq!(counted(), 0);
    cluster.endpoints("a", &[address]);
    let broken = BTreeMap::from([("ca.crt".to_owned(), b"no PEM".to_vec())]);
    cluster.secret("ca", SecretFact::Opaque(Arc::new(broken)));
    assert_eq!(counted(), 0);
}
