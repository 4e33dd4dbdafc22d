//! The endpoints of a backend.
//!
//! A [`Pool`] lives as long as some rule names its backend; the table points at it. Endpoint changes swap the
//! pool's list and touch nothing else, so that a rolling Deployment never rebuilds a route. Endpoints that stay
//! keep their identity, and with it what is known of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;

use super::balance::Balance;
use super::budget::RetryBudget;
use super::choice::{Choice, all_are_out};
use super::ejection::has_room;
use super::endpoint::{Chosen, Endpoint};
use super::health::Checked;
use super::tls::EndpointTls;
use crate::clock::now_us;
use crate::compile::{BackendKey, Credentials, Endpoints, Protocol};
use crate::config::Timeouts;
use crate::metrics::Metrics;

/// The endpoints of one backend.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(super) list: ArcSwap<List>,
    /// Whose turn it is, for those who ask one after the other.
    turn: AtomicUsize,
    /// Held by who ejects an endpoint; nobody waits for it.
    ejecting: Mutex<()>,
    retries: RetryBudget,
    /// Nothing where its endpoints are not checked.
    pub(super) checked: OnceLock<Arc<Checked>>,
}

/// Why no endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unchosen {
    /// There is none, or none that did not fail already.
    NoneLeft,
    /// All that are left have as many requests in flight as they may.
    Full,
}

#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) endpoints: Box<[Arc<Endpoint>]>,
    pub(super) protocol: Protocol,
    /// What TLS is set up with.
    credentials: Credentials,
    pub(super) tls: Option<Arc<EndpointTls>>,
}

impl Pool {
    /// Makes the pool hold exactly these endpoints. Returns whether anything changed.
    pub(crate) fn update(&self, backend: &BackendKey, wanted: &Endpoints, timeouts: &Timeouts) -> bool {
        let now = self.list.load();
        let is_same_kind = now.protocol == wanted.protocol && now.credentials == wanted.credentials;
        let same = is_same_kind
            && now.endpoints.iter().map(|endpoint| endpoint.address()).eq(wanted.addresses.iter().copied());
        if same {
            return false;
        }
        let tls = match &now.tls {
            Some(tls) if is_same_kind => Ok(Some(Arc::clone(tls))),
            _ if !wanted.protocol.is_tls() => Ok(None),
            _ => {
                EndpointTls::new(backend, wanted.protocol, &wanted.credentials).map(|tls| Some(Arc::new(tls)))
            }
        };
        let (tls, addresses) = match tls {
            Ok(tls) => (tls, wanted.addresses.as_slice()),
            // The compiler has closed what leads here, and has said why.
            Err(error) => {
                tracing::debug!(service = %backend.service, %error, "TLS cannot be spoken with endpoints");
                (None, &[][..])
            }
        };
        let keep = |address: &SocketAddr| {
            let found = now.endpoints.iter().find(|endpoint| endpoint.address() == *address)?;
            is_same_kind.then(|| Arc::clone(found))
        };
        // Where nobody was before, there is nobody to start slower than.
        let joined_us = if now.endpoints.is_empty() { 0 } else { now_us() };
        let new = |address| Arc::new(Endpoint::new(address, tls.clone(), timeouts, joined_us));
        let endpoints =
            addresses.iter().map(|address| keep(address).unwrap_or_else(|| new(*address))).collect();
        let (protocol, credentials) = (wanted.protocol, wanted.credentials.clone());
        self.list.store(Arc::new(List { endpoints, protocol, credentials, tls }));
        if let Some(checked) = self.checked.get() {
            checked.follow();
        }
        true
    }

    /// No rule names it any more: its endpoints are not checked any longer, however long its last requests take.
    pub(crate) fn retire(&self) {
        if let Some(checked) = self.checked.get() {
            checked.retire();
        }
    }

    /// What its endpoints speak.
    pub(crate) fn protocol(&self) -> Protocol {
        self.list.load().protocol
    }

    /// Closes connections that waited too long. Returns how many are left.
    pub(crate) fn sweep(&self) -> usize {
        self.list.load().endpoints.iter().map(|endpoint| endpoint.sweep()).sum()
    }

    /// Whether no endpoint is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.load().endpoints.is_empty()
    }

    /// How many endpoints are there.
    pub(crate) fn len(&self) -> usize {
        self.list.load().endpoints.len()
    }

    /// Whether there is an endpoint to ask that is not in `failed`, nor `besides`.
    pub(crate) fn has_other(&self, failed: &[SocketAddr], besides: Option<SocketAddr>) -> bool {
        let list = self.list.load();
        let was_asked = |address: SocketAddr| failed.contains(&address) || besides == Some(address);
        let may_be_out = all_are_out(&list.endpoints);
        list.endpoints
            .iter()
            .any(|endpoint| !was_asked(endpoint.address()) && (may_be_out || !endpoint.ejection.is_out()))
    }

    /// Chooses an endpoint that is not in `failed`: by rank for a key, if there is one, else as `balance` says.
    pub(crate) fn choose(
        &self,
        balance: Balance,
        rank_by: Option<u64>,
        failed: &[SocketAddr],
    ) -> Result<Chosen, Unchosen> {
        self.choose_at(now_us(), balance, rank_by, failed)
    }

    fn choose_at(
        &self,
        now_us: u64,
        balance: Balance,
        rank_by: Option<u64>,
        failed: &[SocketAddr],
    ) -> Result<Chosen, Unchosen> {
        let list = self.list.load();
        let choice = Choice { all: &list.endpoints, failed, now_us, balance };
        // Where others take the last places at the same time, each time round one of them got one.
        for _ in 0..=list.endpoints.len() {
            let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
            let Some(endpoint) = choice.endpoint(rank_by, turn) else { break };
            if let Some(chosen) = Chosen::take(endpoint, now_us, balance.most) {
                return Ok(chosen);
            }
        }
        let is_left = |endpoint: &Arc<Endpoint>| !failed.contains(&endpoint.address());
        Err(if list.endpoints.iter().any(is_left) { Unchosen::Full } else { Unchosen::NoneLeft })
    }

    /// An endpoint gave no answer, or [one that is none](super::is_failure). Of no account behind an answer's head.
    pub(crate) fn failed(&self, chosen: &Chosen, metrics: &Metrics) {
        let now_us = now_us();
        if let Some(took_us) = chosen.settle(now_us) {
            chosen.latency.failed(took_us, now_us);
            self.note_failure(chosen, now_us, metrics);
        }
    }

    fn note_failure(&self, endpoint: &Endpoint, now_us: u64, metrics: &Metrics) {
        if endpoint.ejection.failed(now_us) && self.eject(endpoint, now_us) {
            metrics.ejections.inc();
        }
    }

    /// Ejects an endpoint, unless too many are.
    fn eject(&self, endpoint: &Endpoint, now_us: u64) -> bool {
        // One at a time, so that the count holds; who comes in between leaves it to the next failure.
        let Ok(_turn) = self.ejecting.try_lock() else { return false };
        let list = self.list.load();
        let is_there = list.endpoints.iter().any(|one| std::ptr::eq(one.as_ref(), endpoint));
        if !is_there
            || endpoint.ejection.is_on(now_us)
            || !has_room(list.ejected(now_us), list.endpoints.len())
        {
            return false;
        }
        endpoint.ejection.begin(now_us);
        true
    }

    /// A request goes to the backend for the first time.
    pub(crate) fn earn_retries(&self) {
        self.retries.earn();
    }

    /// Whether one more request may be tried again there; if so, it is to be.
    pub(crate) fn spend_retry(&self, metrics: &Metrics) -> bool {
        let may = self.retries.spend(now_us());
        if !may {
            metrics.retries_refused.inc();
        }
        may
    }

    /// How many endpoints are ejected now because requests failed.
    pub(crate) fn ejected(&self) -> usize {
        let (list, now_us) = (self.list.load(), now_us());
        list.endpoints.iter().filter(|endpoint| endpoint.ejection.left_us(now_us).is_some()).count()
    }

    /// How many health checks took out.
    pub(crate) fn unhealthy(&self) -> usize {
        self.list.load().endpoints.iter().filter(|endpoint| endpoint.ejection.is_out()).count()
    }
}

impl List {
    /// How many get no requests, whatever the reason.
    fn ejected(&self, now_us: u64) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.ejection.is_on(now_us)).count()
    }
}

#[cfg(test)]
mod tests;
