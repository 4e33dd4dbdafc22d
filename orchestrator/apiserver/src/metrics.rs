//! What the server measures. Served on `/metrics`, in upstream's names where upstream has one for the same thing.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What a request was and how it ended. Every label has few values: resources are the registry's.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: &'static str,
    pub(crate) code: u16,
}

/// What a request was.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct LatencyLabels {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
}

/// Whose watches.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ResourceLabels {
    pub(crate) resource: &'static str,
}

/// The server's metrics. Clones share their values.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) latency: Family<LatencyLabels, Histogram>,
    pub(crate) in_flight: Gauge,
    pub(crate) refused: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_waited: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) watchers: Family<ResourceLabels, Gauge>,
    pub(crate) watchers_dropped: Family<ResourceLabels, Counter>,
    pub(crate) cached_objects: Family<ResourceLabels, Gauge>,
    pub(crate) cached_events: Family<ResourceLabels, Gauge>,
    pub(crate) cluster_ips: Gauge,
    pub(crate) node_ports: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_5, 2.0, 16))),
            in_flight: Gauge::default(),
            refused: Counter::default(),
            connections: Gauge::default(),
            connections_waited: Counter::default(),
            handshakes_failed: Counter::default(),
            watchers: Family::default(),
            watchers_dropped: Family::default(),
            cached_objects: Family::default(),
            cached_events: Family::default(),
            cluster_ips: Gauge::default(),
            node_ports: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics as `weir_apiserver_…`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        let r = registry.sub_registry_with_prefix("weir_apiserver");
        r.register("request", "Requests by verb, resource, subresource and code", m.requests);
        r.register(
            "request_duration_seconds",
            "Time to the head of the response; watches are not counted",
            m.latency,
        );
        r.register("requests_in_flight", "Requests being served, without watches and logs", m.in_flight);
        r.register(
            "requests_refused",
            "Requests refused with 429 because too many were in flight",
            m.refused,
        );
        r.register("connections", "Open connections", m.connections);
        r.register(
            "connections_waited",
            "Connections that waited because too many were open",
            m.connections_waited,
        );
        r.register("handshakes_failed", "TLS handshakes that failed or took too long", m.handshakes_failed);
        r.register("watchers", "Watches that run", m.watchers);
        r.register(
            "watchers_dropped",
            "Watches dropped for falling behind the kept events",
            m.watchers_dropped,
        );
        r.register("cached_objects", "Objects in the watch cache", m.cached_objects);
        r.register("cached_events", "Events kept for watches", m.cached_events);
        r.register("cluster_ips_allocated", "Service addresses in use", m.cluster_ips);
        r.register("node_ports_allocated", "Node ports in use", m.node_ports);
    }

    /// Counts a request that was answered.
    pub(crate) fn answered(&self, labels: &RequestLabels, took: Duration) {
        if labels.verb != "watch" {
            let latency = LatencyLabels { verb: labels.verb, resource: labels.resource };
            self.latency.get_or_create(&latency).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(labels).inc();
    }
}

/// Counts a thing while it is there.
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
