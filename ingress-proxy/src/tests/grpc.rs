//! Streams of HTTP/2 to endpoints that speak it too.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};
use tokio::net::TcpListener;

use super::cluster::{Cluster, in_time};
use super::streams::{Client, get, post, whole};

/// A service that answers piece by piece: each piece that comes goes back, and then trailers.
pub(super) async fn echoing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let path = request.uri().path().to_owned();
                        let mut response = Response::builder();
                        for name in ["te", "x-forwarded-host", "x-forwarded-for"] {
                            if let Some(value) = request.headers().get(name) {
                                response = response.header(format!("saw-{name}"), value);
                            }
                        }
                        match path.as_str() {
                            "/none" => {
                                let none = response.status(204).body(()).unwrap();
                                return drop(respond.send_response(none, true).unwrap());
                            }
                            "/length" => response = response.header("content-length", "2"),
                            "/after" => {
                                let mut body = request.into_body();
                                while let Some(Ok(piece)) = body.data().await {
                                    let _ = body.flow_control().release_capacity(piece.len());
                                }
                                let response = response.header("content-length", "2").body(()).unwrap();
                                let mut back = respond.send_response(response, false).unwrap();
                                return back.send_data(Bytes::from_static(b"ok"), true).unwrap();
                            }
                            "/early" => {
                                let early = Response::builder().status(103).header("link", "</a>");
                                respond.send_informational(early.body(()).unwrap()).unwrap();
                            }
                            _ => {}
                        }
                        let mut back = respond.send_response(response.body(()).unwrap(), false).unwrap();
                        if path == "/length" && request.method() != "HEAD" {
                            return back.send_data(Bytes::from_static(b"ok"), true).unwrap();
                        }
                        let mut body = request.into_body();
                        if path == "/broken" {
                            body.data().await;
                            return back.send_reset(Reason::INTERNAL_ERROR);
                        }
                        while let Some(Ok(piece)) = body.data().await {
                            let _ = body.flow_control().release_capacity(piece.len());
                            back.send_data(piece, false).unwrap();
                        }
                        let mut trailers = body.trailers().await.unwrap().unwrap_or_default();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        back.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_streams_both_ways_and_has_its_trailers() {
    let address = echoing().await;
    let cluster = Cluster::start();
    cluster.service("a", true, &[address]);
    cluster.route("x", "/", "a");
    let client = Client::connect(&cluster).await;
    let (response, mut stream) = client
        .open(post("/pkg.Service/Method", &[("te", "trailers"), ("x-forwarded-for", "spoofed")]), false)
        .await;
    let response = in_time("a head before the body is over", response).await.unwrap();
    assert_eq!(response.headers()["saw-te"], "trailers");
    assert_eq!(response.headers()["saw-x-forwarded-host"], "x");
    assert_eq!(response.headers()["saw-x-forwarded-for"], "127.0.0.1");
    let mut body = response.into_body();
    for piece in ["one", "two", "three"] {
        stream.send_data(Bytes::from_static(piece.as_bytes()), false).unwrap();
        let back = in_time("its echo", body.data()).await.unwrap().unwrap();
        assert_eq!(back, piece);
        body.flow_control().release_capacity(back.len()).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-mine", "1".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
    assert!(in_time("the end", body.data()).await.is_none());
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-mine"]),
        (&"0".parse().unwrap(), &"1".parse().unwrap())
    );

    let (broken, mut stream) = client.open(post("/broken", &[]), false).await;
    let broken = in_time("a head", broken).await.unwrap();
    stream.send_data(Bytes::from_static(b"now"), false).unwrap();
    let error = whole(broken).await.err().and_then(|error| error.reason());
    assert_eq!(error, Some(Reason::INTERNAL_ERROR));
    // Many at once share a connection, and more than fit on one open another.
    let asked: Vec<_> = (0..100).map(|_| client.ask(post("/", &[]), Some("body"))).collect();
    for answer in futures::future::join_all(asked).await {
        let answer = answer.unwrap();
        assert_eq!((answer.body.as_str(), answer.trailers.is_some()), ("body", true));
    }
    drop(client.sender);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_endpoint_that_is_not_there_is_told_and_passed_over() {
    let address = echoing().await;
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cluster = Cluster::start();
    cluster.service("a", true, &[address, nowhere]);
    cluster.route("x", "/", "a");
    let client = Client::connect(&cluster).await;
    for _ in 0..20 {
        assert_eq!(client.ask(post("/", &[]), Some("body")).await.unwrap().status, 200);
    }
    cluster.endpoints("a", &[nowhere]);
    let answer = client.ask(get("/"), None).await.unwrap();
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("refused the connection"), "{}", answer.body);
}
