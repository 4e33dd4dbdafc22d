//! Small networks for tests: namespaces and links that are gone when the value is, also after a panic or a kill.
//!
//! A namespace here has no name and no file: it lives as long as its descriptor does, so nothing can be left behind.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub(crate) mod echo;
pub(crate) mod node;

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with its loopback link up.
#[derive(Debug)]
pub(crate) struct NetNs {
    file: File,
}

impl NetNs {
    /// Makes one.
    ///
    /// # Panics
    /// Without the privilege to: these tests must run as root, and say so.
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("make a network namespace: these tests need root (CAP_SYS_ADMIN)");
            File::open("/proc/thread-self/ns/net").expect("open the new namespace")
        })
        .join()
        .expect("make a network namespace");
        let namespace = Self { file };
        namespace.ip("link set lo up");
        namespace
    }

    /// A path that opens the namespace while this process runs.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` on a thread inside the namespace. Sockets, commands and `/proc/sys/net` are the namespace's there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `ip ARGUMENTS` inside.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    /// Runs a command inside; it must succeed.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        self.run(|| {
            let done = Command::new(program)
                .args(arguments.split_whitespace())
                .output()
                .unwrap_or_else(|error| panic!("run {program}: {error}; it is needed for this test"));
            let errors = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{program} {arguments}: {errors}");
            String::from_utf8(done.stdout).expect("output is text")
        })
    }

    /// A veth pair from here to `other`, each end with its address (`A.B.C.D/N`) and up.
    pub(crate) fn link_to(&self, other: &NetNs, here: (&str, &str), there: (&str, &str)) {
        self.ip(&format!(
            "link add {} type veth peer name {} netns {}",
            here.0,
            there.0,
            other.path().display()
        ));
        for (namespace, (link, address)) in [(self, here), (other, there)] {
            namespace.ip(&format!("address add {address} dev {link}"));
            namespace.ip(&format!("link set {link} up"));
        }
    }
}

/// A number that no other test of this machine uses at the same time.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
