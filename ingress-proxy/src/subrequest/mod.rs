//! Requests of the proxy's own: to authentication servers.
//!
//! ```text
//! policy: Question ─▶ auth ─▶ remembered? ─▶ clients ─▶ answer: who may come in
//! ```
//!
//! What is asked and what an answer means, [`crate::policy`] says. Here are the connections, and the bounds: on requests in
//! flight, of all and of one Ingress; on waits; on what is read and remembered.
//!
//! **Cost** for rules that have none: none; nothing is made before the first request of one that has.

mod auth;
mod cache;
mod client;
mod in_flight;
mod metrics;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

pub(crate) use metrics::SubrequestMetrics;

use crate::config::Timeouts;
use cache::Cache;
use client::Clients;
use in_flight::InFlight;

/// Questions in flight, of all Ingresses and of one: a server that hangs must not use up those of all others.
const QUESTIONS: usize = 2_048;
const QUESTIONS_OF_ONE: usize = 512;
/// What is read of an answer's body, so that its connection can be used again, and how long.
const REST_BYTES: usize = 64 * 1024;
const REST: Duration = Duration::from_secs(5);

/// Everything that requests of the proxy's own share.
#[derive(Debug)]
pub(crate) struct Subrequests {
    clients: Clients<Empty<Bytes>>,
    questions: Arc<InFlight>,
    cache: Cache,
    /// Longest wait for an answer, where the rule says nothing.
    wait: Duration,
    metrics: SubrequestMetrics,
}

impl Subrequests {
    pub(crate) fn new(metrics: &SubrequestMetrics, timeouts: &Timeouts) -> Self {
        Self {
            clients: Clients::new(timeouts.connect),
            questions: Arc::new(InFlight::new(QUESTIONS, QUESTIONS_OF_ONE, metrics.questions.clone())),
            cache: Cache::new(metrics.remembered.clone()),
            wait: timeouts.read,
            metrics: metrics.clone(),
        }
    }
}

/// Reads what is left of an answer, for its connection's sake.
async fn read_rest(body: Incoming) {
    if !body.is_end_stream() {
        let mut rest = Limited::new(body, REST_BYTES);
        let reading = async { while let Some(Ok(_)) = rest.frame().await {} };
        let _ = timeout(REST, reading).await;
    }
}
