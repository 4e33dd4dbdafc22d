//! What is remembered of one request between its phases.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;

use super::{Peer, RequestId};
use crate::live::Target;
use crate::metrics::Metrics;
use crate::policy::Passage;
use crate::subrequest::Tee;
use crate::upstream::Chosen;

use super::respond::Answer;

/// An answer that a fallback makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorPage {
    pub(crate) status: u16,
    /// An endpoint answered, and not to the rule's liking; otherwise there was none to ask.
    pub(crate) instead_of_response: bool,
}

/// One request's state.
pub(crate) struct Context {
    /// When the head was complete.
    pub(crate) started: Instant,
    pub(crate) peer: Option<Peer>,
    pub(crate) id: Option<RequestId>,
    /// In normal form; empty when it had none.
    pub(crate) host: String,
    pub(crate) target: Option<Arc<Target>>,
    /// What the rule's policies ask for.
    pub(crate) passage: Option<Box<Passage>>,
    /// Where the request's body is copied to.
    pub(crate) tee: Option<Tee>,
    /// The rule's own target, where the request goes to its fallback.
    pub(crate) origin: Option<Arc<Target>>,
    /// What the fallback is asked for.
    pub(crate) error_page: Option<ErrorPage>,
    /// What the client is to hear about the error that follows.
    pub(super) refusal: Option<Answer>,
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
            passage: None,
            tee: None,
            origin: None,
            error_page: None,
            refusal: None,
            chosen: None,
            failed: Vec::new(),
            attempts: 0,
            reason: None,
            in_flight: metrics.in_flight.clone(),
        }
    }
}

impl Context {
    /// Sends the request to the rule's fallback.
    pub(super) fn fall_back(&mut self, fallback: Arc<Target>, page: ErrorPage) {
        self.origin = self.target.replace(fallback);
        self.error_page = Some(page);
        self.chosen = None;
        self.failed.clear();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}
