//! The values that cross the [`Runtime`](super::Runtime) trait. They are also what the embedded runtime keeps on
//! disk, hence `serde`: a field added later needs a default.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A sandbox's id: unique on this node for ever.
    SandboxId
);
id!(
    /// A container's id: unique on this node for ever.
    ContainerId
);

/// A pod's environment, as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid; also the name of its cgroup (`pod<uid>`).
    pub uid: String,
    /// Counts the sandboxes of one pod, from 0.
    pub attempt: u32,
    /// The host name its containers see. Ignored on the host's network.
    pub hostname: String,
    /// The fully qualified name for `/etc/hosts`, if the pod has a subdomain.
    pub fqdn: Option<String>,
    /// The content of `/etc/resolv.conf`. None: the host's file.
    pub dns: Option<DnsConfig>,
    /// Extra lines of `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// No network namespace of its own, no CNI.
    pub host_network: bool,
    /// Its containers see the host's processes.
    pub host_pid: bool,
    /// Its containers share the host's System V IPC and POSIX message queues.
    pub host_ipc: bool,
    /// Namespaced sysctls, such as `net.core.somaxconn`.
    pub sysctls: BTreeMap<String, String>,
    /// Bounds of the pod as a whole; containers have their own below.
    pub resources: Resources,
    /// Kept and given back by lists.
    pub labels: BTreeMap<String, String>,
    /// Kept and given back by lists.
    pub annotations: BTreeMap<String, String>,
}

/// `/etc/resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line, such as `ndots:5`.
    pub options: Vec<String>,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// The address.
    pub ip: String,
    /// Its names.
    pub hostnames: Vec<String>,
}

/// A sandbox as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Its addresses, the primary one first. Empty on the host's network: the pod then has the node's.
    pub ips: Vec<IpAddr>,
    /// The bind-mounted network namespace. None on the host's network.
    pub netns: Option<PathBuf>,
    /// When it was made.
    pub created_at: Timestamp,
    /// False once it was stopped, or if its namespaces are gone: then a new one is needed.
    pub ready: bool,
}

/// A container, as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent, as they are in a pod")]
pub struct ContainerSpec {
    /// The container's name in the pod.
    pub name: String,
    /// Counts the containers of this name in one pod, from 0: the restart count.
    pub attempt: u32,
    /// The image reference as the pod names it; kept for status.
    pub image: String,
    /// [`Image::id`] of the image to run.
    pub image_id: String,
    /// Replaces the image's entrypoint, and then also its cmd, unless empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd, unless empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Environment: later entries win, and all win over the image's.
    pub env: Vec<(String, String)>,
    /// Volumes. One on `/etc/hosts`, `/etc/hostname` or `/etc/resolv.conf` replaces the sandbox's file.
    pub mounts: Vec<Mount>,
    /// CPU, memory and process bounds.
    pub resources: Resources,
    /// Replaces the image's user.
    pub user: Option<User>,
    /// Additional groups of the process, such as `fsGroup`.
    pub supplemental_groups: Vec<u32>,
    /// The root file system cannot be written.
    pub read_only_rootfs: bool,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// Changes to the default capabilities.
    pub capabilities: Capabilities,
    /// The process cannot gain privileges: `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// Stdout and stderr are a terminal. The embedded runtime refuses it.
    pub tty: bool,
    /// Stdin stays open; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Where the CRI-format log goes; its directory is made.
    pub log_path: PathBuf,
    /// Kept and given back by lists.
    pub labels: BTreeMap<String, String>,
    /// Kept and given back by lists.
    pub annotations: BTreeMap<String, String>,
    /// `oom_score_adj` of the process. Where the kernel refuses to lower it, it stays as it is.
    pub oom_score_adj: Option<i32>,
}

/// A directory or file of the host inside the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Exists on the host.
    pub host_path: PathBuf,
    /// Absolute path in the container; made if it is not there.
    pub container_path: PathBuf,
    /// Cannot be written.
    pub read_only: bool,
    /// Which side sees the other's new mounts.
    pub propagation: Propagation,
}

/// Mount propagation, named as in Kubernetes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// `None`.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`.
    Bidirectional,
}

/// Bounds. None: not bound, except the number of processes, which always is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative weight, 2 to 262144; 1024 is one CPU.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period.
    pub cpu_quota_us: Option<i64>,
    /// Length of the period in microseconds; 100,000 if not given.
    pub cpu_period_us: Option<u64>,
    /// Memory, swap included.
    pub memory_limit_bytes: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
}

/// Who the process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// `runAsUser`, `runAsGroup`; the group of a user without one is looked up in the image, else 0.
    Id {
        /// User id.
        uid: u32,
        /// Group id.
        gid: Option<u32>,
    },
    /// A name out of the image's `/etc/passwd`, as images spell it: `name`, `name:group`, `uid:gid`.
    Name(String),
}

/// Changes to the default capabilities, without the `CAP_` prefix; `ALL` means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Added after `drop` was applied.
    pub add: Vec<String>,
    /// Taken from the default.
    pub drop: Vec<String>,
}

/// Where a container is in its life; it only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, command not yet running.
    Created,
    /// Running.
    Running,
    /// Over; see the exit code.
    Exited,
}

/// A container as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Its pod's sandbox.
    pub sandbox: SandboxId,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Process id of its init on the host; 0 when it has exited.
    pub pid: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its command began to run.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
    /// The exit code, or 128 + signal.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed it, or a process of it, for want of memory: `OOMKilled`.
    pub oom_killed: bool,
    /// Why it never ran (`StartError`, `ContainerCannotRun`).
    pub message: Option<String>,
}

/// An image on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the image's configuration: `sha256:…`. What containers refer to.
    pub id: String,
    /// Digest of the manifest: `sha256:…`.
    pub digest: String,
    /// Normalised names, such as `docker.io/library/nginx:latest`.
    pub references: Vec<String>,
    /// Size of configuration and compressed layers.
    pub size_bytes: u64,
    /// How to run it.
    pub config: ImageConfig,
}

/// The parts of an OCI image configuration that decide how a container starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `User`; empty is root.
    pub user: String,
    /// `WorkingDir`; empty is `/`.
    pub working_dir: String,
    /// `ExposedPorts`, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `StopSignal`; none is SIGTERM.
    pub stop_signal: Option<String>,
}

/// What a command run with `exec_sync` left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code, or 128 + signal.
    pub exit_code: i32,
    /// The beginning of its stdout.
    pub stdout: Vec<u8>,
    /// The beginning of its stderr.
    pub stderr: Vec<u8>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container's command began to run.
    Started {
        /// The pod's sandbox.
        sandbox: SandboxId,
        /// The container.
        container: ContainerId,
    },
    /// A container is over; its status has the exit code.
    Exited {
        /// The pod's sandbox.
        sandbox: SandboxId,
        /// The container.
        container: ContainerId,
    },
    /// Events came faster than they were read: list to know.
    Lost,
}
