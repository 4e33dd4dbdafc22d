//! What is decided when a connection is opened: passthrough, client certificates, the PROXY protocol, and whose connection it
//! is.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use h2::client::SendRequest;
use hyper::body::Bytes;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_tests::{Authority, Pair};

use super::backend::Backend;
use super::cluster::{Cluster, eventually, in_time, quick, read_all, split};
use super::tls::{connect, connect_as, pair, tls_spec};
use super::tls_to_endpoints::{endpoint, secret};
use crate::compile::SecretFact;
use crate::proxy::Ends;
use crate::upstream::{AnyCertificate, ProxyProtocol};

/// A client with this certificate, or none.
fn client(certificate: Option<Pair>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::default()));
    Arc::new(match certificate {
        None => builder.with_no_client_auth(),
        Some(Pair { chain, key }) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// The answer to a request for `host` on a connection that was opened for `name`.
async fn ask(cluster: &Cluster, client: &Arc<ClientConfig>, name: &str, host: &str) -> (u16, String) {
    let mut stream = connect_as(client, cluster, name).await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nssl-client-verify: SUCCESS\r\n\
         ssl-client-subject-dn: CN=forged\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    split(&read_all(&mut stream).await)
}

fn seen(answer: &(u16, String), field: &str) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    let seen: serde_json::Value = serde_json::from_str(&answer.1).unwrap();
    seen["headers"][field].as_str().unwrap_or_default().to_owned()
}

fn guarded(backend: &Backend, annotations: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start();
    cluster.service("a", false, &[backend.address]);
    cluster.ingress("guarded", tls_spec("a.foo.com", "pair"));
    cluster.secret("pair", SecretFact::Usable(pair("a.foo.com"), None));
    cluster.annotate("guarded", annotations);
    // Another Ingress with rules for the same host: what one closes, the other must not open.
    let backend = serde_json::json!({"service": {"name": "a", "port": {"number": 80}}});
    let paths = serde_json::json!([{"path": "/other", "pathType": "Prefix", "backend": backend}]);
    cluster.ingress("other", serde_json::json!({"rules": [{"host": "a.foo.com", "http": {"paths": paths}}]}));
    cluster.route("b.foo.com", "/", "a");
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_certificates_where_they_are_asked_to() {
    let a = Backend::start("a").await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let cluster = guarded(&a, &[("auth-tls-secret", "n/ca")]);
    let nobody = client(None);
    let (status, text) = ask(&cluster, &nobody, "a.foo.com", "a.foo.com").await;
    assert_eq!(status, 503, "{text}");
    cluster.secret("ca", secret(&ours, None));
    let (status, text) = ask(&cluster, &nobody, "a.foo.com", "a.foo.com").await;
    assert_eq!((status, text.as_str()), (400, "400: no client certificate was shown\n"));
    let (status, text) = ask(&cluster, &client(Some(theirs.issue("eve"))), "a.foo.com", "a.foo.com").await;
    assert_eq!(status, 400);
    assert!(text.contains("the client certificate is not taken: invalid peer certificate"), "{text}");
    let ann = client(Some(ours.issue("ann")));
    let answer = ask(&cluster, &ann, "a.foo.com", "a.foo.com").await;
    assert_eq!(seen(&answer, "ssl-client-verify"), "SUCCESS");
    assert_eq!(seen(&answer, "ssl-client-subject-dn"), "CN=ann");
    assert_eq!(seen(&answer, "ssl-client-cert"), "", "only where it is asked for");
    // The session is taken up again with who it is.
    let answer = ask(&cluster, &ann, "a.foo.com", "a.foo.com").await;
    assert_eq!(seen(&answer, "ssl-client-subject-dn"), "CN=ann");

    // A connection for another host was asked nothing.
    assert_eq!(ask(&cluster, &ann, "b.foo.com", "a.foo.com").await.0, 421);
    let other = ask(&cluster, &nobody, "b.foo.com", "b.foo.com").await;
    assert_eq!(seen(&other, "ssl-client-subject-dn"), "CN=forged", "nobody looks at it there");
    // The rules of other Ingresses for the host are closed too.
    let mut stream = connect_as(&nobody, &cluster, "a.foo.com").await;
    let request = "GET /other HTTP/1.1\r\nHost: a.foo.com\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(split(&read_all(&mut stream).await).0, 400);
    // Over plain HTTP there is no certificate to show.
    assert_eq!(cluster.get("a.foo.com", "/other").await.0, 308);

    cluster.secret("ca", secret(&theirs, None));
    assert_eq!(ask(&cluster, &ann, "a.foo.com", "a.foo.com").await.0, 400, "others are trusted now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_falls_through_to_a_wildcard_has_the_wildcards_clients() {
    let a = Backend::start("a").await;
    let ours = Authority::new();
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("*.foo.com", "/", "a");
    cluster.annotate("a-*.foo.com-", &[("auth-tls-secret", "n/ca")]);
    cluster.secret("ca", secret(&ours, None));
    cluster.route("a.foo.com", "/open", "a");
    let (nobody, ann) = (client(None), client(Some(ours.issue("ann"))));
    let ask = async |client, path| {
        let mut stream = connect_as(client, &cluster, "a.foo.com").await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.foo.com\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        split(&read_all(&mut stream).await).0
    };
    assert_eq!((ask(&nobody, "/open").await, ask(&nobody, "/closed").await), (200, 400));
    assert_eq!((ask(&ann, "/open").await, ask(&ann, "/closed").await), (200, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_of_clients_has_its_degrees() {
    let a = Backend::start("a").await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let asked = [("auth-tls-secret", "ca"), ("auth-tls-verify-client", "optional_no_ca")];
    let cluster = guarded(&a, &[&asked[..], &[("auth-tls-pass-certificate-to-upstream", "true")]].concat());
    cluster.secret("ca", secret(&ours, None));
    let (nobody, eve) = (client(None), client(Some(theirs.issue("eve"))));
    let answer = ask(&cluster, &nobody, "a.foo.com", "a.foo.com").await;
    assert_eq!(
        (seen(&answer, "ssl-client-verify"), seen(&answer, "ssl-client-subject-dn")),
        ("NONE".into(), String::new())
    );
    let answer = ask(&cluster, &eve, "a.foo.com", "a.foo.com").await;
    assert!(seen(&answer, "ssl-client-verify").starts_with("FAILED:"), "{}", answer.1);
    assert!(
        seen(&answer, "ssl-client-cert").starts_with("%2D%2D%2D%2D%2DBEGIN%20CERTIFICATE"),
        "{}",
        answer.1
    );

    cluster.annotate("guarded", &[("auth-tls-secret", "ca"), ("auth-tls-match-cn", "CN=(ann|bob)$")]);
    assert_eq!(ask(&cluster, &client(Some(ours.issue("ann"))), "a.foo.com", "a.foo.com").await.0, 200);
    assert_eq!(ask(&cluster, &client(Some(ours.issue("eve"))), "a.foo.com", "a.foo.com").await.0, 403);
    cluster.annotate(
        "guarded",
        &[("auth-tls-secret", "ca"), ("auth-tls-error-page", "https://b.foo.com/how?from=$request_uri")],
    );
    assert_eq!(ask(&cluster, &nobody, "a.foo.com", "a.foo.com").await.0, 302);
    cluster.annotate("guarded", &[("auth-tls-secret", "ca"), ("auth-tls-verify-client", "off")]);
    assert_eq!(ask(&cluster, &nobody, "a.foo.com", "a.foo.com").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_goes_to_the_endpoints_as_it_is() {
    let authority = Authority::new();
    let address = endpoint(&authority, "a.foo.com", None).await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[address]);
    cluster.route("a.foo.com", "/", "a");
    cluster.annotate("a-a.foo.com-", &[("ssl-passthrough", "true")]);
    let b = Backend::start("b").await;
    cluster.service("b", false, &[b.address]);
    cluster.route("b.foo.com", "/", "b");
    let mut stream = connect(&cluster, "a.foo.com", &[b"http/1.1"]).await;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_ne!(shown, cluster.default_certificate.cert[0]);
    let body = "x".repeat(100_000);
    let request = format!(
        "POST / HTTP/1.1\r\nHost: whoever\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.contains("sni Some(\"a.foo.com\")") && answer.ends_with("body 100000"), "{answer}");
    // Others are served here as ever, and have nothing of it.
    assert_eq!(ask(&cluster, &client(None), "b.foo.com", "b.foo.com").await.0, 200);
    assert_eq!(ask(&cluster, &client(None), "b.foo.com", "a.foo.com").await.0, 421);
    assert!(cluster.metrics().contains("weir_ingress_passthrough_connections_total 1"));
    cluster.endpoints("a", &[]);
    assert_eq!(read_all(&mut said_hello(&cluster, "a.foo.com").await).await, "");
    assert!(cluster.metrics().contains("weir_ingress_passthrough_unserved_total 1"));
}

/// A connection on which a client has said for what host it comes, and no more.
async fn said_hello(cluster: &Cluster, name: &'static str) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.https).await.unwrap();
    let mut hello = Vec::new();
    let name = rustls::pki_types::ServerName::try_from(name).unwrap();
    rustls::ClientConnection::new(client(None), name).unwrap().write_tls(&mut hello).unwrap();
    stream.write_all(&hello).await.unwrap();
    stream
}

/// Nobody knows what goes through such a connection: all of it is a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_passed_through_takes_a_place_at_its_endpoint() {
    let address = endpoint(&Authority::new(), "a.foo.com", None).await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[address]);
    cluster.route("a.foo.com", "/", "a");
    cluster.annotate("a-a.foo.com-", &[("ssl-passthrough", "true"), ("max-connections", "1")]);
    let held = connect(&cluster, "a.foo.com", &[b"http/1.1"]).await;
    assert_eq!(read_all(&mut said_hello(&cluster, "a.foo.com").await).await, "");
    let metrics = cluster.metrics();
    for counted in ["upstream_full_total 1\n", "passthrough_unserved_total 1\n"] {
        assert!(metrics.contains(counted), "{counted}: {metrics}");
    }
    drop(held);
    let is_served =
        async || said_hello(&cluster, "a.foo.com").await.read(&mut [0]).await.is_ok_and(|read| read > 0);
    eventually("the place is free", is_served).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_connection_has_only_hosts_of_its_certificate() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    for (name, secret) in [("a.foo.com", "wildcard"), ("b.foo.com", "wildcard"), ("c.foo.com", "own")] {
        cluster.ingress(name, tls_spec(name, secret));
    }
    cluster.secret("wildcard", SecretFact::Usable(pair("*.foo.com"), None));
    cluster.secret("own", SecretFact::Usable(pair("c.foo.com"), None));
    let stream = connect(&cluster, "a.foo.com", &[b"h2"]).await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let status = async |sender: SendRequest<Bytes>, host: &str| {
        let request = http::Request::get(format!("https://{host}/")).body(()).unwrap();
        let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
        in_time("a response", response).await.unwrap().status().as_u16()
    };
    for (host, expected) in [("a.foo.com", 200), ("b.foo.com", 200), ("c.foo.com", 421)] {
        assert_eq!(status(sender.clone(), host).await, expected, "{host}");
    }
}

fn ends() -> Ends {
    Ends { source: "203.0.113.7:5000".parse().unwrap(), destination: "198.51.100.1:443".parse().unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_say_whom_they_speak_for() {
    let a = Backend::start("a").await;
    let behind = |trusted: &str| {
        let trusted = [trusted.parse().unwrap()];
        let cluster = Cluster::behind(&trusted, true, quick(), Path::new("off"));
        cluster.service("a", false, &[a.address]);
        cluster.route("x.com", "/", "a");
        cluster
    };
    let cluster = behind("127.0.0.1");
    let request = b"GET / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n";
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let header = version.header(ends());
        let answer = split(&cluster.raw(&[&header[..], request].concat()).await);
        assert_eq!(seen(&answer, "x-real-ip"), "203.0.113.7");
        assert_eq!(seen(&answer, "x-forwarded-for"), "203.0.113.7", "who is behind is not trusted");
        let mut stream = TcpStream::connect(cluster.https).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("x.com").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(client(None)).connect(name, stream).await.unwrap();
        stream.write_all(request).await.unwrap();
        let answer = split(&read_all(&mut stream).await);
        assert_eq!(seen(&answer, "x-real-ip"), "203.0.113.7");
    }
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    let answer = split(&cluster.raw(&[&local[..], request].concat()).await);
    assert_eq!(seen(&answer, "x-real-ip"), "1.1.1.1", "the load balancer speaks for itself, and is trusted");
    assert_eq!(cluster.raw(request).await, "", "a connection without a header is none of its");
    assert!(cluster.metrics().contains("reason=\"ProxyHeader\"} 1"));

    let cluster = behind("10.0.0.0/8");
    let header = ProxyProtocol::V1.header(ends());
    assert_eq!(cluster.raw(&[&header[..], request].concat()).await, "");
    assert!(cluster.metrics().contains("reason=\"UntrustedProxy\"} 1"));
}

/// An endpoint that tells of each connection the line that it began with, and serves requests behind it.
async fn told() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = String::new();
                while !heard.ends_with("\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    heard.push(char::from(byte));
                }
                let line = heard.lines().next().unwrap_or_default();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read_u8().await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_told_whom_a_connection_is_for() {
    let cluster = Cluster::start();
    cluster.service("a", false, &[told().await]);
    cluster.route("x", "/", "a");
    cluster.annotate("a-x-", &[("proxy-protocol", "v1")]);
    // A connection is for one client, and so is never used again.
    for _ in 0..2 {
        let mut stream = TcpStream::connect(cluster.http).await.unwrap();
        let source = stream.local_addr().unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let (_, told) = split(&read_all(&mut stream).await);
        let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}", source.port(), cluster.http.port());
        assert_eq!(told, expected);
    }
    let client = super::streams::Client::connect(&cluster).await;
    let answer = client.ask(super::streams::get("/"), None).await.unwrap();
    assert!(answer.body.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{}", answer.body);
}
