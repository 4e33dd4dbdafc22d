//! The scheduler's metrics.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::queue::Counts;

type Label = [(&'static str, &'static str); 1];

/// Counters of what was decided, gauges of what waits.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    attempts: Family<Label, Counter>,
    pending: Family<Label, Gauge>,
    decision: Histogram,
    latency: Histogram,
}

impl Metrics {
    /// Registers all metrics; the registry brings the role's prefix.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            attempts: Family::default(),
            pending: Family::default(),
            // 10 µs to 40 ms: a decision is arithmetic.
            decision: Histogram::new(exponential_buckets(0.000_01, 4.0, 7)),
            // 1 ms to 65 s: the wait for a node that is not there yet counts too.
            latency: Histogram::new(exponential_buckets(0.001, 4.0, 9)),
        };
        registry.register("attempts", "Attempts to place a pod, by result", metrics.attempts.clone());
        registry.register("pending_pods", "Pods waiting for a node, by queue", metrics.pending.clone());
        let help = "Time to decide on one pod";
        registry.register("decision_duration_seconds", help, metrics.decision.clone());
        let help = "Time from seeing a pending pod to its acknowledged bind";
        registry.register("pod_latency_seconds", help, metrics.latency.clone());
        metrics
    }

    pub(crate) fn decided(&self, elapsed: Duration) {
        self.decision.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn bound(&self, elapsed: Duration) {
        self.attempts.get_or_create(&[("result", "scheduled")]).inc();
        self.latency.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn unschedulable(&self) {
        self.attempts.get_or_create(&[("result", "unschedulable")]).inc();
    }

    pub(crate) fn failed(&self) {
        self.attempts.get_or_create(&[("result", "error")]).inc();
    }

    pub(crate) fn pending(&self, counts: Counts) {
        let queues = [
            ("active", counts.active),
            ("backoff", counts.backoff),
            ("unschedulable", counts.unschedulable),
            ("gated", counts.gated),
        ];
        for (queue, pods) in queues {
            self.pending.get_or_create(&[("queue", queue)]).set(pods as i64);
        }
    }
}
