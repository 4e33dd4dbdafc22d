//! HTTP/1.1, chunked bodies, pipelining, WebSocket, HTTP/2 on either side.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::backend::Backend;
use super::cluster::{Cluster, read_all, split};

fn cluster(a: &Backend, h2c: bool) -> Cluster {
    let cluster = Cluster::start();
    cluster.service("a", h2c, &[a.address]);
    cluster.route("x.com", "/", "a");
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunked_bodies_arrive_whole() {
    let a = Backend::start("a").await;
    let cluster = cluster(&a, false);
    let response = cluster
        .raw(
            b"POST / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
              5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        )
        .await;
    let seen: serde_json::Value = serde_json::from_str(&split(&response).1).unwrap();
    assert_eq!(seen["body"], "hello world");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let a = Backend::start("a").await;
    let cluster = cluster(&a, false);
    let response = cluster
        .raw(
            b"GET /1 HTTP/1.1\r\nHost: x.com\r\n\r\nGET /2 HTTP/1.1\r\nHost: y.com\r\n\r\n\
              GET /3 HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(response.matches("HTTP/1.1 200").count(), 2, "{response}");
    assert_eq!(response.matches("HTTP/1.1 404").count(), 1, "{response}");
    let (first, third) = (response.find("\"/1\"").unwrap(), response.find("\"/3\"").unwrap());
    assert!(first < response.find("HTTP/1.1 404").unwrap() && response.find("HTTP/1.1 404").unwrap() < third);
}

/// 18 bytes: fewer than the HTTP/2 preface, which must not make the proxy wait for more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shortest_request_is_answered() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("", "/", "a");
    let response = cluster.raw(b"GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(split(&response).0, 200, "{response}");
    let post = cluster.raw(b"POST / HTTP/1.0\r\n\r\n").await;
    assert_eq!(split(&post).0, 200, "{post}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_carries_bytes_both_ways_through_a_route_change() {
    let a = Backend::start("a").await;
    let cluster = cluster(&a, false);
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nHost: x.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await
        .unwrap();
    let mut buf = [0; 4096];
    let read = stream.read(&mut buf).await.unwrap();
    assert!(buf[..read].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&buf[..read]));
    for turn in ["one", "two"] {
        stream.write_all(turn.as_bytes()).await.unwrap();
        let read = stream.read(&mut buf).await.unwrap();
        assert_eq!(&buf[..read], turn.as_bytes());
        cluster.route("y.com", "/", "a");
        cluster.endpoints("a", &[]);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
}

/// Prior knowledge on the plain port, then HTTP/2 or HTTP/1 to the backend.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_in_cleartext_on_either_side() {
    let a = Backend::start("a").await;
    for (h2c, version) in [(false, "HTTP/1.1"), (true, "HTTP/2.0")] {
        let cluster = cluster(&a, h2c);
        assert_eq!(cluster.echo("x.com", "/").await["version"], version, "from HTTP/1");
        let stream = TcpStream::connect(cluster.http).await.unwrap();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for path in ["/1", "//2"] {
            let request = hyper::Request::post(format!("http://x.com{path}"))
                .body(Full::new(Bytes::from_static(b"body")))
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(seen["version"], version);
            assert_eq!(seen["body"], "body");
            assert!(seen["uri"].as_str().unwrap().ends_with(path.trim_start_matches('/')), "{seen}");
            assert_eq!(seen["headers"]["x-forwarded-host"], "x.com");
        }
        let request = hyper::Request::get("http://y.com/").body(Full::default()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 404);
    }
}
