//! What the store measures: one metric for each bound it has.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The store's metrics. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Seconds from the first transaction of a batch to its being durable.
    pub commit_seconds: Histogram,
    /// Transactions in one durable commit.
    pub batch_size: Histogram,
    /// Transactions that were applied.
    pub committed: Counter,
    /// Transactions whose compares did not hold.
    pub mismatched: Counter,
    /// Transactions that waited because the queue of the writer was full.
    pub queue_full: Counter,
    /// The newest committed revision.
    pub revision: Gauge,
    /// The newest revision that can no longer be watched from.
    pub compacted_revision: Gauge,
    /// Events kept for watches.
    pub history_events: Gauge,
    /// Bytes of keys and values kept for watches.
    pub history_bytes: Gauge,
    /// Watches that run.
    pub watchers: Gauge,
    /// Watches that fell behind the history and were dropped.
    pub watchers_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            committed: Counter::default(),
            mismatched: Counter::default(),
            queue_full: Counter::default(),
            revision: Gauge::default(),
            compacted_revision: Gauge::default(),
            history_events: Gauge::default(),
            history_bytes: Gauge::default(),
            watchers: Gauge::default(),
            watchers_dropped: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics as `weir_store_…`.
    pub fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        let registry = registry.sub_registry_with_prefix("weir_store");
        registry.register(
            "commit_seconds",
            "Time from a batch's first transaction to disk",
            m.commit_seconds,
        );
        registry.register("batch_size", "Transactions in one durable commit", m.batch_size);
        registry.register("txn_committed", "Transactions that were applied", m.committed);
        registry.register("txn_mismatched", "Transactions whose compares did not hold", m.mismatched);
        registry.register(
            "queue_full",
            "Transactions that waited for room in the writer's queue",
            m.queue_full,
        );
        registry.register("revision", "Newest committed revision", m.revision);
        registry.register(
            "compacted_revision",
            "Oldest revision that a watch can start after",
            m.compacted_revision,
        );
        registry.register("history_events", "Events kept for watches", m.history_events);
        registry.register("history_bytes", "Bytes of the events kept for watches", m.history_bytes);
        registry.register("watchers", "Watches that run", m.watchers);
        registry.register(
            "watchers_dropped",
            "Watches dropped for falling behind the history",
            m.watchers_dropped,
        );
    }
}
