//! Removes everything that this runtime made on a machine, knowing nothing but the disk.
//!
//! For `weir up` when it ends, and for what a crash left. Every step works on what is there and says what it could
//! not do, so that it can be called again, or for a runtime that is half made.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
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
    group.kill();
    end_shims(&paths, &mut failures);
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

/// Waits for the shims to end, and kills those that do not.
fn end_shims(paths: &Paths, failures: &mut Vec<Error>) {
    let Ok((containers, _)) = paths.read_containers() else { return };
    let directories: Vec<PathBuf> =
        containers.iter().map(|container| paths.container(&container.id)).collect();
    let deadline = Instant::now() + SHIM_LIMIT;
    let live = |directory: &&PathBuf| {
        std::os::unix::net::UnixStream::connect(directory.join(record::SOCKET_FILE)).is_ok()
    };
    while directories.iter().any(|directory| live(&directory)) && Instant::now() < deadline {
        thread::sleep(SHIM_PAUSE);
    }
    for directory in directories.iter().filter(live) {
        let running: Option<record::Running> = record::read(directory, record::RUNNING_FILE).ok().flatten();
        let Some(running) = running else { continue };
        // It listens in this directory, so the process id in its record is still its own.
        if let Err(errno) = signal::kill(Pid::from_raw(running.shim_pid as i32), Signal::SIGKILL) {
            failures.push(Error::io("kill the shim of", directory)(errno));
        }
    }
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
