//! Carries out single actions: thin, idempotent, and each reports what it did as Events on the pod.
//!
//! Every function here is one [`Action`](super::plan::Action), run as a task of the pod's worker, which never waits for
//! one. A failure is a value: the worker keeps it, shows it in the status and tries again later.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Container, LifecycleHandler, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio_util::sync::CancellationToken;

use super::{
    plan::StopReason,
    spec::{ContainerInput, PodDefaults, container_spec, parse_resolv_conf, sandbox_spec},
};
use crate::{
    env::{EnvContext, environment, namespace},
    events::{Events, Kind},
    metrics::Metrics,
    node::machine::Resources,
    objects::{Objects, references},
    probes::{Check, http_get},
    runtime::{self, ContainerId, Image, Mount, Propagation, Runtime, Sandbox, SandboxId},
    services::Services,
    volumes,
};

/// How long a container has left when its preStop hook has used up the grace period, as upstream.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long a postStart hook may take before it counts as failed.
const POST_START_TIMEOUT: Duration = Duration::from_mins(2);
/// Lifetime of tokens that say nothing about it.
const TOKEN_SECONDS: i64 = 3600;

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

impl Failed {
    fn new(reason: &'static str, error: impl std::fmt::Display) -> Self {
        Self { reason, message: format!("{error}") }
    }
}

pub(crate) type Outcome<T = ()> = Result<T, Failed>;

impl<R: Runtime> Shared<R> {
    /// Makes the pod's volumes, or brings them up to date. Returns when its tokens should be renewed.
    pub(crate) async fn prepare(&self, pod: &Arc<Pod>) -> Outcome<Option<Timestamp>> {
        let result = self.try_prepare(pod).await;
        if let Err(failed) = &result {
            self.events.pod(pod, None, Kind::Warning, "FailedMount", failed.message.clone());
        }
        result
    }

    async fn try_prepare(&self, pod: &Arc<Pod>) -> Outcome<Option<Timestamp>> {
        let failed = |error: String| Failed { reason: "ContainerCreating", message: error };
        let objects = self.objects.get(&references(pod)).await.map_err(|e| failed(e.to_string()))?;
        let (tokens, renew_at) = self.tokens(pod).await?;
        let (pod, dir) = (pod.clone(), self.defaults.pod_dir(pod));
        let (node_ip, allocatable) = (self.node_ip, self.allocatable.clone());
        blocking(move || {
            fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
            let context = EnvContext {
                pod: &pod,
                pod_ips: &[],
                node_ip,
                allocatable: &allocatable,
                objects: &objects,
                services: &BTreeMap::new(),
            };
            volumes::set_up(&dir, &context, &tokens).map_err(|error| error.to_string())
        })
        .await
        .map_err(failed)?;
        Ok(renew_at)
    }

    /// Service account tokens of the pod's volumes, and when four fifths of the shortest life are over.
    async fn tokens(&self, pod: &Pod) -> Outcome<(volumes::Tokens, Option<Timestamp>)> {
        let mut tokens = volumes::Tokens::new();
        let mut renew_at: Option<Timestamp> = None;
        let spec = pod.spec.as_ref();
        let account =
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
        for volume in spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            for token in sources.filter_map(|source| source.service_account_token.as_ref()) {
                let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS);
                let request = TokenRequest {
                    spec: TokenRequestSpec {
                        audiences: token.audience.iter().cloned().collect(),
                        expiration_seconds: Some(seconds),
                        bound_object_ref: Some(BoundObjectReference {
                            api_version: Some("v1".to_owned()),
                            kind: Some("Pod".to_owned()),
                            name: pod.metadata.name.clone(),
                            uid: pod.metadata.uid.clone(),
                        }),
                    },
                    ..TokenRequest::default()
                };
                let answer = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace(pod))
                    .create_token_request(&account, &PostParams::default(), &request)
                    .await
                    .map_err(|error| {
                        let message = format!("no token for service account \"{account}\": {error}");
                        Failed { reason: "ContainerCreating", message }
                    })?;
                let text = answer.status.map(|status| status.token).unwrap_or_default();
                tokens.insert((volume.name.clone(), token.path.clone()), Bytes::from(text));
                let life = Duration::from_secs(seconds.max(60).unsigned_abs() / 5 * 4);
                let at = super::view::after(Timestamp::now(), life);
                renew_at = Some(renew_at.map_or(at, |earlier| earlier.min(at)));
            }
        }
        Ok((tokens, renew_at))
    }

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

    /// Creates and starts a container. `cancel` ends it between two steps, when the pod is to go.
    pub(crate) async fn start(
        &self,
        pod: &Arc<Pod>,
        sandbox: &Sandbox,
        container: &Container,
        attempt: u32,
        qos: &str,
        cancel: &CancellationToken,
    ) -> Outcome {
        let result = self.try_start(pod, sandbox, container, attempt, qos, cancel).await;
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

    async fn try_start(
        &self,
        pod: &Arc<Pod>,
        sandbox: &Sandbox,
        container: &Container,
        attempt: u32,
        qos: &str,
        cancel: &CancellationToken,
    ) -> Outcome {
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

    /// Unmounts and removes the pod's volumes.
    pub(crate) async fn tear_down(&self, pod: &Pod) -> Outcome {
        let dir = self.defaults.pod_dir(pod);
        blocking(move || volumes::tear_down(&dir).map_err(|error| error.to_string()))
            .await
            .map_err(|error| Failed::new("FailedUnMount", error))
    }

    /// Removes the pod's directories and logs.
    pub(crate) async fn finish(&self, pod: &Pod) -> Outcome {
        let (dir, logs) = (self.defaults.pod_dir(pod), self.defaults.pod_log_dir(pod));
        blocking(move || {
            volumes::tear_down(&dir)
                .and_then(|()| volumes::remove_dir(&dir))
                .and_then(|()| volumes::remove_dir(&logs))
                .map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| Failed::new("FailedUnMount", error))
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

/// File-system work on the blocking pool.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// What is left until `deadline`.
fn until(deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}
