//! A cgroup of one's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A directory in the cgroup2 mount, removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    path: PathBuf,
}

impl Cgroup {
    /// Makes one at the top of the mount.
    pub fn new(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")?;
        let path = Path::new(mount).join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { name: name.to_owned(), path })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process into it, for as long as what is returned lives: programs that are attached to it see the
    /// process's sockets then.
    pub fn enter(&self) -> Result<Entered> {
        let memberships = fs::read_to_string("/proc/self/cgroup")?;
        let before = memberships.lines().find_map(|line| line.strip_prefix("0::/"));
        let mount = self.path.parent().expect("it is in the mount");
        let before = mount.join(before.context("this process is in no cgroup of version 2")?);
        move_to(&self.path).with_context(|| format!("moving into {}", self.path.display()))?;
        Ok(Entered { before })
    }
}

/// This process is in a [`Cgroup`]; it goes back where it was on drop.
#[derive(Debug)]
pub struct Entered {
    before: PathBuf,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = move_to(&self.before) {
            eprintln!("this process stays in the test's cgroup: {error}");
        }
    }
}

fn move_to(directory: &Path) -> std::io::Result<()> {
    fs::write(directory.join("cgroup.procs"), std::process::id().to_string())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("cgroup {} stays: {error}", self.path.display());
        }
    }
}
