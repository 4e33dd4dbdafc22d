//! What is remembered of one request between its phases.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;

use super::{Peer, RequestId};
use crate::live::Target;
use crate::metrics::Metrics;
use crate::upstream::Chosen;

/// One request's state.
pub(crate) struct Context {
    /// When the head was complete.
    pub(crate) started: Instant,
    pub(crate) peer: Option<Peer>,
    pub(crate) id: Option<RequestId>,
    /// In normal form; empty when it had none.
    pub(crate) host: String,
    pub(crate) target: Option<Arc<Target>>,
    pub(crate) chosen: Option<Chosen>,
    /// Endpoints that failed this request.
    pub(crate) failed: Vec<SocketAddr>,
    pub(crate) attempts: u8,
    /// What the client was told, or would have been.
    pub(crate) reason: Option<Cow<'static, str>>,
    in_flight: Gauge,
}

impl Context {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        metrics.in_flight.inc();
        Self {
            started: Instant::now(),
            peer: None,
            id: None,
            host: String::new(),
            target: None,
            chosen: None,
            failed: Vec::new(),
            attempts: 0,
            reason: None,
            in_flight: metrics.in_flight.clone(),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}
