//! A pod's or a container's cgroup, on whichever hierarchies this machine has.
//!
//! libcontainer makes a container's cgroups and puts its first process in. What is left is here: the pod's cgroup
//! above, killing, counting out-of-memory kills, removing. One relative path names the group in every hierarchy:
//!
//! - **v2 alone:** one directory with all controllers.
//! - **v1, or v1 with a v2 hierarchy beside it (hybrid):** one directory per controller. Processes stay in the v2
//!   directory that they inherit, which is this node's root, where the dataplane's socket hooks are attached.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::Resources;

/// v1 controllers that libcontainer puts containers into.
const V1_CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];
/// Rounds of killing or of trying to remove; a group whose processes have been killed is empty after a few.
const ROUND_LIMIT: usize = 100;
/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(5);
/// CPU period if only a quota is given, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The hierarchies of this machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hierarchies {
    /// Controllers and mount point of each v1 hierarchy that has any.
    v1: Vec<(Vec<String>, PathBuf)>,
    /// Mount point of the v2 hierarchy.
    v2: Option<PathBuf>,
}

impl Hierarchies {
    /// Reads them from this process's mounts.
    pub(crate) fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut fields = filesystem.split(' ');
            let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
            if kind == "cgroup2" && found.v2.is_none() {
                found.v2 = Some(point);
            } else if kind == "cgroup" {
                let controllers: Vec<_> =
                    options.split(',').filter(|o| V1_CONTROLLERS.contains(o)).map(str::to_owned).collect();
                let known = found.v1.iter().any(|(others, _)| others.iter().any(|o| controllers.contains(o)));
                if !controllers.is_empty() && !known {
                    found.v1.push((controllers, point));
                }
            }
        }
        found
    }

    /// What comes before every path, given this node's root as a directory in the v2 mount.
    pub(crate) fn relative(&self, cgroup_root: &Path) -> Option<PathBuf> {
        let mount = self.v2.as_deref()?;
        cgroup_root.strip_prefix(mount).ok().map(Path::to_owned)
    }

    /// Where a v1 controller is mounted.
    pub(crate) fn v1_controller(&self, name: &str) -> Option<&Path> {
        let hierarchy = self.v1.iter().find(|(controllers, _)| controllers.iter().any(|c| c == name));
        hierarchy.map(|(_, point)| point.as_path())
    }

    /// Whether v2 has the controllers.
    pub(crate) fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }

    fn mount_points(&self) -> Vec<&Path> {
        match &self.v2 {
            Some(mount) if self.v1.is_empty() => vec![mount],
            _ => self.v1.iter().map(|(_, point)| point.as_path()).collect(),
        }
    }
}

/// One group, which need not exist.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    hierarchies: Hierarchies,
    path: PathBuf,
}

impl Group {
    /// The group at a path relative to the mount points.
    pub(crate) fn new(hierarchies: Hierarchies, path: PathBuf) -> Self {
        Self { hierarchies, path }
    }

    /// Makes the group and bounds it. For pods; libcontainer does a container's.
    pub(crate) fn create(&self, resources: &Resources) -> io::Result<()> {
        for directory in self.directories() {
            fs::create_dir_all(&directory)?;
        }
        if self.hierarchies.is_v2() { self.bound_v2(resources) } else { self.bound_v1(resources) }
    }

    /// Kills every process in the group and below it, and waits for a bounded time until there is none.
    /// True if none is left.
    pub(crate) fn kill(&self) -> bool {
        for directory in self.directories() {
            // Since Linux 5.14 and on v2 only: all at once, forks included.
            fs::write(directory.join("cgroup.kill"), "1").ok();
        }
        for _ in 0..ROUND_LIMIT {
            let processes = self.processes();
            if processes.is_empty() {
                return true;
            }
            for process in processes {
                signal::kill(Pid::from_raw(process), Signal::SIGKILL).ok();
            }
            thread::sleep(ROUND_PAUSE);
        }
        false
    }

    /// How often the kernel has killed a process of the group for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let (mount, file) = match (self.hierarchies.v1_controller("memory"), &self.hierarchies.v2) {
            (Some(mount), _) => (mount, "memory.oom_control"),
            (None, Some(mount)) => (mount.as_path(), "memory.events"),
            (None, None) => return 0,
        };
        let text = fs::read_to_string(mount.join(&self.path).join(file)).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Removes the group and all groups below it. They must be empty; a process that has just been killed may take a
    /// moment to be gone, for which there is a bounded wait.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for directory in self.directories() {
            for round in 0.. {
                match remove_tree(&directory) {
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy && round < ROUND_LIMIT => {
                        thread::sleep(ROUND_PAUSE);
                    }
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Its directories, one per hierarchy.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        self.hierarchies.mount_points().into_iter().map(|mount| mount.join(&self.path)).collect()
    }

    fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        let mut directories = self.directories();
        while let Some(directory) = directories.pop() {
            let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            // A process that this process cannot see is 0.
            found.extend(
                processes.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&process| process > 0),
            );
            directories.extend(subdirectories(&directory));
        }
        found
    }

    fn bound_v1(&self, resources: &Resources) -> io::Result<()> {
        let write = |controller: &str, file: &str, value: Option<String>| match (
            self.hierarchies.v1_controller(controller),
            value,
        ) {
            (Some(mount), Some(value)) => fs::write(mount.join(&self.path).join(file), value),
            _ => Ok(()),
        };
        let text = |value: Option<i64>| value.map(|value| value.to_string());
        // A cpuset without CPUs takes no process; libcontainer fills its own groups the same way.
        if let Some(mount) = self.hierarchies.v1_controller("cpuset") {
            inherit_cpuset(mount, &self.path)?;
        }
        write("memory", "memory.limit_in_bytes", text(resources.memory_limit_bytes))?;
        write("cpu", "cpu.shares", resources.cpu_shares.map(|shares| shares.to_string()))?;
        if let Some(quota) = resources.cpu_quota_us {
            let period = resources.cpu_period_us.unwrap_or(CPU_PERIOD_US);
            write("cpu", "cpu.cfs_period_us", Some(period.to_string()))?;
            write("cpu", "cpu.cfs_quota_us", Some(quota.to_string()))?;
        }
        write("pids", "pids.max", text(resources.pids_limit))
    }

    fn bound_v2(&self, resources: &Resources) -> io::Result<()> {
        let Some(mount) = &self.hierarchies.v2 else { return Ok(()) };
        let mut directory = mount.clone();
        for component in &self.path {
            for controller in ["cpu", "memory", "pids"] {
                // What is missing here shows when a bound below is written.
                fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")).ok();
            }
            directory.push(component);
        }
        let write = |file: &str, value: Option<String>| match value {
            Some(value) => fs::write(directory.join(file), value),
            None => Ok(()),
        };
        write("memory.max", resources.memory_limit_bytes.map(|bytes| bytes.to_string()))?;
        write("cpu.weight", resources.cpu_shares.map(|shares| weight(shares).to_string()))?;
        let period = resources.cpu_period_us.unwrap_or(CPU_PERIOD_US);
        write("cpu.max", resources.cpu_quota_us.map(|quota| format!("{quota} {period}")))?;
        write("pids.max", resources.pids_limit.map(|limit| limit.to_string()))
    }
}

/// Shares as a weight, by the kubelet's formula: 2..262144 onto 1..10000.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn inherit_cpuset(mount: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut directory = mount.to_owned();
        for component in path {
            let above = fs::read_to_string(directory.join(file))?;
            directory.push(component);
            let target = directory.join(file);
            if fs::read_to_string(&target)?.trim().is_empty() {
                fs::write(target, above.trim())?;
            }
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in subdirectories(directory) {
        remove_tree(&child)?;
    }
    fs::remove_dir(directory)
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_hierarchies_are_found() {
        let found = Hierarchies::parse(HYBRID);
        assert!(!found.is_v2());
        assert_eq!(found.v1_controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.mount_points().len(), 2, "systemd's own hierarchy has no controllers");
        assert_eq!(found.relative(Path::new("/sys/fs/cgroup/unified/node-a")), Some("node-a".into()));
        assert_eq!(found.relative(Path::new("/elsewhere")), None);
    }

    #[test]
    fn v2_alone_is_found() {
        let found =
            Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(found.is_v2());
        assert_eq!(found.mount_points(), [Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn shares_become_weights_as_the_kubelet_has_it() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }
}
