//! Workers: take a key, reconcile it, and decide when it is looked at again.

use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Queue;

/// What a reconcile that went well asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until the next event.
    Done,
    /// Another look after this time, because a deadline is known.
    After(Duration),
    /// Another look after a pause that grows, because the caches lag behind or others write too.
    Again,
}

/// Runs `workers` concurrent workers over `queue` until `shutdown`; the work at hand is finished.
///
/// A failed key is retried with backoff for ever: the world may become such that it succeeds, and the pause
/// grows to 1000 s. Conflicts are an ordinary part of optimistic writes and are logged quietly.
pub async fn run_workers<K, F, E>(
    queue: Arc<Queue<K>>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: impl Fn(K) -> F,
) where
    K: Clone + Eq + Hash + Display,
    F: Future<Output = Result<Outcome, E>>,
    E: std::error::Error + 'static,
{
    let worker = || async {
        loop {
            let key = tokio::select! {
                () = shutdown.cancelled() => return,
                key = queue.next() => key,
            };
            let start = Instant::now();
            match reconcile(key.clone()).await {
                Ok(Outcome::Done) => queue.forget(&key),
                Ok(Outcome::After(delay)) => {
                    queue.forget(&key);
                    queue.add_after(key.clone(), delay);
                }
                Ok(Outcome::Again) => {
                    queue.retry(key.clone());
                }
                Err(error) => {
                    let pause_ms = queue.retry(key.clone()).as_millis();
                    report(queue.name(), &key, &error, pause_ms);
                }
            }
            queue.done(&key, start.elapsed());
        }
    };
    join_all((0..workers).map(|_| worker())).await;
}

fn report<K: Display>(queue: &str, key: &K, error: &(dyn std::error::Error + 'static), pause_ms: u128) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<kube::Error>().is_some_and(crate::is_conflict) {
            tracing::debug!(controller = queue, %key, %error, pause_ms, "somebody else wrote first, retrying");
            return;
        }
        cause = error.source();
    }
    let reason = error.source().map(ToString::to_string);
    tracing::warn!(controller = queue, %key, %error, reason, pause_ms, "reconcile failed, retrying");
}
