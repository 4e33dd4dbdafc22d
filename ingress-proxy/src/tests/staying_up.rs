//! Nothing fails while endpoints come, go, refuse or close, and while the proxy itself stops.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::backend::Backend;
use super::cluster::{Cluster, eventually, in_time, quick, read_all, split};
use crate::config::Timeouts;

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_refuses_costs_no_request_not_even_a_post() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[nobody(), a.address, nobody()]);
    cluster.route("x.com", "/", "a");
    for i in 0..50 {
        let response = cluster
            .raw(b"POST / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody")
            .await;
        assert_eq!(split(&response).0, 200, "request {i}: {response}");
        assert!(response.contains("\"body\":\"body\""));
    }
    assert_eq!(a.count(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_churn_under_load_and_nothing_fails() {
    let backends = [Backend::start("a").await, Backend::start("b").await, Backend::start("c").await];
    let cluster = Arc::new(Cluster::start());
    let all: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    cluster.service("a", false, &all);
    cluster.route("x.com", "/", "a");
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(cluster.http).await.unwrap();
                for i in 0..300 {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: x.com\r\n\r\n").await.unwrap();
                    let response = read_one(&mut stream).await;
                    assert!(response.starts_with("HTTP/1.1 200"), "request {i}: {response}");
                }
            })
        })
        .collect();
    let mut turn = 0;
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        turn += 1;
        cluster.endpoints("a", &[all[turn % 3], all[(turn + 1) % 3]]);
        if turn % 5 == 0 {
            cluster.route("y.com", "/", "a"); // compiled and swapped as well
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(backends.iter().all(|backend| backend.count() > 0));
}

/// One response with a Content-Length; the connection stays open.
async fn read_one(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "the proxy closed the connection");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ").expect("a length");
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        if body.len() >= length {
            return text.into_owned();
        }
    }
}

/// Closes each connection after one response without saying so: every kept connection is a dead one.
async fn closes_silently() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                let _ = stream.read(&mut buf).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_connections_that_died_are_not_errors() {
    let cluster = Cluster::start();
    cluster.service("a", false, &[closes_silently().await]);
    cluster.route("x.com", "/", "a");
    for i in 0..100 {
        let (status, body) = cluster.get("x.com", "/").await;
        assert_eq!((status, body.as_str()), (200, "ok"), "request {i}");
    }
}

/// Takes connections and requests, and never answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_hangs_is_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let timeouts = Timeouts { read: Duration::from_millis(200), ..quick() };
    let cluster = Cluster::with(timeouts, Path::new("off"));
    cluster.service("a", false, &[listener.local_addr().unwrap()]);
    cluster.route("x.com", "/", "a");
    let (status, body) = cluster.get("x.com", "/").await;
    assert_eq!((status, body.as_str()), (504, "504: Service \"a\": the endpoint did not answer in time\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_requests_finish_and_ends_when_idle() {
    let a = Backend::start("a").await;
    let cluster = Arc::new(Cluster::start());
    cluster.service("a", false, &[a.address]);
    cluster.route("x.com", "/", "a");
    // One connection that waits for its next request, one with a request under way.
    let mut idle = TcpStream::connect(cluster.http).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x.com\r\n\r\n").await.unwrap();
    let mut buf = [0; 4096];
    let mut response = Vec::new();
    while !response.ends_with(b"}") {
        let read = idle.read(&mut buf).await.unwrap();
        assert!(read > 0, "it is kept open");
        response.extend_from_slice(&buf[..read]);
    }
    let held = {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move { cluster.get("x.com", "/held").await })
    };
    eventually("both requests are at the backend", async || a.count() == 2).await;

    let draining = {
        let cluster = Arc::clone(&cluster);
        // It waits for requests, not for a clock: its end would come far too late.
        tokio::spawn(async move { cluster.server.drain(Duration::from_hours(1)).await })
    };
    eventually("nobody listens any more", async || TcpStream::connect(cluster.http).await.is_err()).await;
    a.release.cancel();
    assert_eq!(in_time("the drain", draining).await.unwrap(), 0);
    assert_eq!(held.await.unwrap().0, 200);
    assert_eq!(read_all(&mut idle).await, "", "it is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_has_an_end() {
    let a = Backend::start("a").await;
    let cluster = Arc::new(Cluster::start());
    cluster.service("a", false, &[a.address]);
    cluster.route("x.com", "/", "a");
    let held = {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move { cluster.get("x.com", "/held").await })
    };
    eventually("the request is at the backend", async || a.count() == 1).await;
    assert_eq!(cluster.server.drain(Duration::from_millis(50)).await, 1);
    held.abort();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = crate::serve::bind(address).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("choose another address"), "{error}");
}
