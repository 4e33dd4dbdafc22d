//! Drives what is towards what was asked for.
//!
//! Each controller is *level-triggered*: an event only says which object to look at, and what is done depends on
//! the state alone. So a missed, doubled or reordered event does no harm, and a restart needs no memory. What to
//! do is decided by pure functions over values (`plan`, `status`), apart from the requests that carry it out.
//!
//! All controllers share one watch and one cache of each kind (`shared`), in which pods are reduced to a tenth.
//! They are clients of the API server like any other and talk to nothing else.

mod claim;
mod deployment;
mod endpointslice;
mod error;
mod freshness;
mod garbage;
mod namespace;
mod node;
mod pod_gc;
mod pods;
mod replicaset;
mod service_account;
mod shared;

pub use error::Error;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::EventSource;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_client::{EventWriter, QueueMetrics, Recorder};
use weir_election::{Candidate, Timing};

use crate::node::ipam::Ranges;
use crate::shared::Watches;

/// The controllers' settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Addresses of all pods. Each node gets a part of it as `spec.podCIDR`.
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: String,
    /// Prefix length of a node's part of `cluster_cidr`: 24 gives 254 pods to a node.
    #[arg(long, default_value_t = 24)]
    pub node_cidr_mask_size: u8,
    /// Seconds without a heartbeat after which a node counts as unreachable. Heartbeats come every 10 s.
    #[arg(long, default_value_t = 40)]
    pub node_monitor_grace_period_s: u32,
    /// Seconds that pods stay on a node that is not ready or unreachable when they do not say.
    #[arg(long, default_value_t = 300)]
    pub default_not_ready_toleration_s: u32,
    /// Pods that have ended are kept until there are more than this; the oldest are removed first.
    #[arg(long, default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: usize,
    /// Run several copies of which one works: hold the Lease `kube-controller-manager` in `kube-system`.
    #[arg(long, default_value_t = false)]
    pub leader_elect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_cidr: "10.244.0.0/16".to_owned(),
            node_cidr_mask_size: 24,
            node_monitor_grace_period_s: 40,
            default_not_ready_toleration_s: 300,
            terminated_pod_gc_threshold: 12_500,
            leader_elect: false,
        }
    }
}

/// All controllers, ready to run.
pub struct Controllers {
    config: Config,
    ranges: Ranges,
    client: Client,
    recorder: Recorder,
    metrics: QueueMetrics,
    election: weir_election::Metrics,
    events: EventWriter,
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controllers").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Controllers {
    /// Checks the settings and registers metrics with the prefix `weir_controllers`. No I/O.
    pub fn new(config: Config, client: Client, metrics: &mut Registry) -> Result<Self, Error> {
        let ranges = Ranges::new(&config.cluster_cidr, config.node_cidr_mask_size)?;
        let registry = metrics.sub_registry_with_prefix("weir_controllers");
        let source = EventSource { component: Some("controller-manager".to_owned()), host: None };
        let (recorder, events) = Recorder::new(client.clone(), source, registry);
        let metrics = QueueMetrics::register(registry);
        let election = weir_election::Metrics::register(registry);
        Ok(Self { config, ranges, client, recorder, metrics, election, events })
    }

    /// Runs until `shutdown`. `ready` is told once all kinds have been listed, or, as a follower, once this copy stands as
    /// a candidate.
    pub fn run(
        self,
        ready: oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Error>> {
        // In a box it is compiled here, and not among the executable's other roles.
        Box::pin(self.control(ready, shutdown))
    }

    async fn control(self, ready: oneshot::Sender<()>, shutdown: CancellationToken) -> Result<(), Error> {
        if !self.config.leader_elect {
            self.work(Some(ready), shutdown).await;
            return Ok(());
        }
        // Nobody listening is nobody waiting. A follower serves: it is ready to take over.
        let _ = ready.send(());
        let (client, election) = (self.client.clone(), self.election.clone());
        let mut candidate =
            Candidate::new(client, "kube-system", "kube-controller-manager", Timing::default(), election);
        if !candidate.acquire(&shutdown).await {
            return Ok(());
        }
        let working = shutdown.child_token();
        let hold = candidate.hold(&shutdown, || working.cancel());
        tokio::join!(hold, self.work(None, working.clone()));
        if shutdown.is_cancelled() { Ok(()) } else { Err(Error::LeadershipLost) }
    }

    async fn work(self, ready: Option<oneshot::Sender<()>>, shutdown: CancellationToken) {
        let (client, metrics, config) = (self.client, self.metrics, self.config);
        let events_shutdown = CancellationToken::new();
        let events = tokio::spawn(self.events.run(events_shutdown.clone()));
        let mut watches = Watches::new(&client);
        let shared = Arc::new(watches.shared(client.clone(), self.recorder));

        let namespaces = Arc::new(namespace::Namespaces::new(&shared, &mut watches, &metrics));
        let garbage = Arc::new(garbage::Garbage::new(&shared, &mut watches, &metrics));
        let replica_sets = Arc::new(replicaset::ReplicaSets::new(&shared, &mut watches, &metrics));
        let deployments = Arc::new(deployment::Deployments::new(&shared, &mut watches, &metrics));
        let slices = Arc::new(endpointslice::EndpointSlices::new(&shared, &mut watches, &metrics));
        let grace = Duration::from_secs(config.node_monitor_grace_period_s.into());
        let default_toleration = config.default_not_ready_toleration_s;
        let health = Arc::new(node::lifecycle::Lifecycle::new(&shared, &mut watches, &metrics, grace));
        let eviction = node::eviction::Evictions::new(&shared, &mut watches, &metrics, default_toleration);
        let eviction = Arc::new(eviction);
        let ipam = Arc::new(node::ipam::Ipam::new(&shared, &mut watches, &metrics, self.ranges));
        let threshold = config.terminated_pod_gc_threshold;
        let pod_gc = Arc::new(pod_gc::PodGc::new(&shared, &mut watches, &metrics, threshold));
        let accounts = Arc::new(service_account::ServiceAccounts::new(&shared, &mut watches, &metrics));

        let mut tasks = JoinSet::new();
        watches.spawn(&mut tasks, &shutdown);
        // Discovery follows the other kinds, which no controller but these two looks at.
        let kinds = tokio::select! {
            () = shutdown.cancelled() => None,
            kinds = garbage::kinds::discover(&client) => Some(kinds),
        };
        let synced = async {
            let Some(kinds) = kinds else { return false };
            namespaces.know(&kinds);
            shared.synced().await && garbage.watch(kinds, &namespaces, &mut tasks, &shutdown).await
        };
        let synced = tokio::select! {
            () = shutdown.cancelled() => false,
            synced = synced => synced,
        };
        if synced {
            tasks.spawn(namespaces.run(shutdown.clone()));
            tasks.spawn(garbage.run(shutdown.clone()));
            tasks.spawn(replica_sets.run(shutdown.clone()));
            tasks.spawn(deployments.run(shutdown.clone()));
            tasks.spawn(slices.run(shutdown.clone()));
            tasks.spawn(health.run(shutdown.clone()));
            tasks.spawn(eviction.run(shutdown.clone()));
            tasks.spawn(ipam.run(shutdown.clone()));
            tasks.spawn(pod_gc.run(shutdown.clone()));
            tasks.spawn(accounts.run(shutdown.clone()));
            let _ = ready.map(|ready| ready.send(()));
        }
        while let Some(ended) = tasks.join_next().await {
            // A controller that panicked must not leave the others running as if nothing had happened.
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        events_shutdown.cancel();
        // It only ends; a panic in it has already been printed.
        let _ = events.await;
    }
}
