//! The probes of the pod's containers: which run, and what their verdicts mean.

use super::Worker;
use crate::{
    events::Kind,
    pods::view::{Probed, View},
    probes::{ProbeKind, Report, Target, Verdict},
    runtime::{ContainerId, ContainerState, Runtime},
};

impl<R: Runtime> Worker<R> {
    /// Starts the probes of containers that run, and ends the others.
    pub(super) fn set_probes(&mut self, view: &View<'_>) {
        let running = |id: &ContainerId| {
            view.containers.iter().any(|c| c.id == *id && c.state == ContainerState::Running)
        };
        // A pod that goes is not restarted by its probes; readiness stays as it was.
        if view.terminating() {
            self.probes.clear();
        }
        self.probes.retain(|id, _| running(id));
        let Some(ip) = view.pod_ips().first().copied().filter(|_| !view.terminating()) else { return };
        for (_, container) in view.declared() {
            let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
            let Some(status) = view.current(&container.name).filter(|status| running(&status.id)) else {
                continue;
            };
            if probes.iter().all(|probe| probe.is_none()) || self.probes.contains_key(&status.id) {
                continue;
            }
            // What an earlier kubelet found out still holds: a restart of the kubelet takes no pod out of its
            // Services.
            let id = format!("weir://{}", status.id);
            let before =
                view.recorded(&container.name).filter(|s| s.container_id.as_deref() == Some(id.as_str()));
            let was_started = before.is_some_and(|before| before.started == Some(true));
            let known = Probed {
                started: container.startup_probe.is_none() || was_started,
                ready: container.readiness_probe.is_none() || before.is_some_and(|before| before.ready),
            };
            self.memory.probed.entry(status.id.clone()).or_insert(known);
            let target = Target {
                runtime: self.shared.runtime.clone(),
                metrics: self.shared.metrics.clone(),
                id: status.id.clone(),
                ip,
                started_at: status.started_at.unwrap_or(status.created_at),
                container: container.clone(),
                was_started,
                reports: self.reports.0.clone(),
            };
            self.probes.insert(status.id.clone(), target.spawn());
        }
    }

    pub(super) fn reported(&mut self, report: Report) {
        let Report { id, container, kind, verdict } = report;
        let probed = self.memory.probed.entry(id.clone()).or_default();
        match (kind, verdict) {
            (ProbeKind::Startup, Verdict::Good) => probed.started = true,
            (ProbeKind::Readiness, Verdict::Good) => probed.ready = true,
            (ProbeKind::Readiness, Verdict::Bad(_)) => probed.ready = false,
            (ProbeKind::Liveness, Verdict::Good) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, Verdict::Bad(_)) => {
                let text = format!("Container {container} failed {} probe, will be restarted", kind.name());
                self.memory.condemned.insert(id, text);
            }
            (_, Verdict::Failed(text)) => {
                let mut name = kind.name().to_owned();
                name[..1].make_ascii_uppercase();
                let message = format!("{name} probe failed: {text}");
                self.shared.events.pod(&self.pod, Some(&container), Kind::Warning, "Unhealthy", message);
            }
        }
    }
}
