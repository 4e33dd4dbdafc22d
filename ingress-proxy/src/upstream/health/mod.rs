//! Active checks: an endpoint is asked at an interval, and gets no requests after it failed several times in a row until it
//! succeeded several times in a row.
//!
//! An endpoint is healthy until it failed: what Kubernetes calls ready is used at once, and a proxy that starts need not wait for
//! its first checks. Where all endpoints of a backend are out, all are used ([`super::choice`]).
//!
//! Each pool whose backend is to be checked has a task ([`Rounds`]), on the threads that serve requests: what endpoints are judged
//! by sees what requests see. The task has the endpoints on an agenda ([`agenda`]), starts each check when it is due, and follows
//! changes of the pool's list. The check ([`probe`]) is a task of its own. They end when no rule names the backend any more, or
//! when the proxy drains.
//!
//! **Cost.** Requests pay nothing: that an endpoint is out is a bit of the word that says whether it is ejected. A pool without
//! checks has an empty cell. One with checks has a connector, and a place on the agenda for each endpoint; a check that is
//! under way has a connection and its buffers, and at most [`MAX_CHECKS`] are.

mod agenda;
mod grpc;
mod metrics;
mod outcome;
mod probe;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::endpoint::Endpoint;
use super::pool::{List, Pool};
use crate::compile::{BackendKey, HealthCheck};
use crate::metrics::Counted;
use agenda::Agenda;
pub(crate) use metrics::CheckMetrics;
pub(super) use outcome::Health;
pub(crate) use outcome::{CheckFailure, GrpcFailure};
use probe::Probe;

/// Checks under way, of all backends. A check that is due while so many are waits for one of them, which has its timeout.
const MAX_CHECKS: usize = 128;
/// Of one backend, so that one that hangs does not hold up the checks of the others.
const MAX_CHECKS_OF_ONE: usize = 32;

/// Starts the checks of pools.
#[derive(Debug, Clone)]
pub(crate) struct Checks {
    runtime: Handle,
    /// When all of them end.
    draining: CancellationToken,
    places: Arc<Semaphore>,
    metrics: CheckMetrics,
}

/// What a pool has that is checked.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Its list is another one.
    changed: Notify,
    /// No rule names it any more.
    retired: CancellationToken,
}

impl Checks {
    /// They run on this runtime until the token is cancelled.
    pub(crate) fn new(runtime: Handle, draining: CancellationToken, metrics: CheckMetrics) -> Self {
        Self { runtime, draining, places: Arc::new(Semaphore::new(MAX_CHECKS)), metrics }
    }

    /// Starts those of a new pool, if its backend is to be checked.
    pub(crate) fn begin(&self, pool: &Arc<Pool>, backend: &Arc<BackendKey>) {
        let Some(check) = &backend.health else { return };
        let checked = Arc::clone(pool.checked.get_or_init(Arc::default));
        let rounds = Rounds {
            backend: Arc::clone(backend),
            check: Arc::clone(check),
            pool: Arc::downgrade(pool),
            places: Arc::clone(&self.places),
            metrics: self.metrics.clone(),
            under_way: JoinSet::new(),
        };
        let draining = self.draining.clone();
        self.runtime.spawn(async move {
            // What is under way ends with the task that it is of.
            tokio::select! {
                () = checked.retired.cancelled() => {}
                () = draining.cancelled() => {}
                () = rounds.run(&checked.changed) => {}
            }
        });
    }
}

impl Checked {
    pub(super) fn follow(&self) {
        self.changed.notify_one();
    }

    pub(super) fn retire(&self) {
        self.retired.cancel();
    }
}

/// The checks of one pool.
struct Rounds {
    backend: Arc<BackendKey>,
    check: Arc<HealthCheck>,
    pool: Weak<Pool>,
    places: Arc<Semaphore>,
    metrics: CheckMetrics,
    under_way: JoinSet<()>,
}

impl Rounds {
    /// Returns when the pool is gone.
    async fn run(mut self, changed: &Notify) {
        let mut agenda = Agenda::new(self.check.interval);
        let mut known: Option<(Arc<List>, Arc<Probe>)> = None;
        while let Some(list) = self.pool.upgrade().map(|pool| pool.list.load_full()) {
            let probe = match &known {
                Some((seen, probe)) if Arc::ptr_eq(seen, &list) => Arc::clone(probe),
                _ => {
                    agenda.follow(&list.endpoints, Instant::now());
                    let probe =
                        Arc::new(Probe::new(&self.backend, &self.check, list.protocol, list.tls.clone()));
                    known = Some((list, Arc::clone(&probe)));
                    probe
                }
            };
            let due = async {
                match agenda.next() {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // A list that changes all the time is no reason to check nothing.
                () = due => {}
                () = changed.notified() => continue,
            }
            let place = self.place().await;
            if let Some(endpoint) = agenda.begin(Instant::now()) {
                self.start(probe, endpoint, place);
            }
        }
    }

    /// Waits for a place among the checks that are under way.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        while self.under_way.try_join_next().is_some() {}
        let places = Arc::clone(&self.places);
        if self.under_way.len() < MAX_CHECKS_OF_ONE
            && let Ok(place) = Arc::clone(&places).try_acquire_owned()
        {
            return place;
        }
        self.metrics.delayed.inc();
        if self.under_way.len() >= MAX_CHECKS_OF_ONE {
            self.under_way.join_next().await;
        }
        places.acquire_owned().await.expect("nobody closes it")
    }

    fn start(&mut self, probe: Arc<Probe>, endpoint: Arc<Endpoint>, place: OwnedSemaphorePermit) {
        let (backend, check) = (Arc::clone(&self.backend), Arc::clone(&self.check));
        let metrics = self.metrics.clone();
        self.under_way.spawn(async move {
            let _place = place;
            // Also of one that is cut off.
            let _under_way = Counted::new(&metrics.in_flight);
            // Whatever an endpoint answers, and whatever a library makes of it, is no more than a failure.
            let asking = AssertUnwindSafe(probe.ask(endpoint.address())).catch_unwind();
            let outcome = match timeout(check.timeout, asking).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(CheckFailure::Panicked),
                Err(_) => Err(CheckFailure::Late),
            };
            metrics.checked(outcome);
            if let Some(is_out) = endpoint.observe(outcome, &check) {
                let (service, address) = (&backend.service, endpoint.address());
                match outcome {
                    Err(why) if is_out => {
                        tracing::warn!(%service, endpoint = %address, %why, "health check takes an endpoint out");
                    }
                    _ => tracing::info!(%service, endpoint = %address, "health check puts an endpoint back"),
                }
            }
        });
    }
}
