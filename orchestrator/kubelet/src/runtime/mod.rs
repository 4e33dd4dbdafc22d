//! What the kubelet asks of whatever runs its containers.
//!
//! The trait follows the Container Runtime Interface (CRI v1) call by call, because the second implementation is
//! a CRI client (containerd) and a trait of another shape would need translating twice. Where the two differ, CRI
//! is the poorer: [`Runtime::events`] exists so that nobody polls, and images are looked up with their whole
//! configuration because the pod worker needs it to build a command line.
//!
//! Callers: the pod workers (everything), the probes and lifecycle hooks ([`Runtime::exec_sync`]), and the kubelet's
//! start ([`Runtime::list_sandboxes`] and [`Runtime::list_containers`], from which it adopts what already runs).
//! The kubelet keeps no state of containers of its own: the runtime's lists are canonical.

pub(crate) mod cgroup;
pub mod embedded;
mod error;
mod types;

use std::{future::Future, time::Duration};

use futures::Stream;

pub use self::{
    error::{Error, Result},
    types::{
        Capabilities, ContainerId, ContainerSpec, ContainerState, ContainerStatus, DnsConfig, Event,
        ExecOutput, HostAlias, Image, ImageConfig, Mount, Propagation, Resources, Sandbox, SandboxId,
        SandboxSpec, User,
    },
};

/// A container runtime. Every call is idempotent where CRI says so: stopping what is stopped and removing what is
/// gone succeed.
pub trait Runtime: Send + Sync + 'static {
    /// Tells the runtime which addresses this node's pods get, in CIDR notation. Comes once the node has them, and
    /// before the first sandbox that is not on the host's network (CRI: `UpdateRuntimeConfig`).
    fn set_pod_cidr(&self, cidr: &str) -> impl Future<Output = Result<()>> + Send;

    /// Makes the pod's environment: namespaces, address, cgroup, the files below `/etc` that its containers share.
    /// On failure nothing of it is left.
    fn run_sandbox(&self, spec: &SandboxSpec) -> impl Future<Output = Result<Sandbox>> + Send;

    /// Kills the sandbox's containers and takes its network away. Records and logs stay until it is removed.
    fn stop_sandbox(&self, id: &SandboxId) -> impl Future<Output = Result<()>> + Send;

    /// Stops the sandbox if need be, and removes it with all its containers.
    fn remove_sandbox(&self, id: &SandboxId) -> impl Future<Output = Result<()>> + Send;

    /// All sandboxes, stopped ones too.
    fn list_sandboxes(&self) -> impl Future<Output = Result<Vec<Sandbox>>> + Send;

    /// Prepares a container: its root file system and its configuration; no process yet.
    /// The image must be there ([`Error::ImageNotFound`]).
    fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: &ContainerSpec,
    ) -> impl Future<Output = Result<ContainerId>> + Send;

    /// Runs the container's command. One that cannot be executed is [`Error::Start`]; the container has then exited,
    /// with code 128 and the reason as its message.
    fn start_container(&self, id: &ContainerId) -> impl Future<Output = Result<()>> + Send;

    /// Sends the image's stop signal, waits at most `grace`, then kills everything in the container.
    /// Returns when the container has exited and its exit is recorded.
    fn stop_container(&self, id: &ContainerId, grace: Duration) -> impl Future<Output = Result<()>> + Send;

    /// Kills the container if need be, and removes its file system, cgroup and record. Its log stays.
    fn remove_container(&self, id: &ContainerId) -> impl Future<Output = Result<()>> + Send;

    /// All containers, exited ones too.
    fn list_containers(&self) -> impl Future<Output = Result<Vec<ContainerStatus>>> + Send;

    /// One container, or `None` if there is none by this id.
    fn container_status(
        &self,
        id: &ContainerId,
    ) -> impl Future<Output = Result<Option<ContainerStatus>>> + Send;

    /// The image that `reference` (a name, a name with a digest, or an image id) means here, if it is on this machine.
    fn image_status(&self, reference: &str) -> impl Future<Output = Result<Option<Image>>> + Send;

    /// All images on this machine.
    fn list_images(&self) -> impl Future<Output = Result<Vec<Image>>> + Send;

    /// Runs a command in a running container and waits for it, at most `timeout` ([`Error::Timeout`]: the command
    /// was killed). Each of the two outputs is cut at [`EXEC_OUTPUT_LIMIT_BYTES`].
    fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> impl Future<Output = Result<ExecOutput>> + Send;

    /// What happens to containers from now on. Whoever reads slower than events come sees [`Event::Lost`] and must
    /// list once. Never ends while the runtime lives.
    fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + use<Self>;
}

/// The most that [`Runtime::exec_sync`] keeps of stdout, and of stderr: what a probe's event can show, and more.
pub const EXEC_OUTPUT_LIMIT_BYTES: usize = 16 * 1024;
