//! The bench in a process that may end at any time: its parent, which a Ctrl-C spares, clears up behind it.
//!
//! Namespaces go with the process, and so do pinned maps, programs and links, since they are mounted in a mount namespace
//! of its own. What is left are directories.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, Signal},
};

/// The word that makes this executable the child: `measure [PART…]`.
pub(crate) const WORD: &str = "measure";

/// The parent's whole life.
pub(crate) fn supervise(words: &[String]) -> ExitCode {
    // What the child and those behind it make in the way of directories is in here.
    let directory = tempfile::Builder::new().prefix("weir-bench-").tempdir().expect("a directory");
    // The child starts with none blocked.
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM])
        .thread_block()
        .expect("a thread may block its signals");
    let own = std::env::current_exe().expect("this executable");
    let status = Command::new(own).arg(WORD).args(words).env("TMPDIR", directory.path()).status();
    let status = status.expect("this executable starts");
    remove_cgroups(directory.path());
    if let Some(signal) = status.signal() {
        eprintln!("ended by signal {signal}, and cleared up");
    }
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Cgroups have the names of the run directories.
fn remove_cgroups(directory: &std::path::Path) {
    let config = weir_dataplane::Config::default();
    let Ok(Some(root)) = weir_dataplane::node::cgroup_root(&config) else { return };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // One that is gone was removed by its owner.
        let _ = fs::remove_dir(root.join(entry.file_name()));
    }
}

/// What ends the child and not its parent.
fn endings() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM])
}

/// Makes this process the child: it ends when it is told to, and its mounts are nobody else's. Call it before there is a
/// second thread.
pub(crate) fn become_child() {
    // The parent's mask came along.
    endings().thread_unblock().expect("a thread may unblock its signals");
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("mounts can be made private");
}
