//! What requests of the proxy's own count.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::{LATENCY_BUCKETS_S, registered};

/// What came of asking an authentication server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum AuthOutcome {
    Granted,
    /// 401 or 403.
    Refused,
    /// It was not asked: an answer of before was still good.
    Remembered,
    /// Another status.
    Unexpected,
    /// No connection, or none that lasted.
    Unreachable,
    Late,
    /// It was not asked, at the bound on requests in flight.
    Busy,
}

/// What came of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum MirrorOutcome {
    Answered,
    Failed,
    Late,
    /// It was not sent, at the bound on copies in flight.
    Busy,
    /// Its body was given up: the mirror took it too slowly, or the client did not send all of it.
    BodyLost,
    /// The request made no URL.
    NoUrl,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthLabels {
    outcome: AuthOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MirrorLabels {
    outcome: MirrorOutcome,
}

/// What requests of the proxy's own count.
#[derive(Debug, Clone)]
pub(crate) struct SubrequestMetrics {
    auth: Family<AuthLabels, Counter>,
    latency: Histogram,
    /// Questions in flight.
    pub(super) questions: Gauge,
    /// Answers that are remembered.
    pub(super) remembered: Gauge,
    mirror: Family<MirrorLabels, Counter>,
    /// Copies in flight.
    pub(super) copies: Gauge,
}

impl SubrequestMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        let latency = Histogram::new(LATENCY_BUCKETS_S);
        r.register("auth_duration_seconds", "Time that authentication servers took", latency.clone());
        Self {
            auth: registered(r, "auth_requests", "Requests that needed an authentication server's word"),
            latency,
            questions: registered(r, "auth_in_flight", "Requests to authentication servers in flight"),
            remembered: registered(
                r,
                "auth_remembered",
                "Answers of authentication servers that are remembered",
            ),
            mirror: registered(r, "mirror_requests", "Copies of requests for mirrors"),
            copies: registered(r, "mirror_in_flight", "Copies of requests in flight"),
        }
    }

    pub(super) fn asked(&self, outcome: AuthOutcome) {
        self.auth.get_or_create(&AuthLabels { outcome }).inc();
    }

    pub(super) fn took(&self, took: Duration) {
        self.latency.observe(took.as_secs_f64());
    }

    pub(super) fn mirrored(&self, outcome: MirrorOutcome) {
        self.mirror.get_or_create(&MirrorLabels { outcome }).inc();
    }
}
