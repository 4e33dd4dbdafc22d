//! What the kubelet counts: one number for every bound, and the times that users feel.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use weir_client::registered;

/// State of containers: `created`, `running`, `exited`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    pub(crate) state: &'static str,
}

/// Kind of a probe, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ProbeLabel {
    /// `startup`, `readiness` or `liveness`.
    pub(crate) probe: &'static str,
    /// `success` or `failure`.
    pub(crate) result: &'static str,
}

/// Which queue was full.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct QueueLabel {
    pub(crate) queue: &'static str,
}

/// All metrics; clones share the numbers.
#[derive(Clone)]
pub(crate) struct Metrics {
    /// Pods with a worker, at most `--max-pods` besides those that are going.
    pub(crate) pods: Gauge,
    /// Containers the runtime has, by state.
    pub(crate) containers: Family<StateLabel, Gauge>,
    /// Time to plan one pod and start what is planned.
    pub(crate) sync_seconds: Histogram,
    /// From first sight of a pod to its last container running.
    pub(crate) start_seconds: Histogram,
    /// Probe results.
    pub(crate) probes: Family<ProbeLabel, Counter>,
    /// Containers started again after they had exited.
    pub(crate) restarts: Counter,
    /// Status patches that were sent.
    pub(crate) status_patches: Counter,
    /// Open watches of `ConfigMaps` and Secrets, at most 256.
    pub(crate) object_watches: Gauge,
    /// What did not fit in a bounded queue and was dropped.
    pub(crate) dropped: Family<QueueLabel, Counter>,
    /// Log streams being served, at most 128.
    pub(crate) log_streams: Gauge,
}

impl Metrics {
    /// Registers everything; the registry brings the prefix `weir_kubelet_`.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let seconds =
            || Histogram::new([0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0]);
        let start = "From first sight of a pod to all running";
        let watches = "Open watches of ConfigMaps and Secrets";
        let r = registry;
        Self {
            pods: registered(r, "pods", "Pods this node works on", Gauge::default()),
            containers: registered(r, "containers", "Containers by state", Family::default()),
            sync_seconds: registered(r, "sync_seconds", "Time to plan one pod", seconds()),
            start_seconds: registered(r, "pod_start_seconds", start, seconds()),
            probes: registered(r, "probes", "Probe results", Family::default()),
            restarts: registered(r, "container_restarts", "Containers started again", Counter::default()),
            status_patches: registered(r, "status_patches", "Pod status patches sent", Counter::default()),
            object_watches: registered(r, "object_watches", watches, Gauge::default()),
            dropped: registered(r, "queue_dropped", "Dropped because a queue was full", Family::default()),
            log_streams: registered(r, "log_streams", "Log streams being served", Gauge::default()),
        }
    }

    /// Counts something dropped at the bound of `queue`.
    pub(crate) fn drop_from(&self, queue: &'static str) {
        self.dropped.get_or_create(&QueueLabel { queue }).inc();
    }
}
