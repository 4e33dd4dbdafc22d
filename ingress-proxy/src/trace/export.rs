//! The way of spans to the collector, which no request ever waits for.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::metrics::{SpanOutcome, TraceMetrics};
use crate::subrequest::Clients;

/// Spans that may wait: a few megabytes.
const QUEUE: usize = 4_096;
/// Spans that are sent at once, and how long the first of them waits for others.
const BATCH: usize = 512;
const LINGER: Duration = Duration::from_secs(1);
/// Longest wait for a connection to the collector, and for all of an export.
const CONNECT: Duration = Duration::from_secs(5);
const EXPORT: Duration = Duration::from_secs(10);
/// What is read of the collector's answer.
const ANSWER_BYTES: usize = 64 * 1024;
/// Where a collector takes spans (OTLP/HTTP).
const PATH: &str = "/v1/traces";

/// The task that sends; it ends when there are no more senders, with the last spans sent.
#[derive(Debug)]
pub(crate) struct Exporting(JoinHandle<()>);

/// Begins to send what comes through the returned queue.
pub(super) fn start(
    endpoint: &str,
    metrics: TraceMetrics,
) -> Result<(mpsc::Sender<SpanData>, Exporting), String> {
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector(Clients::new(CONNECT)))
        .with_endpoint(url(endpoint))
        .with_timeout(EXPORT)
        .build()
        .map_err(|error| error.to_string())?;
    exporter.set_resource(&resource());
    let (queue, spans) = mpsc::channel(QUEUE);
    Ok((queue, Exporting(tokio::spawn(run(exporter, spans, metrics)))))
}

impl Exporting {
    /// Waits for the last spans to be sent, for as long as one export may take.
    pub(crate) async fn finish(self) {
        let task = self.0.abort_handle();
        if timeout(EXPORT, self.0).await.is_err() {
            task.abort();
        }
    }
}

async fn run(exporter: SpanExporter, mut spans: mpsc::Receiver<SpanData>, metrics: TraceMetrics) {
    let mut is_failing = false;
    loop {
        let mut batch = Vec::new();
        if spans.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        if batch.len() < BATCH && !spans.is_closed() {
            sleep(LINGER).await;
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
        }
        let count = batch.len();
        match exporter.export(batch).await {
            Ok(()) => {
                metrics.count(SpanOutcome::Exported, count);
                if std::mem::take(&mut is_failing) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                metrics.count(SpanOutcome::Failed, count);
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "the collector takes no spans; they are lost until it does");
                }
            }
        }
    }
}

/// The URL for spans, of the one for all signals.
fn url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }
}

/// Who speaks: what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say goes before.
fn resource() -> Resource {
    let builder = Resource::builder();
    match std::env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => builder.build(),
        None => builder.with_service_name("weir-ingress").build(),
    }
}

/// The exporter's door to the network.
#[derive(Debug)]
struct Collector(Clients<Full<Bytes>>);

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let response = self.0.send(request.map(Full::new)).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        timeout(EXPORT, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_path_of_their_own_at_the_collector() {
        for (endpoint, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://collector/otlp", "https://collector/otlp/v1/traces"),
            ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ] {
            assert_eq!(url(endpoint), expected);
        }
    }
}
