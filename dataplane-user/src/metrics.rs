//! What the agent counts. Everything here is written by its one task, or read out of the maps by it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

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

use weir_dataplane_ebpf::{
    Count,
    maps::{CLUSTER_IPS, NODE_PORTS},
};

use crate::{
    plan::{Limits, PortName, Usage, model::protocol_name},
    traffic::Sums,
};

/// Service ports with series of their own; the traffic of all others is in one, whose labels are empty.
const SERVICES_SHOWN: usize = 10_000;

/// One direction of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ServiceLabels {
    namespace: String,
    service: String,
    port: String,
    protocol: String,
    direction: &'static str,
}

impl ServiceLabels {
    fn new(name: Option<&PortName>, direction: &'static str) -> Self {
        let Some(name) = name else { return Self { direction, ..Self::default() } };
        Self {
            namespace: name.service.namespace.to_string(),
            service: name.service.name.to_string(),
            port: name.port.to_string(),
            protocol: protocol_name(weir_dataplane_ebpf::Protocol(name.protocol)),
            direction,
        }
    }
}

/// Which service ports have series, by id.
type Shown = Arc<Mutex<HashMap<u32, PortName>>>;

/// Which map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct MapLabel {
    map: &'static str,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    kind: &'static str,
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
    /// Those among them that would have stayed in an emptier table.
    pub(crate) flows_removed_early: Counter,
    /// Passes over the flows that came before their time.
    pub(crate) early_passes: Counter,
    /// Entries of UDP flows to endpoints that their service lost.
    pub(crate) flows_lost: Counter,
    /// Sockets that were led to a backend which is gone.
    pub(crate) sockets_destroyed: Counter,
    /// Questions of `weir explain` that were answered.
    pub(crate) questions: Counter,
    /// One pass over the flows.
    pub(crate) flow_pass: Histogram,
    /// Rounds of comparing the kernel's maps with the books.
    pub(crate) checks: Counter,
    drift: Family<KindLabel, Counter>,
    entries: Family<MapLabel, Gauge>,
    bounds: Family<MapLabel, Gauge>,
    drops: Family<ReasonLabel, Gauge>,
    packets: Family<ServiceLabels, Counter>,
    bytes: Family<ServiceLabels, Counter>,
    shown: Shown,
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
            flows_removed_early: registered(
                r,
                "flows_removed_early",
                "Entries of closed flows that made room in a crowded table",
            ),
            early_passes: registered(
                r,
                "early_flow_passes",
                "Passes over the flow tables that came early, since one was crowded",
            ),
            flows_lost: registered(
                r,
                "udp_flows_lost",
                "Flow entries of UDP that went with the endpoint of their service",
            ),
            sockets_destroyed: registered(
                r,
                "sockets_destroyed",
                "Connected sockets whose backend went, and that were ended for it",
            ),
            questions: registered(r, "questions", "Questions why endpoints are not taken, all answered"),
            flow_pass: durations(r, "flow_pass", "One pass over the flow tables"),
            checks: registered(r, "checks", "Times that all maps were compared with what was written"),
            drift: registered(r, "drift", "Differences between the maps and what was written, all repaired"),
            entries: registered(r, "map_entries", "Entries in use"),
            bounds: registered(r, "map_bound", "Entries that there is room for"),
            drops: registered(
                r,
                "dropped_packets",
                "Packets dropped by the programs since their maps were made",
            ),
            packets: registered(r, "service_packets", "Packets of a service port's flows"),
            bytes: registered(r, "service_bytes", "Bytes of these packets, from the network header on"),
            shown: Shown::default(),
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
            ("cluster_ips", usage.cluster_ips, 2 * CLUSTER_IPS),
        ];
        for (map, used, bound) in rows {
            self.set_fill(map, used, bound);
        }
    }

    pub(crate) fn set_fill(&self, map: &'static str, used: u32, bound: u32) {
        self.entries.get_or_create(&MapLabel { map }).set(i64::from(used));
        self.bounds.get_or_create(&MapLabel { map }).set(i64::from(bound));
    }

    /// Shows the traffic of services by id. One that is gone takes its series along; `traffic` counts it as id 0 then.
    pub(crate) fn set_traffic(&self, traffic: &HashMap<u32, Sums>, names: &HashMap<u32, PortName>) {
        let mut shown = self.shown.lock().expect("nobody panics with it");
        shown.retain(|id, name| {
            let stays = names.get(id) == Some(name);
            for direction in ["request", "reply"].into_iter().filter(|_| !stays) {
                let labels = ServiceLabels::new(Some(name), direction);
                self.packets.remove(&labels);
                self.bytes.remove(&labels);
            }
            stays
        });
        let mut others = Sums::default();
        for (id, sums) in traffic {
            match names.get(id) {
                Some(name) if shown.contains_key(id) || shown.len() < SERVICES_SHOWN => {
                    shown.insert(*id, name.clone());
                    self.set_sums(Some(name), sums);
                }
                _ => others += *sums,
            }
        }
        self.set_sums(None, &others);
    }

    fn set_sums(&self, name: Option<&PortName>, sums: &Sums) {
        let rows: [(&'static str, Count); 2] = [("request", sums.requests), ("reply", sums.replies)];
        for (direction, count) in rows {
            let labels = ServiceLabels::new(name, direction);
            raise(&self.packets.get_or_create(&labels), count.packets);
            raise(&self.bytes.get_or_create(&labels), count.bytes);
        }
    }

    pub(crate) fn add_drift(&self, kind: &'static str, count: u64) {
        self.drift.get_or_create(&KindLabel { kind }).inc_by(count);
    }

    pub(crate) fn set_drops(&self, drops: &[(&'static str, u64)]) {
        for (reason, count) in drops {
            self.drops.get_or_create(&ReasonLabel { reason }).set((*count).cast_signed());
        }
    }
}

/// Raises a counter to a sum that is kept elsewhere.
fn raise(counter: &Counter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// Observes a duration in seconds.
pub(crate) fn observe(histogram: &Histogram, duration: Duration) {
    histogram.observe(duration.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::plan::model::ServiceKey;

    fn shown(registry: &Registry) -> Vec<String> {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.retain(|line| line.starts_with("weir_dataplane_service_packets_total{"));
        lines.sort();
        lines
    }

    #[test]
    fn a_service_that_goes_takes_its_series_along() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let count = |packets| Count { packets, bytes: packets };
        let sums = |packets| Sums { requests: count(packets), replies: count(packets + 1) };
        let name = PortName { service: ServiceKey::new("default", "web"), port: "http".into(), protocol: 6 };
        metrics.set_traffic(&HashMap::from([(0, sums(1)), (7, sums(10))]), &HashMap::from([(7, name)]));
        let labels = |service: &str, direction: &str| match service {
            "" => format!(r#"namespace="",service="",port="",protocol="",direction="{direction}""#),
            name => format!(
                r#"namespace="default",service="{name}",port="http",protocol="tcp",direction="{direction}""#
            ),
        };
        let line = |service, direction, packets| {
            format!("weir_dataplane_service_packets_total{{{}}} {packets}", labels(service, direction))
        };
        assert_eq!(
            shown(&registry),
            [
                line("", "reply", 2),
                line("", "request", 1),
                line("web", "reply", 11),
                line("web", "request", 10)
            ]
        );
        metrics.set_traffic(&HashMap::from([(0, sums(11))]), &HashMap::new());
        assert_eq!(shown(&registry), [line("", "reply", 12), line("", "request", 11)]);
    }

    #[test]
    fn there_is_a_bound_on_series() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let ids = 1..=SERVICES_SHOWN as u32 + 5;
        let name = |id: &u32| PortName {
            service: ServiceKey::new("default", &format!("s{id}")),
            port: "80".into(),
            protocol: 6,
        };
        let one = Count { packets: 1, bytes: 60 };
        let traffic = ids.clone().map(|id| (id, Sums { requests: one, replies: one })).collect();
        metrics.set_traffic(&traffic, &ids.map(|id| (id, name(&id))).collect());
        let lines = shown(&registry);
        assert_eq!(lines.len(), 2 * (SERVICES_SHOWN + 1));
        assert!(lines.iter().any(|line| line.contains(r#"service="""#) && line.ends_with(" 5")));
    }
}
