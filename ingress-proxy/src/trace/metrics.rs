//! What becomes of spans.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::metrics::registered;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum SpanOutcome {
    Exported,
    /// The queue was full.
    Dropped,
    /// The collector did not take it.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabels {
    outcome: SpanOutcome,
}

/// What traces count.
#[derive(Debug, Clone)]
pub(crate) struct TraceMetrics(Family<SpanLabels, Counter>);

impl TraceMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self(registered(r, "trace_spans", "Spans of requests that were recorded"))
    }

    pub(super) fn count(&self, outcome: SpanOutcome, number: usize) {
        self.0.get_or_create(&SpanLabels { outcome }).inc_by(number as u64);
    }
}
