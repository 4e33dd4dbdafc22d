//! Containers: prepared on disk, started by a shim, stopped through it.

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::{
    net::UnixStream,
    process::Command,
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Container, Inner, Phase,
    network::{Namespaces, unmount},
    rootfs::{self, Root},
    spec::{self, Input},
    state::{ContainerRecord, SandboxRecord, make_directory, new_id, remove_directory},
};
use crate::{
    runtime::{ContainerId, ContainerSpec, Error, Event, Image, Result, SandboxId, User},
    shim::record::{self, Exit, Order},
};

/// A container is made in some ten milliseconds; this bounds a machine that thrashes.
const START_LIMIT: Duration = Duration::from_mins(1);
/// What was killed is gone at once, unless it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(20);
/// Orders to one shim that may wait; a stop is two.
pub(super) const ORDER_LIMIT: usize = 8;

impl Inner {
    pub(super) async fn create_container(
        self: Arc<Self>,
        sandbox: SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId> {
        let sandbox = self.sandbox_record(&sandbox)?;
        // Mounting and writing wait for the disk.
        let created = tokio::task::spawn_blocking(move || {
            let record = self.prepare(&sandbox, spec)?;
            let id = record.id.clone();
            let container = Container { record, phase: watch::Sender::new(Phase::default()), orders: None };
            self.state().containers.insert(id.clone(), container);
            Ok(id)
        });
        created.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
    }

    fn prepare(&self, sandbox: &SandboxRecord, spec: ContainerSpec) -> Result<ContainerRecord> {
        if !sandbox.ready {
            let problem = "it is stopped; a new sandbox is needed".to_owned();
            return Err(Error::Invalid { object: format!("sandbox {}", sandbox.id), problem });
        }
        let image = self.images.get(&spec.image_id)?;
        let image = image.ok_or_else(|| Error::ImageNotFound { reference: spec.image.clone() })?;
        let id = ContainerId(new_id()?);
        let record = ContainerRecord {
            cgroup: sandbox.cgroup.join(id.as_str()),
            sandbox: sandbox.id.clone(),
            created_at: Timestamp::now(),
            stop_signal: stop_signal(&image)?,
            id,
            spec,
        };
        let directory = self.paths.container(&record.id);
        let prepared = self.fill(&directory, &record, sandbox, &image);
        if prepared.is_err() {
            self.remove_container_files(&record.id).ok();
        }
        prepared.map(|()| record)
    }

    fn fill(
        &self,
        directory: &Path,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        image: &Image,
    ) -> Result<()> {
        let spec = &record.spec;
        for mount in &spec.mounts {
            if !mount.container_path.is_absolute() || !mount.host_path.exists() {
                let object = format!("container \"{}\": mount {}", spec.name, mount.container_path.display());
                let problem = format!(
                    "its path must be absolute and {} must exist on the node",
                    mount.host_path.display()
                );
                return Err(Error::Invalid { object, problem });
            }
        }
        make_directory(&directory.join(record::LIBCONTAINER_DIRECTORY))?;
        let lower = self.images.lower_directories(&image.id)?;
        let (layers, lower) = lower.ok_or_else(|| Error::ImageNotFound { reference: spec.image.clone() })?;
        let root = directory.join("rootfs");
        rootfs::mount_overlay(&layers, &lower, &self.paths.writable(&record.id), &root)?;
        let root = Root::open(&root)?;
        let image_user = User::Name(image.config.user.clone());
        let identity = root.identity(spec.user.as_ref().unwrap_or(&image_user), &spec.supplemental_groups)?;
        let sandbox_dir = self.paths.sandbox(&sandbox.id);
        let document = spec::build(&Input {
            spec,
            image: &image.config,
            identity: &identity,
            sandbox: &sandbox.spec,
            sandbox_dir: &sandbox_dir,
            namespaces: &Namespaces::of(&sandbox.spec, &sandbox.netns, &sandbox_dir),
            cgroup: &record.cgroup,
            machine: &self.machine,
        })?;
        // As runc does: images name working directories that they do not have.
        root.make_directory(Path::new(spec::working_dir(spec, &image.config)))?;
        let shim = record::Config {
            id: record.id.to_string(),
            cgroup: record.cgroup.clone(),
            log_path: spec.log_path.clone(),
            log_max_size_bytes: self.config.log_max_size_bytes,
            log_max_files: self.config.log_max_files,
            stdin: spec.stdin,
            oom_score_adj: spec.oom_score_adj,
        };
        record::write(directory, "config.json", &document)
            .and_then(|()| record::write(directory, record::CONFIG_FILE, &shim))
            .map_err(Error::io("write a record in", directory))?;
        self.paths.write_container(record)
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &ContainerId) -> Result<()> {
        let (name, mut phase) = self.spawn_shim(id)?;
        let settled = phase.wait_for(|phase| phase.running.is_some() || phase.exit.is_some());
        // Cloned at once: what the watch gives is a lock.
        let Ok(settled) = timeout(START_LIMIT, async { settled.await.map(|phase| phase.clone()) }).await
        else {
            self.order(id, Order::Kill).await;
            return Err(timed_out("start", id, START_LIMIT));
        };
        let phase = settled.map_err(|_| not_found(id))?;
        if phase.running.is_some() {
            return Ok(());
        }
        let reason = phase.exit.and_then(|exit| exit.message);
        Err(Error::Start { container: name, reason: reason.unwrap_or_else(|| "it ended at once".into()) })
    }

    fn spawn_shim(self: &Arc<Self>, id: &ContainerId) -> Result<(String, watch::Receiver<Phase>)> {
        let mut state = self.state();
        let container = state.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        if container.orders.is_some() || container.phase.borrow().exit.is_some() {
            let status = if container.orders.is_some() { "running" } else { "exited" };
            return Err(Error::State { operation: "start", id: id.to_string(), state: status });
        }
        let (program, args) = self.config.shim.split_first().expect("a shim is configured");
        let failed = |e| Error::io("run the shim", program)(e);
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let child = Command::new(program)
            .args(args)
            .arg("run")
            .arg(self.paths.container(id))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let stream = UnixStream::from_std(ours).map_err(failed)?;
        let (orders, taken) = mpsc::channel(ORDER_LIMIT);
        container.orders = Some(orders);
        let watched = (container.record.spec.name.clone(), container.phase.subscribe());
        tokio::spawn(self.clone().follow(id.clone(), stream, taken, Some(child)));
        Ok(watched)
    }

    pub(super) async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let Some(Stopping { signal, mut phase, orders }) = self.stopping(id)? else { return Ok(()) };
        let is_over = |phase: &Phase| phase.exit.is_some();
        if !grace.is_zero() {
            orders.send(Order::Signal(signal)).await.ok();
            if timeout(grace, phase.wait_for(is_over)).await.is_ok() {
                return Ok(());
            }
        }
        orders.send(Order::Kill).await.ok();
        match timeout(KILL_LIMIT, phase.wait_for(is_over)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(timed_out("stop", id, KILL_LIMIT)),
        }
    }

    /// None if it is over, or if it never ran: then it is over now.
    fn stopping(&self, id: &ContainerId) -> Result<Option<Stopping>> {
        let state = self.state();
        let Some(container) = state.containers.get(id) else { return Ok(None) };
        if container.phase.borrow().exit.is_some() {
            return Ok(None);
        }
        if let Some(orders) = &container.orders {
            return Ok(Some(Stopping {
                signal: container.record.stop_signal,
                phase: container.phase.subscribe(),
                orders: orders.clone(),
            }));
        }
        let exit = Exit {
            exit_code: 128 + Signal::SIGKILL as i32,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
            message: Some("stopped before it was started".into()),
        };
        let directory = self.paths.container(id);
        record::write(&directory, record::EXIT_FILE, &exit)
            .map_err(Error::io("write a record in", directory))?;
        container.phase.send_modify(|phase| phase.exit = Some(exit));
        let (sandbox, container) = (container.record.sandbox.clone(), id.clone());
        self.emit(Event::Exited { sandbox, container });
        Ok(None)
    }

    async fn order(&self, id: &ContainerId, order: Order) {
        let orders = self.state().containers.get(id).and_then(|container| container.orders.clone());
        if let Some(orders) = orders {
            orders.send(order).await.ok();
        }
    }

    pub(super) async fn remove_container(self: Arc<Self>, id: &ContainerId) -> Result<()> {
        self.stop_container(id, Duration::ZERO).await?;
        let Some(cgroup) = self.state().containers.get(id).map(|container| container.record.cgroup.clone())
        else {
            return Ok(());
        };
        let (this, gone) = (self.clone(), id.clone());
        let removed = tokio::task::spawn_blocking(move || {
            this.group(&cgroup).remove().map_err(Error::io("remove cgroup", &cgroup))?;
            this.remove_container_files(&gone)
        });
        removed.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        self.state().containers.remove(id);
        Ok(())
    }

    /// Removes what a crash left of a container whose record was never written; it has never run.
    pub(super) fn discard_container(&self, directory: &Path) -> Result<()> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.remove_container_files(&ContainerId(name))
    }

    fn remove_container_files(&self, id: &ContainerId) -> Result<()> {
        let directory = self.paths.container(id);
        unmount(&directory.join("rootfs"), false)?;
        remove_directory(&self.paths.writable(id))?;
        remove_directory(&directory)
    }
}

/// What it takes to stop a container.
struct Stopping {
    signal: i32,
    phase: watch::Receiver<Phase>,
    orders: mpsc::Sender<Order>,
}

fn stop_signal(image: &Image) -> Result<i32> {
    let Some(name) = image.config.stop_signal.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(Signal::SIGTERM as i32);
    };
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let parsed = match upper.parse::<i32>() {
        Ok(number) => Signal::try_from(number),
        Err(_) => full.parse(),
    };
    parsed.map(|signal| signal as i32).map_err(|_| Error::Invalid {
        object: format!("image {}", image.id),
        problem: format!("its stop signal \"{name}\" is unknown; build it with one like SIGTERM"),
    })
}

fn not_found(id: &ContainerId) -> Error {
    Error::NotFound { kind: "container", id: id.to_string() }
}

fn timed_out(operation: &'static str, id: &ContainerId, limit: Duration) -> Error {
    Error::Timeout { operation, object: format!("container {id}"), limit_ms: limit.as_millis() as u64 }
}
