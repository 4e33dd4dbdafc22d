//! `weir dataplane`, left with so many capabilities and so much of the file system as a container or unit leaves it.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weir_tests::Namespace;

use super::manifest::Capabilities;

/// Longer than a refusal takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the agent runs.
pub(crate) struct Place<'a> {
    pub(crate) namespace: &'a Namespace,
    /// A bpffs is mounted at `bpf` below it.
    pub(crate) run_dir: &'a Path,
    pub(crate) cgroup: &'a Path,
    /// Whether the kernel's settings can be written: a unit may, a container may not.
    pub(crate) settings: bool,
}

/// A running agent, killed on drop.
pub(crate) struct Agent(Child);

/// Makes everything read-only but the run directory, in a mount namespace of the process's own.
const SHUT: &str = r#"
set -e
mount --rbind "$RUN_DIR" "$RUN_DIR"
mount --rbind "$CGROUP" "$CGROUP"
mount -o remount,bind,ro "$CGROUP"
if [ "$SETTINGS" = 0 ]; then mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; fi
mount -o remount,bind,ro /
exec "$@"
"#;

impl Agent {
    /// Starts `weir` with these flags.
    pub(crate) fn start(place: &Place<'_>, capabilities: &Capabilities, flags: &[String]) -> Self {
        let set: Vec<String> = capabilities.iter().map(|name| format!("+{name}")).collect();
        let mut command = place.namespace.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", SHUT, "sh"])
            .args(["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"])
            .arg(format!("--bounding-set=-all,{}", set.join(",")))
            .arg(env!("CARGO_BIN_EXE_weir"))
            .args(flags)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUN_DIR", place.run_dir)
            .env("CGROUP", place.cgroup)
            .env("SETTINGS", if place.settings { "1" } else { "0" })
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        Self(command.spawn().expect("nsenter and unshare are util-linux's"))
    }

    /// Numbers of the capabilities that it has, as the kernel tells them.
    pub(crate) fn effective(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a status has it");
        u64::from_str_radix(line.trim(), 16).expect("a number")
    }

    /// As nothing can prevent.
    pub(crate) fn kill(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL).expect("it runs");
        self.0.wait().expect("it was started here");
    }

    /// Waits for an agent that cannot run; what it says.
    pub(crate) fn refusal(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("it was started here") {
                break status;
            }
            assert!(Instant::now() < deadline, "it runs");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(!status.success(), "{status}");
        self.said()
    }

    /// What it wrote to its log, once it has ended.
    fn said(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().expect("asked for").read_to_string(&mut text).expect("UTF-8");
        text
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if thread::panicking() {
            eprintln!("the agent said:\n{}", self.said());
        }
    }
}
