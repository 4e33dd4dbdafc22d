//! The scheduler's metrics.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use weir_client::registered;

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
        // 10 µs to 40 ms: a decision is arithmetic.
        let decision = Histogram::new(exponential_buckets(0.000_01, 4.0, 7));
        // 1 ms to 65 s: the wait for a node that is not there yet counts too.
        let latency = Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let latency_help = "Time from seeing a pending pod to its acknowledged bind";
        let r = registry;
        Self {
            attempts: registered(r, "attempts", "Attempts to place a pod, by result", Family::default()),
            pending: registered(r, "pending_pods", "Pods waiting for a node, by queue", Family::default()),
            decision: registered(r, "decision_duration_seconds", "Time to decide on one pod", decision),
            latency: registered(r, "pod_latency_seconds", latency_help, latency),
        }
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
