//! Leader election on a Lease, as client-go does it, so that several copies of a role can run and one works.
//!
//! The holder renews every [`Timing::retry`]; others watch how long the record stays the same on *their own* clock and take
//! over after [`Timing::lease`]. A holder that cannot renew for [`Timing::renew_deadline`], counted from before its last
//! write, stops working before anybody else can start. Writes carry the version that was read, so that of two that claim a
//! Lease one has it.
//!
//! Needs the verbs `get`, `create` and `update` on `leases` of `coordination.k8s.io`; the first and the last for one name.

mod claim;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use claim::{Claim, claim, released};

/// Giving a Lease up may take this long, or as long as a retry period.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// How long things may take. They are ordered: [`Timing::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a holder that says nothing is still believed to work. Whole seconds.
    pub lease: Duration,
    /// How long a holder goes on without a successful renewal.
    pub renew_deadline: Duration,
    /// Pause between renewals, and between attempts to take over.
    pub retry: Duration,
}

impl Default for Timing {
    /// client-go's.
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Two copies could lead, or none for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a retry period of {retry:?}, a renew deadline of {renew_deadline:?} and a lease of {lease:?} do not go together: \
     each must be longer than the one before, and the lease whole seconds"
)]
pub struct TimingError {
    lease: Duration,
    renew_deadline: Duration,
    retry: Duration,
}

impl Timing {
    /// Whether retry, deadline and lease are in this order, and the API can tell the last.
    pub fn check(self) -> Result<(), TimingError> {
        let Self { lease, renew_deadline, retry } = self;
        let ordered = Duration::ZERO < retry && retry < renew_deadline && renew_deadline < lease;
        if ordered && lease.subsec_nanos() == 0 && i32::try_from(lease.as_secs()).is_ok() {
            return Ok(());
        }
        Err(TimingError { lease, renew_deadline, retry })
    }
}

/// What Prometheus sees of an election.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Whether this copy leads.
    pub leader: Gauge,
    changes: Counter,
    errors: Counter,
}

impl Metrics {
    /// Makes and registers them; the registry's prefix says whose they are.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("leader", "Whether this process leads: 1 or 0", metrics.leader.clone());
        let help = "Times that this process began or ceased to lead";
        registry.register("leader_changes", help, metrics.changes.clone());
        let help = "Failed attempts to have or renew the Lease";
        registry.register("lease_errors", help, metrics.errors.clone());
        metrics
    }

    fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
        self.changes.inc();
    }
}

/// One candidate for one Lease.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    metrics: Metrics,
    /// The record as last seen and since when it has been the same.
    observed: Option<(LeaseSpec, Instant)>,
    /// When the last write that succeeded was begun: nobody has seen it before.
    renewed: Instant,
    /// The last attempt failed.
    fails: bool,
}

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// The Lease is ours.
    Held,
    /// It is somebody else's.
    Taken,
    /// Somebody else wrote at the same time, or it failed: unknown until the next.
    Unknown,
}

impl Candidate {
    /// A candidate for the Lease of that name. No two have the same identity, whatever else is the same.
    pub fn new(client: Client, namespace: &str, name: &str, timing: Timing, metrics: Metrics) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity(),
            timing,
            metrics,
            observed: None,
            renewed: Instant::now(),
            fails: false,
        }
    }

    /// Stands until `shutdown`, and says whether it leads; a leader that lost the Lease stands again.
    pub async fn run(mut self, leads: watch::Sender<bool>, shutdown: CancellationToken) {
        while self.acquire(&shutdown).await {
            leads.send_replace(true);
            self.hold(&shutdown, || _ = leads.send_replace(false)).await;
        }
    }

    /// Waits until this candidate leads. `false` when `shutdown` came first.
    pub async fn acquire(&mut self, shutdown: &CancellationToken) -> bool {
        while !shutdown.is_cancelled() {
            if self.attempt_until(shutdown).await == Attempt::Held {
                tracing::info!(lease = %self.name, identity = %self.identity, "this process leads");
                self.metrics.leads(true);
                return true;
            }
            shutdown.run_until_cancelled(sleep(self.timing.retry)).await;
        }
        false
    }

    /// Renews until `shutdown` or until leadership is lost. Calls `ceased` then; after that, and in the first case, the Lease
    /// is given up.
    pub async fn hold(&mut self, shutdown: &CancellationToken, ceased: impl FnOnce()) {
        let lost = self.renew(shutdown).await;
        self.metrics.leads(false);
        ceased();
        match lost {
            Some(why) => tracing::warn!(lease = %self.name, "this process leads no more: {why}"),
            None => self.release().await,
        }
    }

    /// Renews while that can be done. Says why no more, unless it is for `shutdown`.
    async fn renew(&mut self, shutdown: &CancellationToken) -> Option<&'static str> {
        loop {
            let deadline = self.renewed + self.timing.renew_deadline;
            let renewed = async {
                loop {
                    shutdown.run_until_cancelled(sleep(self.timing.retry)).await?;
                    match self.attempt_until(shutdown).await {
                        Attempt::Held => return Some(true),
                        Attempt::Taken => return Some(false),
                        Attempt::Unknown => {}
                    }
                }
            };
            match timeout_at(deadline, renewed).await {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Some("another has the Lease"),
                Ok(None) => return None,
                Err(_) => return Some("the Lease could not be renewed in time"),
            }
        }
    }

    /// One attempt, which `shutdown` does not cut short: a write that is cut can still arrive, after the Lease was looked at
    /// to be given up. An attempt that hangs is left alone after a while.
    async fn attempt_until(&mut self, shutdown: &CancellationToken) -> Attempt {
        let patience = self.timing.retry;
        let ends = async {
            shutdown.cancelled().await;
            sleep(patience).await;
        };
        tokio::select! {
            attempt = self.attempt() => attempt,
            () = ends => Attempt::Unknown,
        }
    }

    async fn attempt(&mut self) -> Attempt {
        // An answer that does not come is no answer.
        let attempt = match timeout(self.timing.renew_deadline, self.try_to_hold()).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(error)) => self.failed(&error),
            Err(late) => self.failed(&late),
        };
        if attempt != Attempt::Unknown {
            self.fails = false;
        }
        attempt
    }

    /// Says it once for a row of failures.
    fn failed(&mut self, error: &dyn fmt::Display) -> Attempt {
        self.metrics.errors.inc();
        if !std::mem::replace(&mut self.fails, true) {
            tracing::warn!(lease = %self.name, %error, "cannot have the Lease, going on trying");
        }
        Attempt::Unknown
    }

    async fn try_to_hold(&mut self) -> kube::Result<Attempt> {
        let begun = Instant::now();
        let found = self.leases.get_opt(&self.name).await?;
        let seen = found.as_ref().map(|lease| {
            let spec = lease.spec.clone().unwrap_or_default();
            match &self.observed {
                Some((before, since)) if *before == spec => (spec, since.elapsed()),
                _ => {
                    self.observed = Some((spec.clone(), Instant::now()));
                    (spec, Duration::ZERO)
                }
            }
        });
        let seen = seen.as_ref().map(|(spec, unchanged)| (spec, *unchanged));
        let Claim::Write(spec) = claim(&self.identity, seen, self.timing.lease, Timestamp::now()) else {
            return Ok(Attempt::Taken);
        };
        let metadata = match &found {
            Some(lease) => lease.metadata.clone(),
            None => ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
        };
        let lease = Lease { metadata, spec: Some(spec) };
        let params = PostParams::default();
        let written = match found {
            Some(_) => self.leases.replace(&self.name, &params, &lease).await,
            None => self.leases.create(&params, &lease).await,
        };
        match written {
            Ok(_) => {
                self.renewed = begun;
                Ok(Attempt::Held)
            }
            // Somebody else was first; the next look tells who.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Attempt::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Empties the holder so that another copy need not wait for the Lease to run out. Best effort.
    async fn release(&self) {
        let release = async {
            // Whoever writes at the same time, an attempt that was left alone or a person, does so once.
            loop {
                match self.try_to_release().await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    done => return done,
                }
            }
        };
        match timeout(self.timing.retry.max(RELEASE_LIMIT), release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(lease = %self.name, %error, "Lease not given up, it will run out");
            }
            Err(_) => tracing::debug!(lease = %self.name, "Lease not given up in time, it will run out"),
        }
    }

    async fn try_to_release(&self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
        let spec = lease.spec.take().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        lease.spec = Some(released(spec, Timestamp::now()));
        self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }
}

/// The machine's or the pod's name, for people, and what makes it this process's.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (process, now) = (std::process::id(), Timestamp::now().as_nanosecond());
    format!("{}_{process:x}-{now:x}", host.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_in_order() {
        let timing = |lease_ms, renew_ms, retry_ms| {
            let [lease, renew_deadline, retry] = [lease_ms, renew_ms, retry_ms].map(Duration::from_millis);
            Timing { lease, renew_deadline, retry }
        };
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(timing(2_000, 1_000, 100).check(), Ok(()));
        for bad in [
            timing(2_500, 1_000, 100),
            timing(1_000, 1_000, 100),
            timing(2_000, 100, 100),
            timing(2_000, 100, 0),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_two_candidates_are_the_same() {
        assert_ne!(identity(), identity());
    }
}
