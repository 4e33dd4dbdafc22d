//! Containers: started with all they need, stopped as they ask for.

use std::{fs, io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio_util::sync::CancellationToken;

use super::{Failed, Outcome, Shared, blocking};
use crate::{
    env::{EnvContext, environment, namespace},
    events::Kind,
    objects::references,
    pods::{
        plan::StopReason,
        spec::{ContainerInput, container_spec},
    },
    probes::{Check, http_get},
    runtime::{self, ContainerId, Image, Mount, Propagation, Runtime, Sandbox},
    volumes,
};

/// How long a container has left when its preStop hook has used up the grace period, as upstream.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long a postStart hook may take before it counts as failed.
const POST_START_TIMEOUT: Duration = Duration::from_mins(2);

/// What is started.
pub(crate) struct Starting<'a> {
    /// The pod.
    pub(crate) pod: &'a Arc<Pod>,
    /// Where it runs.
    pub(crate) sandbox: &'a Sandbox,
    /// The container as declared.
    pub(crate) container: &'a Container,
    /// How often it was started before.
    pub(crate) attempt: u32,
    /// The pod's quality of service.
    pub(crate) qos: &'a str,
    /// Ends the start between two steps, when the pod is to go.
    pub(crate) cancel: &'a CancellationToken,
}

/// How a container is stopped.
pub(crate) struct Stopping<'a> {
    /// When it is killed.
    pub(crate) deadline: Timestamp,
    /// Why.
    pub(crate) reason: &'a StopReason,
    /// Where its preStop hook is called.
    pub(crate) pod_ip: Option<IpAddr>,
    /// It is being stopped already, and shall end sooner: no second hook.
    pub(crate) sooner: bool,
}

impl<R: Runtime> Shared<R> {
    /// Creates and starts a container.
    pub(crate) async fn start(&self, what: &Starting<'_>) -> Outcome {
        let result = self.try_start(what).await;
        let Starting { pod, container, .. } = *what;
        if let Err(failed) = &result {
            let message = match failed.reason {
                "ErrImagePull" => {
                    let image = container.image.as_deref().unwrap_or_default();
                    let message = format!("Failed to pull image \"{image}\": {}", failed.message);
                    self.events.pod(pod, Some(&container.name), Kind::Warning, "Failed", message);
                    "Error: ErrImagePull".to_owned()
                }
                _ => format!("Error: {}", failed.message),
            };
            self.events.pod(pod, Some(&container.name), Kind::Warning, "Failed", message);
        }
        result
    }

    async fn try_start(&self, what: &Starting<'_>) -> Outcome {
        let Starting { pod, sandbox, container, attempt, qos, cancel } = *what;
        let name = Some(container.name.as_str());
        let image = self.image(pod, container).await?;
        let config_error = |error: String| Failed { reason: "CreateContainerConfigError", message: error };
        let pod_ips = if sandbox.ips.is_empty() { vec![self.node_ip] } else { sandbox.ips.clone() };
        let env = self.environment(pod, container, &pod_ips).await?;
        let (pod_, container_, env_) = (pod.clone(), container.clone(), env.clone());
        let (dir, termination_log) =
            (self.defaults.pod_dir(pod), self.defaults.termination_log(pod, &container.name, attempt));
        let mounts = blocking(move || make_mounts(&dir, termination_log, &pod_, &container_, &env_))
            .await
            .map_err(config_error)?;
        let input = ContainerInput { container, attempt, image: &image, env, mounts, qos };
        let spec =
            container_spec(&self.defaults, pod, input).map_err(|error| config_error(error.to_string()))?;
        if cancel.is_cancelled() {
            return Ok(());
        }
        let id = self.runtime.create_container(&sandbox.id, &spec).await.map_err(|error| match error {
            runtime::Error::Invalid { .. } => Failed::new("CreateContainerConfigError", error),
            error => Failed::new("CreateContainerError", error),
        })?;
        self.events.pod(pod, name, Kind::Normal, "Created", format!("Created container: {}", container.name));
        // Nothing was run yet, so that nothing has to be asked to stop.
        if cancel.is_cancelled() {
            return self.remove(&id).await;
        }
        self.runtime.start_container(&id).await.map_err(|error| Failed::new("RunContainerError", error))?;
        self.events.pod(pod, name, Kind::Normal, "Started", format!("Started container {}", container.name));
        if attempt > 0 {
            self.metrics.restarts.inc();
        }
        if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
            && let Err(error) = self.hook(hook, container, &id, pod_ips[0], POST_START_TIMEOUT).await
        {
            let message = format!("PostStartHook failed: {error}");
            self.events.pod(pod, name, Kind::Warning, "FailedPostStartHook", message.clone());
            // As upstream: a container whose hook failed is killed, and restarts by its policy.
            let stopped = self.runtime.stop_container(&id, GRACE_AFTER_HOOK).await;
            return Err(Failed::new(
                "PostStartHookError",
                stopped.err().map_or(message, |error| error.to_string()),
            ));
        }
        Ok(())
    }

    /// The image, if it is on this machine. There is no registry to pull from: images are imported.
    async fn image(&self, pod: &Pod, container: &Container) -> Outcome<Image> {
        let reference = container.image.as_deref().unwrap_or_default();
        if let Err(error) = crate::image::Reference::parse(reference) {
            let message = format!("Failed to apply default image tag \"{reference}\": {error}");
            self.events.pod(pod, Some(&container.name), Kind::Warning, "InspectFailed", message.clone());
            return Err(Failed { reason: "InvalidImageName", message });
        }
        match self.runtime.image_status(reference).await {
            Ok(Some(image)) => {
                let message = format!("Container image \"{reference}\" already present on machine");
                self.events.pod(pod, Some(&container.name), Kind::Normal, "Pulled", message);
                Ok(image)
            }
            Ok(None) if container.image_pull_policy.as_deref() == Some("Never") => {
                let message =
                    format!("Container image \"{reference}\" is not present with pull policy of Never");
                self.events.pod(
                    pod,
                    Some(&container.name),
                    Kind::Warning,
                    "ErrImageNeverPull",
                    message.clone(),
                );
                Err(Failed { reason: "ErrImageNeverPull", message })
            }
            Ok(None) => {
                let error = runtime::Error::ImageNotFound { reference: reference.to_owned() };
                Err(Failed::new("ErrImagePull", error))
            }
            Err(error) => Err(Failed::new("ImageInspectError", error)),
        }
    }

    async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        pod_ips: &[IpAddr],
    ) -> Outcome<Vec<(String, String)>> {
        let failed = |error: String| Failed { reason: "CreateContainerConfigError", message: error };
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
        let services = self
            .services
            .variables(namespace(pod), links)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let objects = self.objects.get(&references(pod)).await.map_err(|error| failed(error.to_string()))?;
        let context = EnvContext {
            pod,
            pod_ips,
            node_ip: self.node_ip,
            allocatable: &self.allocatable,
            objects: &objects,
            services: &services,
        };
        environment(&context, container).map_err(|error| failed(error.to_string()))
    }

    /// Stops a container: its preStop hook, its stop signal, and at the deadline the end.
    pub(crate) async fn stop(
        &self,
        pod: &Pod,
        container: Option<&Container>,
        id: &ContainerId,
        how: &Stopping<'_>,
    ) -> Outcome {
        let Stopping { deadline, reason, pod_ip, sooner } = *how;
        let name = container.map(|container| container.name.as_str());
        let shown = name.unwrap_or_else(|| id.as_str());
        let message = match reason {
            StopReason::PodEnds => format!("Stopping container {shown}"),
            StopReason::Changed => format!("Container {shown} definition changed, will be restarted"),
            StopReason::Probe(text) => text.clone(),
        };
        let mut remaining = until(deadline);
        if !sooner {
            self.events.pod(pod, name, Kind::Normal, "Killing", message);
            let hook = container.and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref().map(|hook| (c, hook)));
            if let Some((container, hook)) = hook.filter(|_| !remaining.is_zero()) {
                let ip = pod_ip.unwrap_or(self.node_ip);
                if let Err(error) = self.hook(hook, container, id, ip, remaining).await {
                    let message = format!("PreStopHook failed: {error}");
                    self.events.pod(pod, name, Kind::Warning, "FailedPreStopHook", message);
                }
                remaining = until(deadline).max(GRACE_AFTER_HOOK);
            }
        }
        self.runtime.stop_container(id, remaining).await.map_err(|error| Failed::new("FailedKillPod", error))
    }

    /// Removes a container's record.
    pub(crate) async fn remove(&self, id: &ContainerId) -> Outcome {
        self.runtime.remove_container(id).await.map_err(|error| Failed::new("FailedKillPod", error))
    }

    async fn hook(
        &self,
        hook: &LifecycleHandler,
        container: &Container,
        id: &ContainerId,
        ip: IpAddr,
        timeout: Duration,
    ) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            let check = Check::Exec(exec.command.clone().unwrap_or_default());
            return check.run(&*self.runtime, id, timeout).await;
        }
        if let Some(get) = &hook.http_get {
            let port = crate::probes::port(container, &get.port)?;
            let status = http_get(get, ip, port, timeout).await?;
            return if (200..400).contains(&status) { Ok(()) } else { Err(format!("HTTP status {status}")) };
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs()).min(timeout)).await;
        }
        Ok(())
    }
}

/// The container's volumes and the file for its termination message.
fn make_mounts(
    dir: &std::path::Path,
    termination_log: PathBuf,
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let mut mounts =
        volumes::container_mounts(dir, pod, container, env).map_err(|error| error.to_string())?;
    let make = || -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        if let Some(parent) = termination_log.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(&termination_log)?;
        // Whatever user the container runs as.
        fs::set_permissions(&termination_log, fs::Permissions::from_mode(0o666))
    };
    make().map_err(|error| format!("cannot make {}: {error}", termination_log.display()))?;
    let path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    mounts.push(Mount {
        host_path: termination_log,
        container_path: path.unwrap_or("/dev/termination-log").into(),
        read_only: false,
        propagation: Propagation::Private,
    });
    Ok(mounts)
}

/// What is left until `deadline`.
fn until(deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}
