//! What the worker tells others: the pod's status, Events of waiting, and how long a start took.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus as ApiContainerStatus, Pod, PodStatus};
use kube::{
    Api,
    api::{Patch, PatchParams},
};

use super::{Worker, tasks::Done};
use crate::{
    env::namespace,
    events::Kind,
    pods::{execute::Shared, view::View},
    runtime::Runtime,
};

impl<R: Runtime> Worker<R> {
    /// Starts a patch if the status differs from what was written. True if nothing is left to be written.
    pub(super) fn write_status(
        &mut self,
        view: &View<'_>,
        status: PodStatus,
        wake: &mut impl FnMut(Timestamp),
    ) -> bool {
        if self.memory.removed || self.memory.deleted {
            return true;
        }
        if self.status_writing {
            return false;
        }
        if self.status_written.is_none()
            && view.pod.status.as_ref().is_some_and(|recorded| covers(recorded, &status))
        {
            self.status_written = Some(status.clone());
        }
        if self.status_written.as_ref() == Some(&status) {
            return true;
        }
        if let Some(at) = self.status_retry_at.filter(|at| *at > view.now) {
            wake(at);
            return false;
        }
        self.status_writing = true;
        self.shared.metrics.status_patches.inc();
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        self.tasks.spawn(async move {
            let written = patch_status(&shared, &pod, &status).await;
            Done::Status { status: Box::new(status), written }
        });
        false
    }

    /// Says in events what began to wait for its next try.
    pub(super) fn report_backoff(&self, status: &PodStatus) {
        let reason = |status: &ApiContainerStatus| {
            status
                .state
                .as_ref()?
                .waiting
                .as_ref()?
                .reason
                .clone()
                .filter(|reason| reason.ends_with("BackOff"))
        };
        let lists = |status: &PodStatus| {
            let both = [status.container_statuses.clone(), status.init_container_statuses.clone()];
            both.into_iter().flatten().flatten().collect::<Vec<_>>()
        };
        let before = self.status_shown.as_ref().map(lists).unwrap_or_default();
        for status in lists(status) {
            let Some(now) = reason(&status) else { continue };
            if before.iter().any(|before| before.name == status.name && reason(before).as_ref() == Some(&now))
            {
                continue;
            }
            let metadata = &self.pod.metadata;
            let message = if now == "ImagePullBackOff" {
                format!("Back-off pulling image \"{}\"", status.image)
            } else {
                format!(
                    "Back-off restarting failed container {} in pod {}_{}({})",
                    status.name,
                    metadata.name.as_deref().unwrap_or_default(),
                    namespace(&self.pod),
                    self.uid
                )
            };
            let kind = if now == "ImagePullBackOff" { Kind::Normal } else { Kind::Warning };
            self.shared.events.pod(&self.pod, Some(&status.name), kind, "BackOff", message);
        }
    }

    pub(super) fn measure_start(&mut self, status: &PodStatus, now: Timestamp) {
        let running = status.phase.as_deref() == Some("Running");
        if let Some(seen) = self.memory.seen_at.filter(|_| running && !self.start_measured) {
            self.start_measured = true;
            self.shared.metrics.start_seconds.observe(now.duration_since(seen).as_secs_f64());
        }
    }
}

/// Writes the status. True if it is written, or nobody is left to read it.
async fn patch_status<R>(shared: &Shared<R>, pod: &Pod, status: &PodStatus) -> bool {
    let api = Api::<Pod>::namespaced(shared.client.clone(), namespace(pod));
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => true,
        // Gone, or another pod by the same name: 409 because of the uid.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => true,
        Err(error) => {
            tracing::warn!(pod = name, namespace = namespace(pod), %error, "status not written");
            false
        }
    }
}

/// The recorded status says all that `ours` says; others may have added conditions.
fn covers(recorded: &PodStatus, ours: &PodStatus) -> bool {
    let conditions = |status: &PodStatus| status.conditions.clone().unwrap_or_default();
    let known = conditions(recorded);
    let rest =
        |status: &PodStatus| PodStatus { conditions: None, observed_generation: None, ..status.clone() };
    conditions(ours).iter().all(|condition| known.contains(condition)) && rest(recorded) == rest(ours)
}
