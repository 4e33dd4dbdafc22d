//! Network namespaces and the links between them, as guards.
//!
//! A namespace here has no name and no file: it lives as long as its descriptor does, so that nothing is left behind,
//! not even by a test that is killed.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    process::Command,
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with only its loopback, gone on drop.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one; needs root.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace: this needs root")?;
            File::open("/proc/thread-self/ns/net").context("opening the new namespace")
        });
        let namespace = Self { file: made.join().expect("making a namespace does not panic")? };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A path that opens the namespace while this process runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// A command that will run inside, in the machine's mount namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs `ip` with these words inside, and returns what it says.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut ip = self.command("ip");
        let output = ip.args(words.split_whitespace()).output().context("starting nsenter (util-linux)")?;
        ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Writes a setting below `/proc/sys/net`.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value).with_context(|| format!("writing {value} to {path}")))
    }

    /// Runs `work` on a thread inside, to the end: sockets, commands and `/proc/sys/net` are the namespace's there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The same for work that can fail; the type of its error is known here, so that `?` needs none.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.inside(work)
    }

    /// Moves the calling thread inside, for good.
    pub(crate) fn enter(&self) {
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("who made a namespace may enter it");
    }
}

/// One end of a link: where, its name, its address with prefix length.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// The namespace it is in.
    pub namespace: &'a Namespace,
    /// The interface's name.
    pub name: &'a str,
    /// For example `198.51.100.1/24`.
    pub address: &'a str,
}

impl Link<'_> {
    /// Joins two namespaces with a veth pair. The pair goes with either namespace.
    ///
    /// Checksum offload is off at both ends: between them no hardware would ever fill in what a sender left out, and
    /// XDP sees packets before the stack does.
    pub fn connect(one: Link<'_>, other: Link<'_>) -> Result<()> {
        let peer = other.namespace.path();
        one.namespace
            .ip(&format!("link add {} type veth peer name {} netns {peer}", one.name, other.name))?;
        for end in [one, other] {
            end.namespace.ip(&format!("address add {} dev {}", end.address, end.name))?;
            end.namespace.ip(&format!("link set {} up", end.name))?;
            let status = end.namespace.command("ethtool").args(["-K", end.name, "tx", "off"]).output()?;
            ensure!(status.status.success(), "ethtool -K {} tx off failed", end.name);
        }
        Ok(())
    }
}
