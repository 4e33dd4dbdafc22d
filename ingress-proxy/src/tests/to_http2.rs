//! Clients of HTTP/1.1 of endpoints that speak HTTP/2.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::{Cluster, in_time, read_all};
use super::grpc::echoing;

const TAIL: &str = "saw-te: trailers\r\nsaw-x-forwarded-host: x\r\nsaw-x-forwarded-for: 127.0.0.1\r\n";

async fn cluster() -> Cluster {
    let address = echoing().await;
    let cluster = Cluster::start();
    cluster.service("a", true, &[address]);
    cluster.route("x", "/", "a");
    cluster
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut heard = String::new();
    while !heard.ends_with(end) {
        let byte = in_time(&format!("{end:?} behind {heard:?}"), stream.read_u8()).await;
        heard.push(char::from(byte.unwrap_or_else(|_| panic!("it ends behind {heard:?}"))));
    }
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_has_every_kind_of_request_and_response() {
    let cluster = cluster().await;
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    let ok = format!("HTTP/1.1 200 OK\r\n{TAIL}");
    for (request, expected) in [
        // No body: only trailers come back.
        (
            "GET / HTTP/1.1\r\nHost: x\r\nTE: gzip\r\nX-Forwarded-For: evil\r\n\r\n".to_owned(),
            format!("{ok}transfer-encoding: chunked\r\n\r\n0\r\ngrpc-status: 0\r\n\r\n"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
            format!("{ok}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n"),
        ),
        // Trailers go both ways, but none that say what is not theirs to say.
        (
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
             5;x=y\r\nhello\r\n0\r\nX-Mine: 1\r\nContent-Length: 9\r\nHost: evil\r\n\r\n"
                .to_owned(),
            format!(
                "{ok}transfer-encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n0\r\nx-mine: 1\r\ngrpc-status: 0\r\n\r\n"
            ),
        ),
        ("GET /length HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), format!("{ok}content-length: 2\r\n\r\nok")),
        ("HEAD /length HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), format!("{ok}content-length: 2\r\n\r\n")),
        (
            "GET /none HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            format!("HTTP/1.1 204 No Content\r\n{TAIL}\r\n"),
        ),
        (
            "GET /early HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            format!(
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                 {ok}transfer-encoding: chunked\r\n\r\n0\r\ngrpc-status: 0\r\n\r\n"
            ),
        ),
        // It asks for another protocol, which the endpoint has not.
        (
            "GET /length HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned(),
            format!("{ok}content-length: 2\r\n\r\nok"),
        ),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = vec![0; expected.len()];
        in_time(&request, stream.read_exact(&mut bytes)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), expected, "{request}");
    }
    // A body that waits is asked for, and another request may stand behind it where the endpoint answers after it.
    let expecting = "POST /after HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(expecting.as_bytes()).await.unwrap();
    assert_eq!(until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    let rest = "yesGET /length HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(rest.as_bytes()).await.unwrap();
    assert_eq!(
        read_all(&mut stream).await,
        format!("{ok}content-length: 2\r\n\r\nok{ok}content-length: 2\r\nconnection: close\r\n\r\nok")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_clients_get_neither_chunks_nor_trailers() {
    let cluster = cluster().await;
    let post = "POST / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(
        cluster.raw(post.as_bytes()).await,
        format!("HTTP/1.1 200 OK\r\n{TAIL}connection: close\r\n\r\nhello")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_both_ways_and_are_limited() {
    let cluster = cluster().await;
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    until(&mut stream, "\r\n\r\n").await;
    for (chunk, back) in [("3\r\none\r\n", "3\r\none"), ("3\r\ntwo\r\n", "\r\n3\r\ntwo")] {
        stream.write_all(chunk.as_bytes()).await.unwrap();
        assert_eq!(until(&mut stream, &back[back.len() - 3..]).await, back);
    }
    // What the endpoint breaks off, the client sees broken off.
    let mut broken = TcpStream::connect(cluster.http).await.unwrap();
    let request = "POST /broken HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
    broken.write_all(request.as_bytes()).await.unwrap();
    assert!(until(&mut broken, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    broken.write_all(b"now").await.unwrap();
    assert_eq!(read_all(&mut broken).await, "");

    cluster.annotate("a-x-", &[("proxy-body-size", "4")]);
    let large = format!("{head}5\r\nhello\r\n0\r\n\r\n");
    assert!(cluster.raw(large.as_bytes()).await.starts_with("HTTP/1.1 413"));
    let bad = format!("{head}zz\r\n");
    assert!(cluster.raw(bad.as_bytes()).await.starts_with("HTTP/1.1 400"));
}
