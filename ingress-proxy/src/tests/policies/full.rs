//! The most requests in flight to one endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::cluster::{eventually, in_time};
use super::super::pages::explained;
use super::endpoints::over_http2;
use super::*;
use crate::config::Timeouts;

const SESSION: &str = "Cookie: route=one\r\n";

/// Backends `a` and `b` behind one Service, of which each may have one request in flight.
async fn two(others: &[(&str, &str)]) -> (Backend, Backend, Arc<Cluster>) {
    let (a, cluster) = one(&[]).await;
    let b = Backend::start("b").await;
    cluster.service("a", false, &[a.address, b.address]);
    let annotations = [&[("max-connections", "1")], others].concat();
    cluster.annotate("i", &annotations);
    (a, b, Arc::new(cluster))
}

/// A request that is held until its backend releases it; it has come there when this returns.
async fn held(
    cluster: &Arc<Cluster>,
    fields: &'static str,
    backends: [&Backend; 2],
) -> tokio::task::JoinHandle<String> {
    let count = || backends.iter().map(|backend| backend.held.load(Ordering::SeqCst)).sum::<usize>();
    let (before, cluster) = (count(), Arc::clone(cluster));
    let asking = tokio::spawn(async move { cluster.ask("x.com", "/held", fields).await });
    eventually("it is held", async || count() > before).await;
    asking
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_endpoints_are_passed_over_and_the_next_request_is_refused() {
    for protocol in ["HTTP", "GRPC"] {
        for balance in ["ewma", "round_robin"] {
            let (a, b, cluster) = two(&[("backend-protocol", protocol), ("load-balance", balance)]).await;
            let first = held(&cluster, "", [&a, &b]).await;
            let is_free = if a.held.load(Ordering::SeqCst) > 0 { "b" } else { "a" };
            for _ in 0..5 {
                assert_eq!(cluster.echo("x.com", "/").await["name"], is_free, "{protocol} {balance}");
            }
            let second = held(&cluster, "", [&a, &b]).await;
            let (status, text) = cluster.get("x.com", "/").await;
            assert_eq!(
                (status, text.as_str()),
                (503, "503: Service \"a\": every endpoint is at max-connections\n")
            );
            let metrics = cluster.metrics();
            assert!(metrics.contains("weir_ingress_upstream_full_total 1\n"), "{metrics}");
            let told = &explained(&cluster, "http://x.com/")["backends"][0];
            assert_eq!((&told["maxConnections"], &told["endpoints"][0]["inFlight"]), (&1.into(), &1.into()));
            a.release.cancel();
            b.release.cancel();
            for held in [first, second] {
                assert_eq!(status_of(held).await, 200);
            }
            eventually("there is room again", async || cluster.get("x.com", "/").await.0 == 200).await;
            assert_eq!(
                over_http2(&cluster, "/").await["uri"].as_str().map(|uri| uri.ends_with('/')),
                Some(true)
            );
        }
    }
}

async fn status_of(held: tokio::task::JoinHandle<String>) -> u16 {
    status(&in_time("a held request", held).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_endpoint_is_full_goes_to_another_and_stays_a_session() {
    let (a, b, cluster) = two(&[("affinity", "cookie"), ("session-cookie-name", "route")]).await;
    let tied = seen(&cluster.ask("x.com", "/", SESSION).await)["name"].clone();
    let first = held(&cluster, SESSION, [&a, &b]).await;
    let elsewhere = cluster.ask("x.com", "/", SESSION).await;
    assert_ne!(seen(&elsewhere)["name"], tied);
    assert_eq!(super::super::cluster::field(&elsewhere, "set-cookie"), "", "it keeps the one it has");
    a.release.cancel();
    b.release.cancel();
    assert_eq!(status_of(first).await, 200);
    eventually("it is back at its endpoint", async || {
        seen(&cluster.ask("x.com", "/", SESSION).await)["name"] == tied
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let a = Backend::start("a").await;
    let cluster = Arc::new(Cluster::with(Timeouts::default(), &file));
    cluster.service("a", false, &[a.address]);
    cluster.ingress("i", rules(&[("x.com", "/", "a")]));
    cluster.annotate("i", &[("max-connections", "1")]);
    let first = held(&cluster, "", [&a, &a]).await;
    assert_eq!(cluster.get("x.com", "/over").await.0, 503);
    a.release.cancel();
    assert_eq!(status_of(first).await, 200);
    let line = async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().find(|line| line.contains("/over")).map(str::to_owned)
    };
    eventually("it is logged", async || line().await.is_some()).await;
    let line: Value = serde_json::from_str(&line().await.unwrap()).unwrap();
    assert_eq!(line["reason"], "Service \"a\": every endpoint is at max-connections");
    assert_eq!(
        (&line["status"], &line["attempts"], &line["endpoint"]),
        (&503.into(), &0.into(), &Value::Null)
    );
}
