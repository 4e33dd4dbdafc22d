//! Which endpoint is asked, how, and what becomes of its answer.

use std::collections::BTreeSet;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::*;

/// Backends `a` and `b`, and Ingress `canary` beside `i` that sends requests to `b`.
async fn two(canary: &[(&str, &str)]) -> (Backend, Backend, Cluster) {
    let (a, cluster) = one(&[]).await;
    let b = Backend::start("b").await;
    cluster.service("b", false, &[b.address]);
    cluster.ingress("j-canary", rules(&[("x.com", "/", "b")]));
    let annotations: Vec<_> = [("canary", "true")].iter().chain(canary).copied().collect();
    cluster.annotate("j-canary", &annotations);
    (a, b, cluster)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_take_what_their_rules_say() {
    let rules = [("canary-by-header", "X-Canary"), ("canary-by-cookie", "beta"), ("canary-weight", "0")];
    let (_a, b, cluster) = two(&rules).await;
    let who = async |fields: &str| seen(&cluster.ask("x.com", "/", fields).await)["name"].clone();
    for (fields, expected) in [
        ("", "a"),
        ("X-Canary: always\r\n", "b"),
        ("X-Canary: never\r\nCookie: beta=always\r\n", "a"),
        ("Cookie: beta=always\r\n", "b"),
    ] {
        assert_eq!(who(fields).await, expected, "{fields}");
    }
    cluster.annotate(
        "j-canary",
        &[("canary", "true"), ("canary-by-header", "X-Canary"), ("canary-by-header-value", "eu")],
    );
    assert_eq!(who("X-Canary: always\r\n").await, "a");
    assert_eq!(who("X-Canary: eu\r\n").await, "b");
    cluster.annotate("j-canary", &[("canary", "true"), ("canary-weight", "100")]);
    assert_eq!(who("").await, "b");
    // A canary without endpoints takes nothing.
    cluster.endpoints("b", &[]);
    assert_eq!(who("").await, "a");
    cluster.endpoints("b", &[b.address]);
    assert_eq!(who("").await, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_with_its_endpoint() {
    let (a, cluster) = one(&[("affinity", "cookie"), ("session-cookie-name", "route")]).await;
    let (b, c) = (Backend::start("b").await, Backend::start("c").await);
    cluster.service("a", false, &[a.address, b.address, c.address]);
    let first = cluster.ask("x.com", "/", "").await;
    let cookie = field(&first, "set-cookie").to_owned();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly");
    let mine = seen(&first)["name"].clone();
    let again = async || cluster.ask("x.com", "/", &format!("Cookie: x=1; {pair}\r\n")).await;
    for _ in 0..10 {
        let response = again().await;
        assert_eq!(seen(&response)["name"], mine);
        assert_eq!(field(&response, "set-cookie"), "", "it has one already");
    }
    let others: Vec<_> =
        [(&a, "a"), (&b, "b"), (&c, "c")].into_iter().filter(|(_, name)| mine != *name).collect();
    cluster.endpoints("a", &others.iter().map(|(backend, _)| backend.address).collect::<Vec<_>>());
    assert_ne!(seen(&again().await)["name"], mine, "its endpoint is gone");
    let mut names = BTreeSet::new();
    for _ in 0..100 {
        names.insert(seen(&cluster.ask("x.com", "/", "").await)["name"].to_string());
    }
    assert_eq!(names.len(), 2, "new sessions are spread");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_hash_alike_meet_the_same_endpoint() {
    let (a, cluster) = one(&[("upstream-hash-by", "$http_tenant")]).await;
    let b = Backend::start("b").await;
    cluster.service("a", false, &[a.address, b.address]);
    let who = async |tenant: u32| {
        let response = cluster.ask("x.com", "/", &format!("Tenant: {tenant}\r\n")).await;
        seen(&response)["name"].to_string()
    };
    let mut names = BTreeSet::new();
    for tenant in 0..20 {
        let name = who(tenant).await;
        assert_eq!(who(tenant).await, name);
        names.insert(name);
    }
    assert_eq!(names.len(), 2);
}

/// The backend's account of a request over HTTP/2, which has its host in another place.
pub(super) async fn over_http2(cluster: &Cluster, path: &str) -> Value {
    let stream = TcpStream::connect(cluster.http).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("http://x.com{path}")).body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{body:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_hears_another_host_and_protocol() {
    let (_a, cluster) = one(&[("upstream-vhost", "inner.example"), ("backend-protocol", "GRPC")]).await;
    let seen = cluster.echo("x.com", "/p").await;
    assert_eq!(seen["version"], "HTTP/2.0");
    assert!(
        seen["uri"].as_str().unwrap().ends_with("inner.example/p")
            || seen["headers"]["host"] == "inner.example",
        "{seen}"
    );
    assert_eq!(seen["headers"]["x-forwarded-host"], "x.com");
    assert_eq!(over_http2(&cluster, "/p").await["headers"]["x-forwarded-host"], "x.com");
    cluster.annotate("i", &[("upstream-vhost", "inner.example")]);
    let seen = over_http2(&cluster, "/p").await;
    assert_eq!((&seen["uri"], &seen["headers"]["host"]), (&"/p".into(), &"inner.example".into()));
    let seen = cluster.echo("x.com", "/p").await;
    assert_eq!((&seen["version"], &seen["headers"]["host"]), (&"HTTP/1.1".into(), &"inner.example".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_limited_whether_they_say_their_length_or_not() {
    let (a, cluster) = one(&[("proxy-body-size", "10")]).await;
    let post = "POST / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\n";
    let response = cluster.raw(format!("{post}Content-Length: 11\r\n\r\nhello world").as_bytes()).await;
    assert_eq!(split(&response), (413, "413: the request body is larger than 10 bytes\n".to_owned()));
    assert_eq!(a.count(), 0);
    let response = cluster.raw(format!("{post}Content-Length: 10\r\n\r\nhello worl").as_bytes()).await;
    assert_eq!(seen(&response)["body"], "hello worl");
    let chunked = |chunks: &str| format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
    let response = cluster.raw(chunked("5\r\nhello\r\n5\r\n worl\r\n").as_bytes()).await;
    assert_eq!(seen(&response)["body"], "hello worl");
    let response = cluster.raw(chunked("5\r\nhello\r\n6\r\n world\r\n").as_bytes()).await;
    assert_eq!(split(&response), (413, "413: the request body is larger than 10 bytes\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_has_its_own_patience() {
    let (_a, cluster) = one(&[("proxy-read-timeout", "1")]).await;
    let (status, text) = cluster.get("x.com", "/held").await;
    assert!(status == 504 && text.contains("did not answer in time"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_can_be_reason_to_ask_another_endpoint() {
    let (good, bad) = (Backend::start("good").await, Backend::answering("bad", 503).await);
    let cluster = Cluster::start();
    cluster.service("a", false, &[good.address, bad.address]);
    cluster.ingress("i", rules(&[("x.com", "/", "a")]));
    cluster.annotate("i", &[("proxy-next-upstream", "error http_503")]);
    for _ in 0..20 {
        assert_eq!(cluster.echo("x.com", "/").await["name"], "good");
    }
    assert!(bad.count() > 0, "it was asked, too");
    // What may do something twice is not sent twice.
    cluster.service("a", false, &[bad.address]);
    let post = b"POST / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(status(&cluster.raw(post).await), 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fail_are_final_when_the_rule_says_so() {
    let (a, cluster) = one(&[("proxy-next-upstream", "off")]).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    cluster.service("a", false, &[a.address, closed]);
    let mut failed = false;
    for _ in 0..50 {
        failed |= cluster.get("x.com", "/").await.0 == 502;
    }
    assert!(failed, "with two endpoints one of fifty requests meets the closed one first");
    cluster.annotate("i", &[]);
    for _ in 0..50 {
        assert_eq!(cluster.get("x.com", "/").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_service_stands_in() {
    let (a, cluster) = one(&[("default-backend", "errors")]).await;
    let errors = Backend::answering("errors", 418).await;
    cluster.service("errors", false, &[errors.address]);
    cluster.service("a", false, &[]);
    let response = cluster.ask("x.com", "/p?q", "Accept: text/html\r\n").await;
    let asked = seen(&response);
    assert_eq!((status(&response), &asked["uri"]), (418, &"/p?q".into()));
    for (name, value) in [
        ("x-code", "503"),
        ("x-format", "text/html"),
        ("x-original-uri", "/p?q"),
        ("x-namespace", "n"),
        ("x-ingress-name", "i"),
        ("x-service-name", "a"),
    ] {
        assert_eq!(asked["headers"][name], value, "{name}");
    }
    cluster.service("a", false, &[a.address]);
    assert_eq!(cluster.echo("x.com", "/p").await["name"], "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_have_pages() {
    let (_a, cluster) = one(&[("custom-http-errors", "404,502"), ("default-backend", "errors")]).await;
    let errors = Backend::answering("errors", 404).await;
    cluster.service("errors", false, &[errors.address]);
    let response = cluster.ask("x.com", "/status/404?q", "").await;
    let asked = seen(&response);
    assert_eq!((status(&response), &asked["name"], &asked["uri"]), (404, &"errors".into(), &"/".into()));
    assert_eq!(
        (&asked["headers"]["x-code"], &asked["headers"]["x-original-uri"]),
        (&"404".into(), &"/status/404?q".into())
    );
    assert_eq!(seen(&cluster.ask("x.com", "/status/403", "").await)["name"], "a", "it is not on the list");
    let asked = over_http2(&cluster, "/status/404?q").await;
    assert_eq!(
        (&asked["name"], &asked["uri"], &asked["headers"]["host"]),
        (&"errors".into(), &"/".into(), &"x.com".into())
    );
    let post =
        "POST /status/404 HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
    let asked = seen(&cluster.raw(post.as_bytes()).await);
    assert_eq!(
        (&asked["name"], &asked["method"], &asked["body"]),
        (&"errors".into(), &"POST".into(), &"hello".into())
    );
    // One that cannot be had is ours, and so is one without a Service for it.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    cluster.service("errors", false, &[closed]);
    let (status, text) = cluster.get("x.com", "/status/404").await;
    assert_eq!((status, text.as_str()), (404, "404: the endpoint answered with status 404\n"));
    cluster.annotate("i", &[("custom-http-errors", "404")]);
    let (status, text) = cluster.get("x.com", "/status/404").await;
    assert_eq!((status, text.as_str()), (404, "404: the endpoint answered with status 404\n"));
}
