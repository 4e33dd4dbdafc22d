//! What the agent counts. Everything here is written by its one task, or read out of the maps by it.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};

use weir_dataplane_ebpf::maps::NODE_PORTS;

use crate::plan::{Limits, Usage};

/// Which map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct MapLabel {
    map: &'static str,
}

/// Why a packet was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    reason: &'static str,
}

/// The agent's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Plan and map writes of one round.
    pub(crate) sync: Histogram,
    /// From the arrival of an API event to the maps.
    pub(crate) event_to_kernel: Histogram,
    /// Rounds that failed and are tried again.
    pub(crate) sync_failures: Counter,
    /// Map writes.
    pub(crate) steps: Counter,
    /// Services and Pods with something that is not served.
    pub(crate) unserved: Gauge,
    /// Events that were not written.
    pub(crate) events_dropped: Counter,
    /// Listeners of health checks.
    pub(crate) health_check_listeners: Gauge,
    /// Flow entries that garbage collection removed.
    pub(crate) flows_removed: Counter,
    /// Sockets that were led to a backend which is gone.
    pub(crate) sockets_destroyed: Counter,
    /// One pass over the flows.
    pub(crate) flow_pass: Histogram,
    entries: Family<MapLabel, Gauge>,
    bounds: Family<MapLabel, Gauge>,
    drops: Family<ReasonLabel, Gauge>,
}

/// A new metric that the registry knows.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// The same for durations from 50 µs to 13 s.
fn durations(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let durations = Histogram::new(exponential_buckets(50e-6, 2.0, 18));
    registry.register_with_unit(name, help, Unit::Seconds, durations.clone());
    durations
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let r = registry.sub_registry_with_prefix("weir_dataplane");
        Self {
            sync: durations(r, "sync_duration", "Plan and map writes of one round"),
            event_to_kernel: durations(
                r,
                "event_to_kernel",
                "From the arrival of an API event to the kernel's maps",
            ),
            sync_failures: registered(r, "sync_failures", "Rounds that failed and were tried again"),
            steps: registered(r, "map_writes", "Steps carried out"),
            unserved: registered(
                r,
                "unserved_services",
                "Services and Pods with something that is not served",
            ),
            health_check_listeners: registered(
                r,
                "health_check_listeners",
                "Sockets on which load balancers are answered",
            ),
            events_dropped: registered(r, "events_dropped", "Events not written: the queue was full"),
            flows_removed: registered(r, "flows_removed", "Flow entries that were over"),
            sockets_destroyed: registered(
                r,
                "sockets_destroyed",
                "Connected sockets whose backend went, and that were ended for it",
            ),
            flow_pass: durations(r, "flow_pass", "One pass over the flow tables"),
            entries: registered(r, "map_entries", "Entries in use"),
            bounds: registered(r, "map_bound", "Entries that there is room for"),
            drops: registered(
                r,
                "dropped_packets",
                "Packets dropped by the programs since their maps were made",
            ),
        }
    }

    pub(crate) fn set_usage(&self, usage: &Usage, limits: &Limits) {
        let rows = [
            ("frontends_v4", usage.frontends[0], limits.frontends),
            ("frontends_v6", usage.frontends[1], limits.frontends),
            ("backends_v4", usage.backends[0], limits.backends),
            ("backends_v6", usage.backends[1], limits.backends),
            ("maglev", usage.slots, limits.slots),
            ("source_ranges_v4", usage.source_ranges[0], limits.source_ranges),
            ("source_ranges_v6", usage.source_ranges[1], limits.source_ranges),
            ("node_ports", usage.node_ports, NODE_PORTS),
        ];
        for (map, used, bound) in rows {
            self.set_fill(map, used, bound);
        }
    }

    pub(crate) fn set_fill(&self, map: &'static str, used: u32, bound: u32) {
        self.entries.get_or_create(&MapLabel { map }).set(i64::from(used));
        self.bounds.get_or_create(&MapLabel { map }).set(i64::from(bound));
    }

    pub(crate) fn set_drops(&self, drops: &[(&'static str, u64)]) {
        for (reason, count) in drops {
            self.drops.get_or_create(&ReasonLabel { reason }).set((*count).cast_signed());
        }
    }
}

/// Observes a duration in seconds.
pub(crate) fn observe(histogram: &Histogram, duration: Duration) {
    histogram.observe(duration.as_secs_f64());
}
