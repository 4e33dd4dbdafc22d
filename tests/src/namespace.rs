//! Network namespaces and the links between them, as guards.

use std::{
    fs::File,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// A network namespace with only its loopback, deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose name no other test has.
    pub fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("weir-{role}-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command that will run inside, in the machine's mount namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs `ip` with these words inside.
    pub fn ip(&self, words: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], words].concat())
    }

    /// Runs `work` on a thread that has entered the namespace, to the end.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter()?;
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        let file = File::open(self.path()).with_context(|| format!("opening namespace {}", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
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
        one.namespace.ip(&[
            "link",
            "add",
            one.name,
            "type",
            "veth",
            "peer",
            "name",
            other.name,
            "netns",
            other.namespace.name(),
        ])?;
        for end in [one, other] {
            end.namespace.ip(&["address", "add", end.address, "dev", end.name])?;
            end.namespace.ip(&["link", "set", end.name, "up"])?;
            let status = end.namespace.command("ethtool").args(["-K", end.name, "tx", "off"]).output()?;
            ensure!(status.status.success(), "ethtool -K {} tx off failed", end.name);
        }
        Ok(())
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("starting ip (iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
