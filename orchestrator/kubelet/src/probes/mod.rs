//! Startup, readiness and liveness probes.
//!
//! One task for each running container that has probes. The startup probe gates the other two. Results go to the pod's
//! worker, which alone decides what they mean. Thresholds, periods and timeouts are upstream's, with one difference:
//! until the first success, readiness and startup probes are also tried at [`EAGER`] intervals, because a server that
//! needs 30 ms to listen should not wait ten seconds to be found. Failures of those extra tries count for nothing.

mod check;

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::check::{Check, http_get, port};
use crate::{
    metrics::{Metrics, ProbeLabel},
    runtime::{ContainerId, Runtime},
};

/// Waits before the extra tries of a container that has just started.
const EAGER: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
    Duration::from_millis(640),
];
/// Reports that a worker may be behind; probes wait for it beyond that.
pub(crate) const REPORTS: usize = 16;

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    /// Gates the others; failure restarts.
    Startup,
    /// Failure takes the pod out of its Services.
    Readiness,
    /// Failure restarts.
    Liveness,
}

impl ProbeKind {
    /// `startup`, `readiness` or `liveness`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Liveness => "liveness",
        }
    }
}

/// What a probe has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// The container.
    pub(crate) id: ContainerId,
    /// Its name.
    pub(crate) container: String,
    /// Which probe.
    pub(crate) kind: ProbeKind,
    /// What happened.
    pub(crate) verdict: Verdict,
}

/// What happened to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The threshold of successes is reached.
    Good,
    /// The threshold of failures is reached; with the last failure's text.
    Bad(String),
    /// One failure, for an event; nothing changes.
    Failed(String),
}

/// A container to be probed.
pub(crate) struct Target<R> {
    pub(crate) runtime: Arc<R>,
    pub(crate) metrics: Metrics,
    pub(crate) id: ContainerId,
    pub(crate) ip: IpAddr,
    pub(crate) started_at: Timestamp,
    pub(crate) container: Container,
    /// It was started before, by the record of an earlier kubelet: the startup probe is over.
    pub(crate) was_started: bool,
    pub(crate) reports: mpsc::Sender<Report>,
}

impl<R: Runtime> Target<R> {
    /// Probes until the handle is dropped.
    pub(crate) fn spawn(self) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(async move { self.run().await }))
    }

    async fn run(&self) {
        if let Some(probe) = self.container.startup_probe.as_ref().filter(|_| !self.was_started) {
            self.repeat(ProbeKind::Startup, probe).await;
        }
        let readiness = async {
            if let Some(probe) = &self.container.readiness_probe {
                self.repeat(ProbeKind::Readiness, probe).await;
            }
        };
        let liveness = async {
            if let Some(probe) = &self.container.liveness_probe {
                self.repeat(ProbeKind::Liveness, probe).await;
            }
        };
        tokio::join!(readiness, liveness);
    }

    /// Probes again and again; a startup probe returns with its first verdict.
    async fn repeat(&self, kind: ProbeKind, probe: &Probe) {
        let period = Duration::from_secs(positive(probe.period_seconds, 10));
        let timeout = Duration::from_secs(positive(probe.timeout_seconds, 1));
        let delay =
            Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).max(0).unsigned_abs().into());
        let age = Timestamp::now().duration_since(self.started_at).unsigned_abs();
        // After a restart of the kubelet all probes of the node would fire at once: spread them over a period.
        let jitter = if age > period { jitter(&self.id, period) } else { Duration::ZERO };
        tokio::time::sleep(delay.saturating_sub(age) + jitter).await;
        let check = Check::new(probe, &self.container, self.ip);
        let mut tally = Tally::new(probe);
        let mut extra: &[Duration] = if kind == ProbeKind::Liveness { &[] } else { &EAGER };
        let mut next = Instant::now() + period;
        loop {
            let outcome = check.run(&*self.runtime, &self.id, timeout).await;
            let result = if outcome.is_ok() { "success" } else { "failure" };
            self.metrics.probes.get_or_create(&ProbeLabel { probe: kind.name(), result }).inc();
            // Upstream's order of tries begins where the extra ones end.
            if let Some((wait, rest)) = extra.split_first().filter(|_| outcome.is_err()) {
                extra = rest;
                tokio::time::sleep(*wait).await;
                next = Instant::now() + period;
                continue;
            }
            extra = &[];
            if let Err(text) = &outcome {
                self.report(kind, Verdict::Failed(text.clone())).await;
            }
            if let Some(verdict) = tally.count(outcome) {
                self.report(kind, verdict).await;
                if kind == ProbeKind::Startup {
                    return;
                }
            }
            tokio::time::sleep_until(next).await;
            next = Instant::now().max(next) + period;
        }
    }

    async fn report(&self, kind: ProbeKind, verdict: Verdict) {
        let report = Report { id: self.id.clone(), container: self.container.name.clone(), kind, verdict };
        // The worker may be gone; then nobody wants to know.
        let _ = self.reports.send(report).await;
    }
}

/// Counts results in a row against the thresholds.
struct Tally {
    success_threshold: u64,
    failure_threshold: u64,
    run: u64,
    last: Option<bool>,
}

impl Tally {
    fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
            run: 0,
            last: None,
        }
    }

    /// A verdict whenever a threshold is reached or still exceeded.
    fn count(&mut self, outcome: Result<(), String>) -> Option<Verdict> {
        let good = outcome.is_ok();
        self.run = if self.last == Some(good) { self.run + 1 } else { 1 };
        self.last = Some(good);
        match outcome {
            Ok(()) if self.run >= self.success_threshold => Some(Verdict::Good),
            Err(text) if self.run >= self.failure_threshold => Some(Verdict::Bad(text)),
            _ => None,
        }
    }
}

/// A part of `period` that is the container's own.
fn jitter(id: &ContainerId, period: Duration) -> Duration {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    period.mul_f64((hasher.finish() % 1000) as f64 / 1000.0)
}

fn positive(value: Option<i32>, default: u64) -> u64 {
    value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(2), ..Probe::default() };
        let mut tally = Tally::new(&probe);
        let bad = || Err("x".to_owned());
        assert_eq!(tally.count(Ok(())), None);
        assert_eq!(tally.count(bad()), None);
        assert_eq!(tally.count(Ok(())), None);
        assert_eq!(tally.count(Ok(())), Some(Verdict::Good));
        assert_eq!(tally.count(bad()), None);
        assert_eq!(tally.count(bad()), Some(Verdict::Bad("x".into())));
    }
}
