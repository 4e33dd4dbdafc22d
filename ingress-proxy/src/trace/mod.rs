//! Traces: where a request stands among all that happened for its sake, told to a collector in OTLP.
//!
//! ```text
//! traceparent ─▶ Trace ─▶ traceparent for the endpoint
//!                  └────▶ span, when the request is over ─▶ queue ─▶ collector
//! ```
//!
//! One span for each request, of the kind server. Only a trusted peer's word makes a trace recorded; of all others'
//! `--trace-sample-ratio` is. Without a collector nothing is done, and `traceparent` goes to the endpoint as it came.
//!
//! **Cost** of a request: without a collector one branch; of one that is not recorded, two random numbers and a field of 55
//! bytes; of one that is, some twenty allocations and a place in a queue, which is bounded and never waited for.

mod context;
mod export;
mod metrics;
mod span;

use opentelemetry::InstrumentationScope;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;

pub(crate) use context::{Parent, Trace};
pub(crate) use export::Exporting;
pub(crate) use metrics::TraceMetrics;

use crate::access_log::Line;
use context::Share;
use metrics::SpanOutcome;

/// Makes traces, and hands spans on.
#[derive(Debug)]
pub(crate) struct Tracer {
    share: Share,
    scope: InstrumentationScope,
    queue: mpsc::Sender<SpanData>,
    metrics: TraceMetrics,
}

/// A setting makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Of the collector's address.
    #[error("--otlp-endpoint {0:?}: {1}; write a URL such as http://collector:4318")]
    Endpoint(String, String),
    /// Of the share.
    #[error("--trace-sample-ratio {0}: write a number from 0 to 1")]
    Ratio(f64),
}

impl Tracer {
    /// Sends spans to the collector at this URL; must be called inside the runtime that does it.
    pub(crate) fn start(
        endpoint: &str,
        ratio: f64,
        metrics: TraceMetrics,
    ) -> Result<(Self, Exporting), TraceError> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(TraceError::Ratio(ratio));
        }
        let malformed = |why: &str| TraceError::Endpoint(endpoint.to_owned(), why.to_owned());
        let url: http::Uri = endpoint.parse().map_err(|_| malformed("this is no URL"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err(malformed("only http and https are spoken"));
        }
        let (queue, exporting) =
            export::start(endpoint, metrics.clone()).map_err(|error| malformed(&error))?;
        let scope =
            InstrumentationScope::builder("weir-ingress").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok((Self { share: Share::of(ratio), scope, queue, metrics }, exporting))
    }

    /// The place of a request in the caller's trace, or in a new one.
    pub(crate) fn begin(&self, parent: Option<Parent>, trusted: bool) -> Trace {
        Trace::begin(parent, trusted, self.share)
    }

    /// Tells of a request that is over, if it is to be recorded.
    pub(crate) fn end(&self, trace: &Trace, line: &Line<'_>) {
        if trace.is_sampled && self.queue.try_send(span::span(trace, line, &self.scope)).is_err() {
            self.metrics.count(SpanOutcome::Dropped, 1);
        }
    }
}
