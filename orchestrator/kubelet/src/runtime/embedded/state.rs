//! What this runtime keeps on disk, and where. The kubelet may be killed at any time: whatever it must find again is
//! written here before it is used.
//!
//! ```text
//! <run-dir>/netns/<sandbox>                  a bind mount of the pod's network namespace
//! <run-dir>/containers/sandbox/<sandbox>/    sandbox.json, uts, ipc, shm/, hosts, hostname, resolv.conf
//! <run-dir>/containers/container/<id>/       container.json, rootfs/, OCI's config.json, and the shim's records
//! <data-dir>/containers/<id>/                upper and work: what the container writes into its root file system
//! ```

use std::{
    fs::{self, DirBuilder},
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    runtime::{ContainerId, ContainerSpec, Error, Result, Sandbox, SandboxId, SandboxSpec},
    shim::record,
};

const SANDBOX_FILE: &str = "sandbox.json";
const CONTAINER_FILE: &str = "container.json";

/// A sandbox, as kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub(super) id: SandboxId,
    pub(super) spec: SandboxSpec,
    /// Where its network namespace is mounted, unless it is the host's.
    pub(super) netns: PathBuf,
    pub(super) ips: Vec<IpAddr>,
    pub(super) created_at: Timestamp,
    /// Not yet stopped.
    pub(super) ready: bool,
    /// The pod's cgroup, relative to the mount points.
    pub(super) cgroup: PathBuf,
    /// How it was connected: disconnecting takes the same.
    pub(super) cni_config: Option<Value>,
    pub(super) cni_result: Option<Value>,
}

impl SandboxRecord {
    /// As callers see it.
    pub(super) fn status(&self) -> Sandbox {
        // Without one on its own network, its making was cut short.
        let is_connected = self.spec.host_network || !self.ips.is_empty();
        let netns = (!self.spec.host_network).then(|| self.netns.clone());
        Sandbox {
            id: self.id.clone(),
            spec: self.spec.clone(),
            ips: self.ips.clone(),
            // A mount point whose mount is gone is an empty file, which no namespace is.
            ready: self.ready && is_connected && netns.as_deref().is_none_or(is_namespace),
            netns,
            created_at: self.created_at,
        }
    }
}

/// A container, as kept. What becomes of it is in the shim's records.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) id: ContainerId,
    pub(super) sandbox: SandboxId,
    pub(super) spec: ContainerSpec,
    pub(super) created_at: Timestamp,
    /// The signal that asks it to stop.
    pub(super) stop_signal: i32,
    /// Its cgroup, relative to the mount points.
    pub(super) cgroup: PathBuf,
}

/// Where things are.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    run_dir: PathBuf,
    data_dir: PathBuf,
}

impl Paths {
    pub(super) fn new(run_dir: &Path, data_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned(), data_dir: data_dir.to_owned() }
    }

    /// Makes the directories that everything else is made in.
    pub(super) fn prepare(&self) -> Result<()> {
        for directory in
            [self.netns_directory(), self.sandboxes(), self.containers(), self.writable_directory()]
        {
            make_directory(&directory)?;
        }
        Ok(())
    }

    pub(super) fn netns_directory(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    pub(super) fn netns(&self, id: &SandboxId) -> PathBuf {
        self.netns_directory().join(id.as_str())
    }

    /// Everything of this runtime below the run directory, except network namespaces.
    pub(super) fn state(&self) -> PathBuf {
        self.run_dir.join("containers")
    }

    fn sandboxes(&self) -> PathBuf {
        self.state().join("sandbox")
    }

    fn containers(&self) -> PathBuf {
        self.state().join("container")
    }

    pub(super) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub(super) fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    pub(super) fn writable_directory(&self) -> PathBuf {
        self.data_dir.join("containers")
    }

    /// What a container writes into its root file system.
    pub(super) fn writable(&self, id: &ContainerId) -> PathBuf {
        self.writable_directory().join(id.as_str())
    }

    pub(super) fn write_sandbox(&self, sandbox: &SandboxRecord) -> Result<()> {
        let directory = self.sandbox(&sandbox.id);
        record::write(&directory, SANDBOX_FILE, sandbox).map_err(Error::io("write a record in", directory))
    }

    pub(super) fn write_container(&self, container: &ContainerRecord) -> Result<()> {
        let directory = self.container(&container.id);
        record::write(&directory, CONTAINER_FILE, container)
            .map_err(Error::io("write a record in", directory))
    }

    /// All sandboxes. A directory without a readable record is one whose making was cut short: it comes back as the
    /// second list, for removal.
    pub(super) fn read_sandboxes(&self) -> Result<(Vec<SandboxRecord>, Vec<PathBuf>)> {
        read_all(&self.sandboxes(), SANDBOX_FILE)
    }

    /// All containers, likewise.
    pub(super) fn read_containers(&self) -> Result<(Vec<ContainerRecord>, Vec<PathBuf>)> {
        read_all(&self.containers(), CONTAINER_FILE)
    }

    /// The directories of all containers, with or without a record.
    pub(super) fn container_directories(&self) -> Result<Vec<PathBuf>> {
        list(&self.containers())
    }
}

/// The paths in a directory; none if it is not there.
fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", directory))?,
    };
    let paths: io::Result<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    paths.map_err(Error::io("list", directory))
}

fn read_all<T: DeserializeOwned>(directory: &Path, file: &str) -> Result<(Vec<T>, Vec<PathBuf>)> {
    let (mut records, mut broken) = (Vec::new(), Vec::new());
    for path in list(directory)? {
        match record::read(&path, file) {
            Ok(Some(record)) => records.push(record),
            Ok(None) | Err(_) => broken.push(path),
        }
    }
    Ok((records, broken))
}

/// Makes a directory that only root can enter, and its parents.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(Error::io("create", path))
}

/// Removes a directory with all that is in it, if it is there.
pub(super) fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// An id that is new for ever: 128 random bits.
pub(super) fn new_id() -> Result<String> {
    let mut bytes = [0u8; 16];
    let path = "/dev/urandom";
    fs::File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(Error::io("read", path))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(libc::NSFS_MAGIC);
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}
