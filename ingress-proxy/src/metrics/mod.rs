//! What Prometheus sees of the ingress. Names start with `weir_ingress_`.
//!
//! Labels come from the route table only, never from a request, and their number is bounded: a client cannot
//! make series. Counters of a target are resolved when the table is installed, so that a request touches
//! atomics and no label map.

mod hosts;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::compile::ObjectKey;
use crate::policy::By;
use crate::subrequest::SubrequestMetrics;
use crate::trace::TraceMetrics;
use crate::upstream::CheckMetrics;
use crate::watch::StatusMetrics;
pub(crate) use hosts::{HostMetrics, Hosts};

/// Pairs of Ingress and Service with series of their own; those beyond share the pair `other`.
pub(crate) const MAX_LABELLED_TARGETS: usize = 1_000;

/// Half a millisecond to ten seconds.
pub(crate) const LATENCY_BUCKETS_S: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
const RELOAD_BUCKETS_S: [f64; 8] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.03, 0.1, 1.0];

/// Ingress and Service of a target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(crate) struct TargetLabels {
    /// `namespace/name`.
    pub(crate) ingress: String,
    /// The Service's name.
    pub(crate) service: String,
}

/// A secret with a certificate, `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    secret: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    ingress: String,
    service: String,
    class: &'static str,
}

/// Why a request to an endpoint failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // the names are the label's values
pub(crate) enum UpstreamFailure {
    ConnectRefused,
    ConnectTimeout,
    ConnectOther,
    TlsHandshake,
    TlsUntrusted,
    ReadTimeout,
    WriteTimeout,
    Closed,
    InvalidResponse,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    reason: UpstreamFailure,
}

/// Why a connection was ended without an answer by the proxy's routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // the names are the label's values
pub(crate) enum Refusal {
    HeaderTimeout,
    HeaderTooLarge,
    HandshakeFailed,
    HandshakeTimeout,
    TooManyConnections,
    UntrustedProxy,
    ProxyHeader,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: Refusal,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    policy: By,
}

/// What policies count.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyMetrics {
    answers: Family<PolicyLabels, Counter>,
    /// Clients whose rate was forgotten before its time, at the bound on clients.
    pub(crate) clients_forgotten: Counter,
    /// Clients whose requests in flight are being counted.
    pub(crate) clients_counted: Gauge,
    /// Requests in flight that were not counted, at the bound on clients.
    pub(crate) clients_uncounted: Counter,
}

/// What is counted of TLS that goes to the endpoints as it is.
#[derive(Debug, Clone)]
struct PassthroughMetrics {
    connections: Counter,
    open: Gauge,
    unserved: Counter,
}

/// One more on a gauge, for as long as it is there.
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl PolicyMetrics {
    fn register(r: &mut Registry) -> Self {
        Self {
            answers: registered(r, "policy_answers", "Requests answered by a policy, not by an endpoint"),
            clients_forgotten: registered(
                r,
                "limit_clients_forgotten",
                "Clients whose rate was forgotten too early, at the bound on clients",
            ),
            clients_counted: registered(
                r,
                "limit_clients_in_flight",
                "Clients whose requests in flight are counted",
            ),
            clients_uncounted: registered(
                r,
                "limit_requests_uncounted",
                "Requests in flight that were not counted, at the bound on clients",
            ),
        }
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, policy: By) {
        self.answers.get_or_create(&PolicyLabels { policy }).inc();
    }
}

/// All metrics of the role.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Of policies.
    pub(crate) policies: PolicyMetrics,
    /// Of hosts.
    pub(crate) hosts: Hosts,
    /// As many as there are secrets that are watched.
    expiry: Family<SecretLabels, Gauge>,
    /// Of who publishes status.
    pub(crate) election: weir_election::Metrics,
    /// Of what is published.
    pub(crate) status: StatusMetrics,
    /// Of spans.
    pub(crate) traces: TraceMetrics,
    /// Of requests of the proxy's own.
    pub(crate) subrequests: SubrequestMetrics,
    responses: Family<ResponseLabels, Counter>,
    latency: Family<TargetLabels, Histogram, fn() -> Histogram>,
    failures: Family<FailureLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    /// Retries on another endpoint or connection.
    pub(crate) retries: Counter,
    /// Endpoints that got no requests for a while because they failed.
    pub(crate) ejections: Counter,
    /// Endpoints that get none now, at the last look.
    pub(crate) ejected: Gauge,
    /// Of health checks.
    pub(crate) health: CheckMetrics,
    /// Requests that were not tried again, at the bound on retries to a backend.
    pub(crate) retries_refused: Counter,
    /// Requests for which every endpoint had as many in flight as the rule allows.
    pub(crate) endpoints_full: Counter,
    /// Requests being served.
    pub(crate) in_flight: Gauge,
    /// Open client connections.
    pub(crate) connections: Gauge,
    /// Connections to endpoints that wait for a request, at the last look.
    pub(crate) idle: Gauge,
    /// Access log lines that were dropped because the writer did not keep up.
    pub(crate) log_dropped: Counter,
    /// Events that were not written because too many waited.
    pub(crate) events_dropped: Counter,
    /// Secrets that are being watched.
    pub(crate) secret_watches: Gauge,
    /// Secrets beyond the bound, which are not watched.
    pub(crate) secrets_refused: Gauge,
    passthrough: PassthroughMetrics,
    host_count: Gauge,
    paths: Gauge,
    endpoints: Gauge,
    certificates: Gauge,
    /// Faults that are there now.
    pub(crate) problems: Gauge,
    reload: Histogram,
    last_reload: Gauge,
}

/// A new metric that the registry knows.
pub(crate) fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Sizes of what is being served.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)] // the names say it
pub(crate) struct Sizes {
    pub(crate) hosts: usize,
    pub(crate) paths: usize,
    pub(crate) certificates: usize,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let r = registry.sub_registry_with_prefix("weir_ingress");
        let latency: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS_S);
        let latency = Family::new_with_constructor(latency);
        let help = "Time from the request's head to the end of its response";
        r.register_with_unit("request_duration", help, Unit::Seconds, latency.clone());
        let reload = Histogram::new(RELOAD_BUCKETS_S);
        let help = "Time from the first change in a batch to the new table being live";
        r.register_with_unit("reload_duration", help, Unit::Seconds, reload.clone());
        let last_reload = Gauge::default();
        let help = "When the table was last replaced";
        r.register_with_unit("last_reload_timestamp", help, Unit::Seconds, last_reload.clone());
        let expiry = Family::default();
        let help = "When the certificate in a secret ceases to be valid";
        r.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, expiry.clone());
        Self {
            policies: PolicyMetrics::register(r),
            hosts: Hosts::new(registered(
                r,
                "host_requests",
                "Requests answered, by host of a rule and status class",
            )),
            election: weir_election::Metrics::register(r),
            status: StatusMetrics::register(r),
            traces: TraceMetrics::register(r),
            subrequests: SubrequestMetrics::register(r),
            responses: registered(r, "requests", "Requests answered, by status class"),
            expiry,
            latency,
            failures: registered(r, "upstream_failures", "Failed attempts to get an answer from an endpoint"),
            refusals: registered(r, "refused", "Connections and requests ended before routing"),
            retries: registered(r, "retries", "Requests tried again on another endpoint or connection"),
            ejections: registered(
                r,
                "upstream_ejections",
                "Endpoints passed over for a while after failures",
            ),
            ejected: registered(r, "upstream_ejected", "Endpoints that are passed over"),
            retries_refused: registered(
                r,
                "retries_refused",
                "Requests not tried again, at the bound on retries",
            ),
            health: CheckMetrics::register(r),
            endpoints_full: registered(
                r,
                "upstream_full",
                "Requests not served because every endpoint was at max-connections",
            ),
            in_flight: registered(r, "in_flight", "Requests being served"),
            connections: registered(r, "connections", "Open client connections"),
            idle: registered(r, "upstream_idle", "Connections to endpoints that wait for a request"),
            log_dropped: registered(r, "access_log_dropped", "Access log lines dropped at the queue's bound"),
            events_dropped: registered(r, "events_dropped", "Events dropped at the queue's bound"),
            secret_watches: registered(r, "secret_watches", "Secrets being watched"),
            secrets_refused: registered(r, "secrets_refused", "Secrets beyond the bound on watches"),
            passthrough: PassthroughMetrics {
                connections: registered(r, "passthrough_connections", "TLS connections relayed to endpoints"),
                open: registered(r, "passthrough_open", "TLS connections being relayed"),
                unserved: registered(
                    r,
                    "passthrough_unserved",
                    "TLS connections to be relayed that no endpoint took",
                ),
            },
            host_count: registered(r, "hosts", "Hosts in the route table"),
            paths: registered(r, "paths", "Path rules in the route table"),
            endpoints: registered(r, "endpoints", "Endpoints of all backends in the route table"),
            certificates: registered(r, "certificates", "Hosts with a certificate of their own"),
            problems: registered(r, "problems", "Faults found in Ingresses, each reported as an Event"),
            reload,
            last_reload,
        }
    }

    /// Counts a failed attempt.
    pub(crate) fn upstream_failure(&self, reason: UpstreamFailure) {
        self.failures.get_or_create(&FailureLabels { reason }).inc();
    }

    /// Counts a refusal.
    pub(crate) fn refused(&self, reason: Refusal) {
        self.refusals.get_or_create(&RefusalLabels { reason }).inc();
    }

    /// Counts a connection that is relayed, until what is returned goes.
    pub(crate) fn passthrough_opened(&self) -> Counted {
        self.passthrough.connections.inc();
        Counted::new(&self.passthrough.open)
    }

    /// Counts a connection that could not be relayed.
    pub(crate) fn passthrough_unserved(&self) {
        self.passthrough.unserved.inc();
    }

    /// Notes that a table went live.
    pub(crate) fn reloaded(&self, took: Duration, sizes: Sizes) {
        self.reload.observe(took.as_secs_f64());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.last_reload.set(now.as_secs() as i64);
        for (gauge, size) in [
            (&self.host_count, sizes.hosts),
            (&self.paths, sizes.paths),
            (&self.certificates, sizes.certificates),
        ] {
            gauge.set(size as i64);
        }
    }

    /// The counters for a target.
    pub(crate) fn target(&self, labels: &TargetLabels) -> Arc<TargetMetrics> {
        Arc::new(TargetMetrics {
            labels: labels.clone(),
            responses: Default::default(),
            family: self.responses.clone(),
            latency: self.latency.get_or_create(labels).clone(),
        })
    }

    /// Forgets the series of a pair that no target has any more.
    pub(crate) fn forget(&self, gone: &TargetLabels) {
        self.latency.remove(gone);
        for class in CLASSES {
            self.responses.remove(&gone.with_class(class));
        }
    }

    /// Notes until when the certificate in a secret is valid, in seconds since 1970; nothing if there is none any more.
    pub(crate) fn certificate_expiry(&self, secret: &ObjectKey, until: Option<i64>) {
        let labels = SecretLabels { secret: secret.to_string() };
        match until {
            Some(until) => drop(self.expiry.get_or_create(&labels).set(until)),
            None => drop(self.expiry.remove(&labels)),
        }
    }

    /// Notes how many endpoints there are.
    pub(crate) fn endpoints(&self, number: usize) {
        self.endpoints.set(number as i64);
    }
}

/// Of responses; `none` is for clients that got none.
pub(crate) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The class of a status, by its place in [`CLASSES`].
fn class_of(status: u16) -> usize {
    match status {
        100..600 => usize::from(status / 100),
        _ => 0,
    }
}

impl TargetLabels {
    /// The pair that targets beyond the bound share.
    pub(crate) fn other() -> Self {
        Self { ingress: "other".to_owned(), service: "other".to_owned() }
    }

    /// The pair for requests that no rule matched.
    pub(crate) fn none() -> Self {
        Self { ingress: String::new(), service: String::new() }
    }

    fn with_class(&self, class: &'static str) -> ResponseLabels {
        ResponseLabels { ingress: self.ingress.clone(), service: self.service.clone(), class }
    }
}

/// One target's counters, resolved. A status class that never occurs makes no series.
#[derive(Debug)]
pub(crate) struct TargetMetrics {
    labels: TargetLabels,
    responses: [OnceLock<Counter>; CLASSES.len()],
    family: Family<ResponseLabels, Counter>,
    latency: Histogram,
}

impl TargetMetrics {
    /// Ingress and Service of the series.
    pub(crate) fn labels(&self) -> &TargetLabels {
        &self.labels
    }

    /// Counts a finished request; `status` is 0 when the client got none.
    pub(crate) fn finished(&self, status: u16, took: Duration) {
        let class = class_of(status);
        self.responses[class]
            .get_or_init(|| self.family.get_or_create(&self.labels.with_class(CLASSES[class])).clone())
            .inc();
        self.latency.observe(took.as_secs_f64());
    }
}
