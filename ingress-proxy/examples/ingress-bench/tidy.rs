//! The bench in a process that may end at any time: its parent, which a Ctrl-C spares, ends and removes what it left behind.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::wait,
    },
    unistd::Pid,
};

use crate::process;

/// The word that makes this executable the child: `measure [PART…]`.
pub(crate) const WORD: &str = "measure";

/// The parent's whole life.
pub(crate) fn supervise(words: &[String]) -> ExitCode {
    // What the child and those behind it make in the way of files is in here.
    let directory = tempfile::Builder::new().prefix("weir-bench-").tempdir().expect("a directory");
    endings().thread_block().expect("a thread may block its signals");
    // Proxies whose parent ends become children of this process, and no one else's.
    prctl::set_child_subreaper(true).expect("any process may ask for its orphans");
    let own = std::env::current_exe().expect("this executable");
    let status = Command::new(own).arg(WORD).args(words).env("TMPDIR", directory.path()).status();
    let status = status.expect("this executable starts");
    end_orphans();
    if let Some(signal) = status.signal() {
        eprintln!("ended by signal {signal}, and cleared up");
    }
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Ends children until there are none: the end of one may bring up its own.
fn end_orphans() {
    loop {
        for child in process::children(Pid::this()) {
            // One that has ended meanwhile is waited for below.
            let _ = kill(child, Signal::SIGKILL);
        }
        if wait().is_err() {
            return;
        }
    }
}

/// What ends the child and not its parent.
fn endings() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM])
}

/// Makes this process the child: it ends when it is told to, and its network has the loopback with these addresses, and
/// nothing else. Call it before there is a second thread.
pub(crate) fn become_child(addresses: &BTreeSet<Ipv4Addr>) -> Result<()> {
    // The parent's mask came along.
    endings().thread_unblock().context("taking signals again")?;
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace: this needs root")?;
    ip("link set lo up")?;
    addresses.iter().try_for_each(|address| ip(&format!("address add {address}/32 dev lo")))
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("starting ip (iproute2)")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
