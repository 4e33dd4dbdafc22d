//! How requests are spread over endpoints that are slow, or fail.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;

use super::super::cluster::eventually;
use super::endpoints::over_http2;
use super::*;

/// No fast endpoint takes as long, not even on a busy machine.
const SLOW: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_gets_little_unless_it_is_its_turn() {
    let (a, cluster) = one(&[]).await;
    let (b, slow) = (Backend::start("b").await, Backend::taking("slow", 200, SLOW).await);
    cluster.service("a", false, &[a.address, b.address, slow.address]);
    for _ in 0..40 {
        cluster.echo("x.com", "/").await;
    }
    assert!((1..=4).contains(&slow.count()), "{} of 40", slow.count());

    let before = slow.count();
    cluster.annotate("i", &[("load-balance", "round_robin")]);
    join_all((0..30).map(|_| cluster.echo("x.com", "/"))).await;
    assert_eq!(slow.count() - before, 10);
}

/// However the request comes and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_is_ejected_and_comes_back() {
    for (by_http2, protocol) in [(false, "HTTP"), (false, "GRPC"), (true, "HTTP"), (true, "GRPC")] {
        let (a, cluster) = one(&[("load-balance", "round_robin"), ("backend-protocol", protocol)]).await;
        let bad = Backend::answering("bad", 503).await;
        cluster.service("a", false, &[a.address, bad.address]);
        let ask = async || {
            if by_http2 {
                over_http2(&cluster, "/").await
            } else {
                seen(&cluster.ask("x.com", "/", "").await)
            }
        };
        let mut failed = 0;
        for _ in 0..6 {
            failed += usize::from(ask().await["name"] == "bad");
        }
        assert_eq!(failed, 3, "each has its turn");
        let ejections = "weir_ingress_upstream_ejections_total 1\n";
        assert!(cluster.metrics().contains(ejections), "{}", cluster.metrics());
        let ejected = |number| {
            cluster.server.proxy().sweep();
            cluster.metrics().contains(&format!("weir_ingress_upstream_ejected {number}\n"))
        };
        assert!(ejected(1));
        bad.status.store(200, Ordering::SeqCst);
        eventually("it is back", async || ask().await["name"] == "bad").await;
        assert!(ejected(0));
        assert!(cluster.metrics().contains(ejections));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_page_is_no_failure_of_who_makes_it() {
    for protocol in ["HTTP", "GRPC"] {
        let (_a, cluster) = one(&[
            ("default-backend", "errors"),
            ("backend-protocol", protocol),
            ("load-balance", "round_robin"),
        ])
        .await;
        let (b, c) = (Backend::answering("b", 503).await, Backend::answering("c", 503).await);
        cluster.service("errors", false, &[b.address, c.address]);
        cluster.endpoints("a", &[]);
        for _ in 0..10 {
            assert_eq!(cluster.get("x.com", "/").await.0, 503);
        }
        assert_eq!((b.count(), c.count()), (5, 5));
    }
}

/// All endpoints fail, and each request may be tried at all of them: the backend gets a share more than it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_backend_is_not_hit_by_its_retries() {
    const REQUESTS: usize = 400;
    let (a, cluster) = one(&[("proxy-next-upstream", "http_503")]).await;
    let (b, c) = (Backend::answering("b", 503).await, Backend::answering("c", 503).await);
    a.status.store(503, Ordering::SeqCst);
    cluster.service("a", false, &[a.address, b.address, c.address]);
    for _ in 0..REQUESTS / 10 {
        for (status, text) in join_all((0..10).map(|_| cluster.get("x.com", "/"))).await {
            assert!(status == 503 && text.contains("\"name\""), "the last answer is the client's: {text}");
        }
    }
    let retries = a.count() + b.count() + c.count() - REQUESTS;
    let count = |name: &str| {
        let metrics = cluster.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("weir_ingress_{name}_total ")));
        line.unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(count("retries"), retries);
    // A bucket and a fifth of the requests. What time adds depends on how long it took, and requests at once may lose each
    // other's share.
    assert!((150..2 * REQUESTS).contains(&retries), "{retries}");
    assert!(count("retries_refused") > 0);
}
