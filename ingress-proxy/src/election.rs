//! Which of several replicas writes status.
//!
//! Every replica serves; one publishes where Ingresses are reached, so that no two write over each other. A Lease says which. A
//! replica that cannot have one serves as ever and publishes nothing, which a warning and `weir_ingress_lease_errors_total`
//! tell.

use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_election::{Candidate, Metrics, Timing, TimingError};

use crate::config::{duration, parse_duration};

/// The end of a leader waits so long for the Lease to be given up, after everything else has ended.
const RELEASE_LIMIT: Duration = Duration::from_secs(4);

/// How replicas agree on the one that publishes `status.loadBalancer`.
#[derive(Debug, Clone, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Election {
    /// Let only the replica that holds a Lease publish status. `false` is for an ingress that is alone: it needs no Lease and
    /// no right to one.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: bool,

    /// The Lease's name: the same for all replicas, another for another ingress.
    #[arg(long, value_name = "NAME", default_value = "weir-ingress")]
    pub lease_name: String,

    /// The Lease's namespace. Without it, the pod's own, or the one that the kubeconfig's context names, or `default`.
    #[arg(long, value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// How long a leader that says nothing is believed to be alive; whole seconds.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub lease_duration: Duration,

    /// How long a leader that cannot renew the Lease goes on; less than `--lease-duration`.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub lease_renew_deadline: Duration,

    /// Between two renewals, and between two attempts to lead; less than `--lease-renew-deadline`.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub lease_retry_period: Duration,
}

impl Default for Election {
    fn default() -> Self {
        let Timing { lease, renew_deadline, retry } = Timing::default();
        Self {
            leader_elect: true,
            lease_name: "weir-ingress".to_owned(),
            lease_namespace: None,
            lease_duration: lease,
            lease_renew_deadline: renew_deadline,
            lease_retry_period: retry,
        }
    }
}

impl Election {
    fn timing(&self) -> Timing {
        Timing {
            lease: self.lease_duration,
            renew_deadline: self.lease_renew_deadline,
            retry: self.lease_retry_period,
        }
    }

    /// Whether the deadlines go together.
    pub(crate) fn check(&self) -> Result<(), TimingError> {
        self.timing().check()
    }
}

/// A replica before it serves: it does not stand yet, for others may be able to do the work already.
pub(crate) struct Candidacy {
    election: Election,
    client: Client,
    metrics: Metrics,
    leads: watch::Sender<bool>,
}

impl Candidacy {
    pub(crate) fn new(election: Election, client: Client, metrics: Metrics) -> Self {
        Self { election, client, metrics, leads: watch::Sender::new(false) }
    }

    /// Whether this replica leads.
    pub(crate) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Stands until `shutdown`. Without an election it leads at once.
    pub(crate) fn stand(self, shutdown: CancellationToken) -> Standing {
        let Self { election, client, metrics, leads } = self;
        if !election.leader_elect {
            metrics.leader.set(1);
            leads.send_replace(true);
            return Standing(None);
        }
        let namespace = election.lease_namespace.as_deref().unwrap_or(client.default_namespace()).to_owned();
        let candidate = Candidate::new(client, &namespace, &election.lease_name, election.timing(), metrics);
        Standing(Some(tokio::spawn(candidate.run(leads, shutdown))))
    }
}

/// A replica's part in the election. When it is dropped before its end, the Lease is left to run out.
pub(crate) struct Standing(Option<JoinHandle<()>>);

impl Standing {
    /// Waits, after `shutdown`, until the Lease is given up.
    pub(crate) async fn end(mut self) {
        if let Some(task) = &mut self.0 {
            // A panic in it has been printed.
            let _ = tokio::time::timeout(RELEASE_LIMIT, task).await;
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
