//! What is counted of checks.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::CheckFailure;
use crate::metrics::registered;

/// The names are the label's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum CheckResult {
    Passed,
    NoConnection,
    Late,
    Status,
    Closed,
    Malformed,
    Grpc,
    Panicked,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    result: CheckResult,
}

/// What is counted of checks.
#[derive(Debug, Clone)]
pub(crate) struct CheckMetrics {
    checks: Family<CheckLabels, Counter>,
    /// Checks under way.
    pub(super) in_flight: Gauge,
    /// Checks that began late, at the bounds on checks under way.
    pub(super) delayed: Counter,
    /// Endpoints that are out, at the last look.
    pub(crate) unhealthy: Gauge,
}

impl CheckMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            checks: registered(r, "health_checks", "Health checks of endpoints, by what came of them"),
            in_flight: registered(r, "health_checks_in_flight", "Health checks under way"),
            delayed: registered(
                r,
                "health_checks_delayed",
                "Health checks that began late, at the bounds on those under way",
            ),
            unhealthy: registered(r, "upstream_unhealthy", "Endpoints that health checks took out"),
        }
    }

    pub(super) fn checked(&self, outcome: Result<(), CheckFailure>) {
        let result = match outcome {
            Ok(()) => CheckResult::Passed,
            Err(CheckFailure::NoConnection(_)) => CheckResult::NoConnection,
            Err(CheckFailure::Late) => CheckResult::Late,
            Err(CheckFailure::Status(_)) => CheckResult::Status,
            Err(CheckFailure::Closed) => CheckResult::Closed,
            Err(CheckFailure::Malformed) => CheckResult::Malformed,
            Err(CheckFailure::Grpc(_)) => CheckResult::Grpc,
            Err(CheckFailure::Panicked) => CheckResult::Panicked,
        };
        self.checks.get_or_create(&CheckLabels { result }).inc();
    }
}
