//! Removes everything that this runtime made on a machine, knowing nothing but the disk.
//!
//! For `weir up` when it ends, and for what a crash left. Every step works on what is there and says what it could
//! not do, so that it can be called again, or for a runtime that is half made.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{self, Signal},
        socket::{getsockopt, sockopt},
    },
    unistd::Pid,
};

use super::{
    Config,
    network::unmount,
    node_cgroup,
    state::{Paths, SandboxRecord, remove_directory},
};
use crate::{
    runtime::{
        Error, Result,
        cgroup::{Group, Hierarchies},
    },
    shim::record,
};

/// Shims end by themselves when their containers have, which takes their draining of output and a little.
const SHIM_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at them.
const SHIM_PAUSE: Duration = Duration::from_millis(10);

/// Removes every process, cgroup, mount, namespace and file of the runtime described by `config`. Images and pod
/// logs stay. Idempotent. No kubelet may be using the runtime.
pub async fn cleanup(config: &Config) -> Result<()> {
    let paths = Paths::new(&config.run_dir, &config.data_dir);
    let mut failures = Vec::new();
    let hierarchies = Hierarchies::detect().map_err(Error::io("read", "/proc/self/mountinfo"))?;
    let cgroup = node_cgroup(&hierarchies, config.cgroup_root.as_deref())?;
    let group = Group::new(hierarchies.clone(), cgroup.clone());
    end_containers(&paths, &group)?;
    let (sandboxes, _) = paths.read_sandboxes()?;
    for sandbox in sandboxes.iter().filter(|sandbox| sandbox.ready && !sandbox.spec.host_network) {
        // The plugin's own clean-up follows; a sandbox that cannot be disconnected must not keep the rest.
        if let Err(error) = config.cni.del(sandbox).await {
            tracing::warn!(sandbox = %sandbox.id, %error, "cannot disconnect a pod");
        }
    }
    let own = [paths.state(), paths.netns_directory()];
    for mount in mounts_below(&own)? {
        failures.extend(unmount(&mount, false).err());
    }
    failures.extend(group.remove().map_err(Error::io("remove cgroup", &cgroup)).err());
    remove_v1_roots(&hierarchies, &cgroup);
    failures.extend(remove_netns_files(&sandboxes).into_iter().filter_map(Result::err));
    for directory in [paths.state(), paths.writable_directory()] {
        failures.extend(remove_directory(&directory).err());
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Under v1, the node's own directory is made with the first pod below it; under v2 it was there before, and is not
/// ours. One that holds something else stays.
fn remove_v1_roots(hierarchies: &Hierarchies, cgroup: &Path) {
    let Some(root) = cgroup.parent().filter(|root| !root.as_os_str().is_empty() && !hierarchies.is_v2())
    else {
        return;
    };
    for directory in Group::new(hierarchies.clone(), root.to_owned()).directories() {
        fs::remove_dir(directory).ok();
    }
}

/// Ends every container, those too that are just being made: their shims have not put a process into the group yet.
///
/// A shim listens before it looks for the note of the end, and here the note is written before anybody is asked: a shim
/// either sees the note and gives up, or is found alive and waited for until it has put its process where it is killed.
fn end_containers(paths: &Paths, group: &Group) -> Result<()> {
    let directories = paths.container_directories()?;
    for directory in &directories {
        let note = directory.join(record::ENDING_FILE);
        fs::write(&note, "").map_err(Error::io("write", note))?;
    }
    let deadline = Instant::now() + SHIM_LIMIT;
    loop {
        group.kill();
        let alive: Vec<_> = directories.iter().filter_map(|directory| shim_of(directory)).collect();
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            for shim in alive {
                signal::kill(shim, Signal::SIGKILL).ok();
            }
            group.kill();
            return Ok(());
        }
        thread::sleep(SHIM_PAUSE);
    }
}

/// The process that listens in a container's directory.
fn shim_of(directory: &Path) -> Option<Pid> {
    let stream = UnixStream::connect(directory.join(record::SOCKET_FILE)).ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    Some(Pid::from_raw(peer.pid()))
}

/// Mount points at and below some directories, innermost first.
fn mounts_below(directories: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    // Mounts are listed in the order in which they were made.
    let points = text.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| directories.iter().any(|directory| point.starts_with(directory))).collect())
}

/// The kernel writes white space and backslashes in paths as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(pairs.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain)))
}

fn remove_netns_files(sandboxes: &[SandboxRecord]) -> Vec<Result<()>> {
    let own = sandboxes.iter().filter(|sandbox| !sandbox.spec.host_network);
    own.map(|sandbox| unmount(Path::new(&sandbox.netns), true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescape("/run/with\\040space/netns"), Path::new("/run/with space/netns"));
    }
}
