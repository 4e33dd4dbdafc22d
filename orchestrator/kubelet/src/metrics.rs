//! What the kubelet counts: one number for every bound, and the times that users feel.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

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
    /// Registers everything with the prefix `weir_kubelet_`.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let seconds = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
        let metrics = Self {
            pods: Gauge::default(),
            containers: Family::default(),
            sync_seconds: Histogram::new(seconds),
            start_seconds: Histogram::new(seconds),
            probes: Family::default(),
            restarts: Counter::default(),
            status_patches: Counter::default(),
            object_watches: Gauge::default(),
            dropped: Family::default(),
            log_streams: Gauge::default(),
        };
        let r = registry.sub_registry_with_prefix("weir_kubelet");
        r.register("pods", "Pods this node works on", metrics.pods.clone());
        r.register("containers", "Containers by state", metrics.containers.clone());
        r.register("sync_seconds", "Time to plan one pod", metrics.sync_seconds.clone());
        r.register(
            "pod_start_seconds",
            "From first sight of a pod to all running",
            metrics.start_seconds.clone(),
        );
        r.register("probes", "Probe results", metrics.probes.clone());
        r.register("container_restarts", "Containers started again", metrics.restarts.clone());
        r.register("status_patches", "Pod status patches sent", metrics.status_patches.clone());
        r.register(
            "object_watches",
            "Open watches of ConfigMaps and Secrets",
            metrics.object_watches.clone(),
        );
        r.register("queue_dropped", "Dropped because a queue was full", metrics.dropped.clone());
        r.register("log_streams", "Log streams being served", metrics.log_streams.clone());
        metrics
    }

    /// Counts something dropped at the bound of `queue`.
    pub(crate) fn drop_from(&self, queue: &'static str) {
        self.dropped.get_or_create(&QueueLabel { queue }).inc();
    }
}
