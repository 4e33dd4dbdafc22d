//! Copies of requests, which nobody waits for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::backend::nobody;
use super::super::cluster::{eventually, read_all};
use super::super::recorder::Recorder;
use super::*;

async fn mirrored(annotations: &[(&str, &str)]) -> (Backend, Recorder, Cluster) {
    let mirror = Recorder::start().await;
    let (a, cluster) = one(&[]).await;
    annotate(&cluster, &mirror, annotations);
    (a, mirror, cluster)
}

fn annotate(cluster: &Cluster, mirror: &Recorder, annotations: &[(&str, &str)]) {
    let target = format!("http://{}/copy$request_uri", mirror.address);
    let all: Vec<_> = [("mirror-target", target.as_str())].iter().chain(annotations).copied().collect();
    cluster.annotate("i", &all);
}

async fn post_http2(cluster: &Cluster, body: &str) -> Value {
    let stream = TcpStream::connect(cluster.http).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::post("http://x.com/p?q=1").body(Full::new(Bytes::from(body.to_owned())));
    let response = sender.send_request(request.unwrap()).await.unwrap();
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_has_what_the_request_has() {
    let (a, mirror, cluster) = mirrored(&[]).await;
    mirror.answers(500, &[("set-cookie", "a=b")]);
    let head = "POST /p?q=1 HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nX-Mine: 1\r\n";
    let with_length = format!("{head}Content-Length: 11\r\n\r\nhello world");
    let chunked =
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n");
    let large = "x".repeat(100_000);
    let large_one = format!("{head}Content-Length: 100000\r\n\r\n{large}");
    let mut count = 0;
    for protocol in ["HTTP", "GRPC"] {
        annotate(&cluster, &mirror, &[("backend-protocol", protocol), ("mirror-host", "test.example")]);
        for (request, body) in
            [(&with_length, "hello world"), (&chunked, "hello world"), (&large_one, large.as_str())]
        {
            for by_http2 in [false, true] {
                let seen = if by_http2 {
                    post_http2(&cluster, body).await
                } else {
                    let response = cluster.raw(request.as_bytes()).await;
                    assert_eq!((status(&response), field(&response, "set-cookie")), (200, ""));
                    seen(&response)
                };
                assert_eq!(seen["body"], body);
                count += 1;
                eventually("the copy is there", async || mirror.count() == count).await;
                let copy = mirror.last();
                assert_eq!((copy.method.as_str(), copy.uri.as_str()), ("POST", "/copy/p?q=1"));
                assert_eq!(copy.body.as_deref(), Some(body.as_bytes()), "{protocol} {by_http2}");
                assert_eq!(copy.field("host"), "test.example");
                assert_eq!(copy.field("x-request-id"), seen["headers"]["x-request-id"]);
                assert_eq!(copy.field("x-forwarded-for"), "127.0.0.1");
                assert_eq!(copy.field("x-mine"), if by_http2 { "" } else { "1" });
            }
        }
    }
    assert_eq!(a.count(), count);
    annotate(&cluster, &mirror, &[("mirror-request-body", "off")]);
    assert_eq!(seen(&cluster.raw(with_length.as_bytes()).await)["body"], "hello world");
    eventually("the copy is there", async || mirror.count() == count + 1).await;
    let copy = mirror.last();
    assert_eq!((copy.body.as_deref(), copy.field("content-length")), (Some(&b""[..]), ""));
}

/// A request that an endpoint did not take goes to another, and is copied once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_twice_is_copied_once() {
    let (a, mirror, cluster) = mirrored(&[]).await;
    let retry = [("proxy-next-upstream", "http_503 non_idempotent"), ("load-balance", "round_robin")];
    annotate(&cluster, &mirror, &retry);
    let bad = Backend::answering("bad", 503).await;
    cluster.service("a", false, &[a.address, bad.address]);
    let head = "POST /p?q=1 HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
    for count in 1..=4 {
        let seen = if count % 2 == 0 {
            post_http2(&cluster, "body").await
        } else {
            seen(&cluster.raw(head.as_bytes()).await)
        };
        assert_eq!((&seen["name"], &seen["body"]), (&"a".into(), &"body".into()));
        eventually("the copy is there", async || mirror.count() == count).await;
        assert_eq!(mirror.last().body.as_deref(), Some(&b"body"[..]));
    }
    assert!(bad.requests.load(Ordering::SeqCst) > 0, "some were sent twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_kept_out_is_not_copied() {
    let (_a, mirror, cluster) = mirrored(&[("denylist-source-range", "127.0.0.0/8")]).await;
    assert_eq!(cluster.get("x.com", "/").await.0, 403);
    let (auth, target) = (Recorder::start().await, format!("http://{}/", mirror.address));
    let url = format!("http://{}/", auth.address);
    let both = [("mirror-target", target.as_str()), ("auth-url", &url), ("auth-response-headers", "X-User")];
    cluster.annotate("i", &both);
    auth.answers(401, &[]);
    assert_eq!(status(&cluster.ask("x.com", "/", "X-User: root\r\n").await), 401);
    auth.answers(200, &[("x-user", "ann")]);
    assert_eq!(status(&cluster.ask("x.com", "/", "X-User: root\r\n").await), 200);
    eventually("the copy is there", async || mirror.count() == 1).await;
    assert_eq!(mirror.last().headers.get_all("x-user").iter().collect::<Vec<_>>(), ["ann"]);
}

/// A mirror that is not there, or takes nothing, is nobody's trouble but its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_in_trouble_troubles_nobody() {
    let (a, cluster) = one(&[]).await;
    let (_nobody, address) = nobody();
    cluster.annotate("i", &[("mirror-target", &format!("http://{address}/"))]);
    let shows = |text: &str| cluster.metrics().contains(text);
    assert_eq!(cluster.get("x.com", "/").await.0, 200);
    eventually("the copy failed", async || shows("outcome=\"Failed\"} 1\n")).await;

    // One that reads nothing: what the machine's buffers do not hold of the body is given up.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _held = tokio::spawn({
        let address = deaf.local_addr().unwrap();
        cluster.annotate("i", &[("mirror-target", &format!("http://{address}/"))]);
        async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = deaf.accept().await {
                held.push(stream);
            }
        }
    });
    let body = "x".repeat(16 << 20);
    let head = "POST / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\n";
    let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
    // At once, and so slowly that every buffer on the way is full before those of the copy.
    for (lost, pause) in [(1, Duration::ZERO), (2, Duration::from_millis(2))] {
        let mut client = TcpStream::connect(cluster.http).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        for piece in body.as_bytes().chunks(64 << 10) {
            client.write_all(piece).await.unwrap();
            tokio::time::sleep(pause).await;
        }
        assert_eq!(seen(&read_all(&mut client).await)["body"].as_str().unwrap().len(), body.len());
        let told = format!("outcome=\"BodyLost\"}} {lost}\n");
        eventually("it was given up", async || shows(&told)).await;
    }
    assert!(shows("weir_ingress_mirror_in_flight 0\n"));
    assert_eq!(a.count(), 3);
}

/// Half of a body must not look like the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_breaks_off_is_no_whole_copy() {
    let (_a, mirror, cluster) = mirrored(&[]).await;
    let mut client = TcpStream::connect(cluster.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    eventually("it is copied", async || cluster.metrics().contains("weir_ingress_mirror_in_flight 1\n"))
        .await;
    client.shutdown().await.unwrap();
    let _ = client.read_to_end(&mut Vec::new()).await;
    eventually("it ends", async || cluster.metrics().contains("outcome=\"BodyLost\"} 1\n")).await;
    assert!(mirror.recorded().iter().all(|copy| copy.body.is_none()));
}
