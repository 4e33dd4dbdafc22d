//! What a machine holds that a cluster could leave behind.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result};

use crate::Namespace;

/// A picture of mounts, cgroups, processes and a namespace's links and routes.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Takes the picture of everything whose name or path holds `mark`, and of the namespace's network.
    pub fn picture(mark: &str, namespace: &Namespace) -> Result<Self> {
        let mut found = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        found.extend(mounts.lines().filter(|line| line.contains(mark)).map(|line| format!("mount {line}")));

        let cgroups =
            Command::new("find").args(["/sys/fs/cgroup", "-path", &format!("*{mark}*")]).output()?;
        let paths = String::from_utf8(cgroups.stdout).context("cgroup paths are UTF-8")?;
        found.extend(paths.lines().map(|path| format!("cgroup {path}")));

        for process in fs::read_dir("/proc")?.flatten() {
            let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&command_line).replace('\0', " ");
            if words.contains(mark) {
                found.insert(format!("process {words}"));
            }
        }
        // Neighbours that the kernel found by itself come and go; only permanent ones are somebody's.
        for what in ["link show", "address show", "route show", "neighbour show nud permanent"] {
            let output = namespace.command("ip").arg("-brief").args(what.split(' ')).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            found.extend(text.lines().map(|line| format!("{what}: {}", line.trim())));
        }
        Ok(Self(found))
    }

    /// What is here and was not there.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}
