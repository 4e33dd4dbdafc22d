//! One process after the other on the same listeners, with clients that notice nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::cluster::{eventually, in_time};
use super::role::{Api, free, get};
use crate::{Config, Error, Ingress};

/// A role that runs.
struct Running {
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), Error>>,
}

impl Running {
    /// Starts one and waits until it serves.
    async fn start(config: &Config, client: &kube::Client) -> Self {
        let role = Ingress::new(config.clone(), client.clone(), &mut Registry::default()).unwrap();
        let (ready, when_ready) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(role.run(ready, shutdown.clone()));
        in_time("the role becomes ready", when_ready).await.unwrap();
        Self { shutdown, ended }
    }
}

fn config(path: &Path) -> Config {
    Config {
        http_address: free(),
        https_address: free(),
        access_log: "off".into(),
        workers: 1,
        handover: Some(path.to_owned()),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_refuses_nobody_and_cuts_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backend = Backend::start("a").await;
    let (_api, client) = Api::of(&backend).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ingress.sock");
    let config = config(&path);
    let http = config.http_address;
    let first = Running::start(&config, &client).await;

    // Clients without end, each request on a connection of its own.
    let (served, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (served, stop) = (Arc::clone(&served), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let response = in_time("a response", get(http, "x.com")).await;
                    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async || {
        let before = served.load(Ordering::Relaxed);
        eventually("more requests are served", async || served.load(Ordering::Relaxed) > before + 50).await;
    };
    more().await;
    let held = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let mut stream = tokio::net::TcpStream::connect(http).await.unwrap();
        let request = b"GET /held HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        super::cluster::read_all(&mut stream).await
    });
    eventually("a request is held", async || backend.held.load(Ordering::SeqCst) > 0).await;

    let mut last = first;
    for _ in 0..3 {
        let next = Running::start(&config, &client).await;
        more().await;
        let before = std::mem::replace(&mut last, next);
        if !held.is_finished() {
            assert!(!before.ended.is_finished(), "it waits for what is in flight");
            backend.release.cancel();
        }
        in_time("the one before ends", before.ended).await.unwrap().unwrap();
        assert!(before.shutdown.is_cancelled(), "and what listens beside it hears of it");
        more().await;
    }
    assert!(held.await.unwrap().starts_with("HTTP/1.1 200"));
    stop.cancel();
    for client in clients {
        client.await.unwrap();
    }
    last.shutdown.cancel();
    in_time("the last one ends", last.ended).await.unwrap().unwrap();
    assert!(!path.exists(), "the socket is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_fails_leaves_everything_as_it_was() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backend = Backend::start("a").await;
    let (_api, client) = Api::of(&backend).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ingress.sock");
    let config = config(&path);
    let first = Running::start(&config, &client).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = Config { https_address: taken.local_addr().unwrap(), ..config.clone() };
    let role = Ingress::new(wrong, client.clone(), &mut Registry::default()).unwrap();
    let error = role.run(oneshot::channel().0, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, Error::Bind(_)), "{error}");
    assert!(get(config.http_address, "x.com").await.starts_with("HTTP/1.1 200"));
    assert!(!first.ended.is_finished());
    // Another one that does not fail may still follow.
    let second = Running::start(&config, &client).await;
    in_time("the first ends", first.ended).await.unwrap().unwrap();
    assert!(get(config.http_address, "x.com").await.starts_with("HTTP/1.1 200"));
    second.shutdown.cancel();
    in_time("the second ends", second.ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_cannot_be_had_is_told() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backend = Backend::start("a").await;
    let (_api, client) = Api::of(&backend).await;
    let config = config(Path::new("/nonexistent/ingress.sock"));
    let role = Ingress::new(config, client, &mut Registry::default()).unwrap();
    let error = role.run(oneshot::channel().0, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("--handover \"/nonexistent/ingress.sock\""), "{error}");
}
