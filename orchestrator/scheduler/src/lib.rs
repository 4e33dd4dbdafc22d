//! Decides which node runs a pod.
//!
//! [`schedule`] is the decision, a pure function of a [`Snapshot`] and a [`Pod`]. Around it stands a loop that keeps
//! the snapshot up to date from watches, hands out waiting pods in order, binds them, and says why a pod waits.
//!
//! Costs: an event costs O(log n) for the one node or pod it is about, a decision O(nodes); nothing is ever
//! copied or rebuilt as a whole. Memory: of a bound pod only its requests and host ports are kept, of a node its
//! labels, taints and allocatable resources.

mod affinity;
mod decision;
mod driver;
mod filter;
mod metrics;
mod node;
mod pod;
mod quantity;
mod queue;
mod resources;
mod score;
mod snapshot;

pub use decision::{Decision, Failure, schedule};
pub use filter::Reason;
pub use node::{Node, Usage};
pub use pod::{Demand, HostPort, Pod};
pub use resources::Resources;
pub use snapshot::Snapshot;

use std::fmt;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::EventSource;
use kube::runtime::watcher;
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weir_client::{EventWriter, Recorder, observe};
use weir_election::{Candidate, Timing};

use crate::driver::Driver;
use crate::metrics::Metrics;

/// The scheduler's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Pods whose `spec.schedulerName` is this are scheduled; others are left to their own scheduler.
    #[arg(long, default_value = "default-scheduler")]
    pub scheduler_name: String,
    /// Run several copies of which one works: hold the Lease `kube-scheduler` in `kube-system`.
    #[arg(long, default_value_t = false)]
    pub leader_elect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { scheduler_name: "default-scheduler".to_owned(), leader_elect: false }
    }
}

/// Why the scheduler could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--scheduler-name ""`.
    #[error("scheduler name is empty: no pod could ask for it; give --scheduler-name a name")]
    NoName,
    /// Another copy took over; the supervisor starts this one again as a follower.
    #[error("leadership of Lease kube-system/kube-scheduler was lost; restart to stand as a candidate again")]
    LeadershipLost,
}

/// The scheduler, ready to run.
pub struct Scheduler {
    config: Config,
    client: Client,
    metrics: Metrics,
    election: weir_election::Metrics,
    recorder: Recorder,
    events: EventWriter,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Registers metrics with the prefix `weir_scheduler`. No I/O.
    pub fn new(config: Config, client: Client, metrics: &mut Registry) -> Result<Self, Error> {
        if config.scheduler_name.is_empty() {
            return Err(Error::NoName);
        }
        let registry = metrics.sub_registry_with_prefix("weir_scheduler");
        // Upstream's component name, which people grep for.
        let source = EventSource { component: Some("default-scheduler".to_owned()), host: None };
        let (recorder, events) = Recorder::new(client.clone(), source, registry);
        let (metrics, election) = (Metrics::register(registry), weir_election::Metrics::register(registry));
        Ok(Self { config, client, metrics, election, recorder, events })
    }

    /// Schedules until `shutdown`. `ready` is told once nodes and pods have been listed, or, as a follower, once it stands
    /// as a candidate.
    pub fn run(
        self,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Error>> {
        // In a box it is compiled here, and not among the executable's other roles.
        Box::pin(self.schedule(ready, shutdown))
    }

    async fn schedule(self, ready: oneshot::Sender<()>, shutdown: CancellationToken) -> Result<(), Error> {
        let mut ready = Some(ready);
        let lost = CancellationToken::new();
        let working = shutdown.child_token();
        if self.config.leader_elect {
            // A follower serves too: it is ready to take over.
            let _ = ready.take().map(|ready| ready.send(()));
            let client = self.client.clone();
            let mut candidate =
                Candidate::new(client, "kube-system", "kube-scheduler", Timing::default(), self.election);
            if !candidate.acquire(&shutdown).await {
                return Ok(());
            }
            let (working, lost, shutdown) = (working.clone(), lost.clone(), shutdown.clone());
            tokio::spawn(async move {
                let ceased = || {
                    if !shutdown.is_cancelled() {
                        lost.cancel();
                        working.cancel();
                    }
                };
                candidate.hold(&shutdown, ceased).await;
            });
        }
        let events_shutdown = CancellationToken::new();
        let events = tokio::spawn(self.events.run(events_shutdown.clone()));
        let nodes = observe(Api::all(self.client.clone()), watcher::Config::default());
        let pods = observe(Api::all(self.client.clone()), watcher::Config::default());
        let driver = Driver::new(self.client, &self.config.scheduler_name, self.recorder, self.metrics);
        driver.run(nodes, pods, ready, working).await;
        events_shutdown.cancel();
        // It only ends; a panic in it has already been printed.
        let _ = events.await;
        if lost.is_cancelled() { Err(Error::LeadershipLost) } else { Ok(()) }
    }
}
