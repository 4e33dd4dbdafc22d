//! The runtime that needs nothing installed: libcontainer, overlayfs, and a [shim](crate::shim) per container.
//!
//! Everything it makes is on disk before it is used (`state`), and what is on disk is enough to find and remove it
//! ([`cleanup()`]). In memory is only a copy, with a task per running container that follows its shim (`follow`).

mod cleanup;
mod container;
mod exec;
mod files;
mod follow;
mod network;
mod rootfs;
mod sandbox;
mod spec;
mod state;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, watch};

pub use self::cleanup::cleanup;
use self::{
    spec::Machine,
    state::{ContainerRecord, Paths, SandboxRecord, remove_directory},
};
use super::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Error, Event, ExecOutput, Image, Result,
    Runtime, Sandbox, SandboxId, SandboxSpec,
    cgroup::{Group, Hierarchies},
};
use crate::{
    image::Store,
    shim::record::{Exit, Order, Running},
};

/// Events that a slow reader may be behind before it must list instead.
const EVENT_LIMIT: usize = 256;

/// Where the embedded runtime works, and with what.
#[derive(Debug, Clone)]
pub struct Config {
    /// Images, and what containers write into their root file systems.
    pub data_dir: PathBuf,
    /// State that a reboot clears.
    pub run_dir: PathBuf,
    /// This node's directory in the cgroup2 mount. None: the mount itself.
    pub cgroup_root: Option<PathBuf>,
    /// The command that [`shim::main`](crate::shim::main) is behind: this executable and `shim`.
    pub shim: Vec<OsString>,
    /// How pods are connected.
    pub cni: Cni,
    /// A container's log is rotated at this size; 10 MiB as in the kubelet.
    pub log_max_size_bytes: u64,
    /// So many log files of a container there are at most; 5 as in the kubelet.
    pub log_max_files: u32,
}

/// A CNI plugin and its configuration (CNI specification 1.0).
#[derive(Debug, Clone)]
pub struct Cni {
    /// The plugin: this executable and `cni`, or another.
    pub command: Vec<PathBuf>,
    /// What it reads from stdin. [`Runtime::set_pod_cidr`] sets its `podCIDR`.
    pub config: Value,
}

impl Config {
    /// The defaults: this executable's own shim and plugin.
    pub fn new(data_dir: &Path, run_dir: &Path) -> Self {
        let this = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        Self {
            data_dir: data_dir.to_owned(),
            run_dir: run_dir.to_owned(),
            cgroup_root: None,
            shim: vec![this.clone().into(), "shim".into()],
            cni: Cni {
                command: vec![this, "cni".into()],
                config: json!({ "cniVersion": "1.0.0", "name": "weir", "type": "weir", "runDir": run_dir }),
            },
            log_max_size_bytes: 10 * 1024 * 1024,
            log_max_files: 5,
        }
    }
}

/// The embedded runtime. Clones are the same runtime.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    paths: Paths,
    images: Store,
    hierarchies: Hierarchies,
    /// This node's cgroup, relative to the mount points, with `weir` at its end.
    cgroup: PathBuf,
    machine: Machine,
    /// Synchronous because it is held for a copy or an assignment, never across an await.
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

struct State {
    sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    containers: BTreeMap<ContainerId, Container>,
    cni: Cni,
}

/// A container in memory: its records, and the way to its shim.
struct Container {
    record: ContainerRecord,
    phase: watch::Sender<Phase>,
    /// None unless a shim is followed.
    orders: Option<mpsc::Sender<Order>>,
}

/// A copy of the shim's records.
#[derive(Debug, Clone, Default)]
struct Phase {
    running: Option<Running>,
    exit: Option<Exit>,
}

impl Embedded {
    /// Opens the runtime's state, and adopts every container that runs. To be called in a tokio runtime.
    pub async fn open(config: Config) -> Result<Self> {
        let paths = Paths::new(&config.run_dir, &config.data_dir);
        check_path("--data-dir", &config.data_dir)?;
        check_path("--run-dir", &config.run_dir)?;
        paths.prepare()?;
        let hierarchies = Hierarchies::detect().map_err(Error::io("read", "/proc/self/mountinfo"))?;
        let cgroup = node_cgroup(&hierarchies, config.cgroup_root.as_deref())?;
        let machine = machine(&hierarchies)?;
        let (sandboxes, broken) = paths.read_sandboxes()?;
        let state = State {
            sandboxes: sandboxes.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox)).collect(),
            containers: BTreeMap::new(),
            cni: config.cni.clone(),
        };
        let runtime = Self {
            inner: Arc::new(Inner {
                images: Store::new(&config.data_dir),
                state: Mutex::new(state),
                events: broadcast::Sender::new(EVENT_LIMIT),
                config,
                paths,
                hierarchies,
                cgroup,
                machine,
            }),
        };
        for directory in broken {
            // Its record comes first, so there is no more to it than its directory.
            remove_directory(&directory)?;
        }
        runtime.adopt().await?;
        Ok(runtime)
    }

    /// Finds the containers on disk again and follows those that run.
    async fn adopt(&self) -> Result<()> {
        let (records, broken) = self.inner.paths.read_containers()?;
        for directory in broken {
            self.inner.discard_container(&directory)?;
        }
        for record in records {
            self.inner.adopt_container(record).await?;
        }
        Ok(())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    fn sandbox_record(&self, id: &SandboxId) -> Result<SandboxRecord> {
        let found = self.state().sandboxes.get(id).cloned();
        found.ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_string() })
    }

    fn group(&self, path: &Path) -> Group {
        Group::new(self.hierarchies.clone(), path.to_owned())
    }

    fn emit(&self, event: Event) {
        // Nobody listening is fine: who listens later lists first.
        self.events.send(event).ok();
    }
}

impl Runtime for Embedded {
    async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        self.inner.state().cni.set_pod_cidr(cidr);
        Ok(())
    }

    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        self.inner.clone().run_sandbox(spec.clone()).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.inner.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<()> {
        self.inner.clone().remove_sandbox(id).await
    }

    async fn list_sandboxes(&self) -> Result<Vec<Sandbox>> {
        Ok(self.inner.state().sandboxes.values().map(SandboxRecord::status).collect())
    }

    async fn create_container(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId> {
        self.inner.clone().create_container(sandbox.clone(), spec.clone()).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<()> {
        self.inner.start_container(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        self.inner.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.inner.clone().remove_container(id).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        Ok(self.inner.state().containers.values().map(Container::status).collect())
    }

    async fn container_status(&self, id: &ContainerId) -> Result<Option<ContainerStatus>> {
        Ok(self.inner.state().containers.get(id).map(Container::status))
    }

    async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        Ok(self.inner.images.get(reference)?)
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(self.inner.images.list()?)
    }

    async fn exec_sync(&self, id: &ContainerId, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.inner.exec_sync(id, command, timeout).await
    }

    fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + use<> {
        let receiver = self.inner.events.subscribe();
        stream::unfold(receiver, |mut receiver| async {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Event::Lost, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }
}

impl Container {
    fn status(&self) -> ContainerStatus {
        let record = &self.record;
        let Phase { running, exit } = self.phase.borrow().clone();
        let state = match (&running, &exit) {
            (_, Some(_)) => ContainerState::Exited,
            (Some(_), None) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        };
        let exited = exit.as_ref();
        ContainerStatus {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            spec: record.spec.clone(),
            state,
            pid: running.as_ref().filter(|_| exited.is_none()).map_or(0, |running| running.pid as u32),
            created_at: record.created_at,
            started_at: exited.and_then(|exit| exit.started_at).or(running.as_ref().map(|r| r.started_at)),
            finished_at: exited.map(|exit| exit.finished_at),
            exit_code: exited.map(|exit| exit.exit_code),
            signal: exited.and_then(|exit| exit.signal),
            oom_killed: exited.is_some_and(|exit| exit.oom_killed),
            message: exited.and_then(|exit| exit.message.clone()),
        }
    }
}

/// Overlayfs separates its options by these, and would need them escaped twice.
fn check_path(flag: &str, path: &Path) -> Result<()> {
    let problem = match path.to_str() {
        Some(text) if !text.contains([':', ',', '\\']) && path.is_absolute() => return Ok(()),
        _ => format!("{} must be an absolute path without colon, comma and backslash", path.display()),
    };
    Err(Error::Invalid { object: flag.to_owned(), problem })
}

/// Where this node's pods are, relative to the cgroup mount points.
fn node_cgroup(hierarchies: &Hierarchies, root: Option<&Path>) -> Result<PathBuf> {
    let root = match root {
        None => PathBuf::new(),
        Some(root) => hierarchies.relative(root).ok_or_else(|| Error::Invalid {
            object: "--cgroup-root".into(),
            problem: format!("{} is not in the cgroup2 mount; see /proc/self/mountinfo", root.display()),
        })?,
    };
    Ok(root.join("weir"))
}

fn machine(hierarchies: &Hierarchies) -> Result<Machine> {
    let path = "/proc/self/status";
    let status = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let memory = hierarchies.v1_controller("memory");
    Ok(Machine {
        capabilities: bounding.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0),
        device_controller: hierarchies.v1_controller("devices").is_some(),
        swap_limit: memory.is_none_or(|mount| mount.join("memory.memsw.limit_in_bytes").exists()),
        devices: devices()?,
    })
}

/// The device nodes of `/dev`, without those that every container has.
fn devices() -> Result<Vec<Value>> {
    const OWN: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev").map_err(Error::io("list", "/dev"))?.flatten() {
        let (Ok(metadata), Ok(name)) = (fs::symlink_metadata(entry.path()), entry.file_name().into_string())
        else {
            continue;
        };
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            _ => continue,
        };
        if OWN.contains(&name.as_str()) {
            continue;
        }
        let number = metadata.rdev();
        found.push(json!({
            "path": format!("/dev/{name}"),
            "type": kind,
            "major": nix::sys::stat::major(number),
            "minor": nix::sys::stat::minor(number),
            "fileMode": metadata.mode() & 0o7777,
            "uid": metadata.uid(),
            "gid": metadata.gid(),
        }));
    }
    Ok(found)
}
