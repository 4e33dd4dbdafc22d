//! A steady rate: requests are due whatever becomes of those before, and a late one is charged for its wait.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Outcome;
use super::clients::ask_again;

/// Requests in a second, and the connections that take turns with them.
pub(crate) const RATE: u32 = 1_000;
const CONNECTIONS: u32 = 50;

/// Asks until `stop`. Returns how long each request took from when it was due, in milliseconds.
pub(super) async fn load(address: SocketAddr, stop: CancellationToken) -> (Outcome, Vec<f64>) {
    let begin = Instant::now();
    let mut connections = JoinSet::new();
    for number in 0..CONNECTIONS {
        let first = begin + Duration::from_secs(1) / RATE * number;
        connections.spawn(connection(address, first, stop.clone()));
    }
    let (mut all, mut latencies_ms) = (Outcome::default(), Vec::new());
    while let Some(ended) = connections.join_next().await {
        let (outcome, latencies) = ended.expect("a client notes what fails");
        all.served += outcome.served;
        all.failed.extend(outcome.failed);
        latencies_ms.extend(latencies);
    }
    (all, latencies_ms)
}

/// One of the connections, made again when the proxy closes it.
async fn connection(address: SocketAddr, first: Instant, stop: CancellationToken) -> (Outcome, Vec<f64>) {
    let (mut outcome, mut latencies_ms) = (Outcome::default(), Vec::new());
    let mut due = first;
    let mut kept = None;
    while !stop.is_cancelled() {
        sleep_until(due).await;
        outcome.note(ask_again(address, &mut kept).await);
        latencies_ms.push(due.elapsed().as_secs_f64() * 1e3);
        due += Duration::from_secs(1) / RATE * CONNECTIONS;
    }
    (outcome, latencies_ms)
}
