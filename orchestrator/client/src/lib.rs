//! What every control loop of Weir shares as a client of the API server.
//!
//! A loop watches kinds ([`Informer`]), remembers what must be looked at ([`Queue`]), works it off
//! ([`run_workers`]) and tells people what it did ([`Recorder`]). The scheduler and the controllers are built from these;
//! nothing here knows what they decide, and nothing here speaks anything but the Kubernetes API.
//!
//! Every wait is for an event or a deadline, never for a tick: an idle cluster costs no request.

mod events;
mod informer;
mod key;
mod observe;
mod queue;
mod worker;

pub use events::{EventWriter, Kind as EventKind, Recorder, object_reference};
pub use informer::{Cache, Change, Informer, Mark};
pub use key::ObjectKey;
pub use observe::{Observed, observe};
pub use queue::{Queue, QueueMetrics};
pub use worker::{Outcome, run_workers};

use prometheus_client::registry::{Metric, Registry};

/// Makes a metric known to the registry and hands it on, so that each metric of a role is written down once.
pub fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Whether an error of the API server says that the object is not there (any more).
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Whether an error of the API server says that somebody else wrote first.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() && !status.is_already_exists())
}

/// Whether an error of the API server says that the name is taken.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// The whole seconds of now: what the API server keeps of a time.
pub fn now() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    let now = jiff::Timestamp::now();
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        jiff::Timestamp::from_second(now.as_second()).unwrap_or(now),
    )
}
