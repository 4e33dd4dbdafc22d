//! Requests of the proxy's own: to authentication servers, and copies for mirrors.
//!
//! ```text
//! policy: Question  ─▶ auth ──▶ remembered? ─▶ clients ─▶ answer: who may come in
//! policy: Duplicate ─▶ mirror ─────────────────▶ clients ─▶ answer, thrown away
//!                        ▲
//!   request bodies ─▶ Tee, as they pass
//! ```
//!
//! What is asked and what an answer means, [`crate::policy`] says. Here are the connections, and the bounds: on requests in
//! flight, of all and of one Ingress; on waits; on what is read and remembered. The two kinds share nothing, so that no mirror
//! makes an authentication wait.
//!
//! **Cost** for rules that have neither: none; nothing is made before the first request of one that has.

mod auth;
mod cache;
mod client;
mod in_flight;
mod metrics;
mod mirror;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

pub(crate) use metrics::SubrequestMetrics;
pub(crate) use mirror::Tee;

use crate::config::Timeouts;
use cache::Cache;
pub(crate) use client::Clients;
use in_flight::InFlight;
use mirror::Mirrors;

/// Questions in flight, of all Ingresses and of one: a server that hangs must not use up those of all others.
const QUESTIONS: usize = 2_048;
const QUESTIONS_OF_ONE: usize = 512;
/// Copies in flight, of all Ingresses and of one.
const COPIES: usize = 256;
const COPIES_OF_ONE: usize = 64;
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
    mirrors: Arc<Mirrors>,
}

impl Subrequests {
    pub(crate) fn new(metrics: &SubrequestMetrics, timeouts: &Timeouts) -> Self {
        Self {
            clients: Clients::new(timeouts.connect),
            questions: Arc::new(InFlight::new(QUESTIONS, QUESTIONS_OF_ONE, metrics.questions.clone())),
            cache: Cache::new(metrics.remembered.clone()),
            wait: timeouts.read,
            metrics: metrics.clone(),
            mirrors: Arc::new(Mirrors::new(metrics, timeouts)),
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
