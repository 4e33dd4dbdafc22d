//! Carries out single actions: thin, idempotent, and each reports what it did as Events on the pod.
//!
//! Every function here is one [`Action`](super::plan::Action), run as a task of the pod's worker, which never waits for
//! one. A failure is a value: the worker keeps it, shows it in the status and tries again later.

mod container;
mod volumes;

use std::{fs, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};

pub(crate) use self::container::{Starting, Stopping};
use super::spec::{PodDefaults, parse_resolv_conf, sandbox_spec};
use crate::{
    env::namespace,
    events::{Events, Kind},
    metrics::Metrics,
    node::machine::Resources,
    objects::Objects,
    runtime::{Runtime, SandboxId},
    services::Services,
};

/// What all workers share.
pub(crate) struct Shared<R> {
    pub(crate) runtime: Arc<R>,
    pub(crate) client: Client,
    pub(crate) objects: Arc<Objects>,
    pub(crate) services: Arc<Services>,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    pub(crate) defaults: PodDefaults,
    pub(crate) node_ip: IpAddr,
    pub(crate) allocatable: Resources,
}

/// An action that failed: the waiting reason and the sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Failed {
    fn new(reason: &'static str, error: impl std::fmt::Display) -> Self {
        Self { reason, message: format!("{error}") }
    }
}

pub(crate) type Outcome<T = ()> = Result<T, Failed>;

impl<R: Runtime> Shared<R> {
    /// Makes a sandbox.
    pub(crate) async fn run_sandbox(&self, pod: &Pod, attempt: u32) -> Outcome {
        if attempt > 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            self.events.pod(pod, None, Kind::Normal, "SandboxChanged", message);
        }
        let host_dns = parse_resolv_conf(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let spec = sandbox_spec(&self.defaults, pod, attempt, &host_dns);
        match self.runtime.run_sandbox(&spec).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.events.pod(pod, None, Kind::Warning, "FailedCreatePodSandBox", message);
                Err(Failed::new("ContainerCreating", error))
            }
        }
    }

    /// Takes a sandbox's processes and network away.
    pub(crate) async fn stop_sandbox(&self, id: &SandboxId) -> Outcome {
        self.runtime.stop_sandbox(id).await.map_err(|error| Failed::new("FailedKillPod", error))
    }

    /// Removes a sandbox and the records of its containers.
    pub(crate) async fn remove_sandbox(&self, id: &SandboxId) -> Outcome {
        self.runtime.remove_sandbox(id).await.map_err(|error| Failed::new("FailedKillPod", error))
    }

    /// Deletes the API object, if it is still the one we ran.
    pub(crate) async fn delete(&self, pod: &Pod) -> Outcome {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace(pod));
        match api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &params).await {
            Ok(_) => Ok(()),
            // Gone already, or another pod by the same name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(Failed::new("FailedKillPod", error)),
        }
    }
}

/// File-system work on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}
