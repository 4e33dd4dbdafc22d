//! How requests are spread over endpoints that are slow, or fail.

use std::time::Duration;

use futures::future::join_all;

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
