//! `weir ingress` with the user, the capabilities, the file system and the filter of system calls that a container or a unit
//! leaves it.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use weir_tests::Namespace;

/// Longer than an orderly end takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// How it is to run.
pub(super) struct Place<'a> {
    pub(super) namespace: &'a Namespace,
    /// The only directory of this machine's that it sees: a kubeconfig, `serviceaccount`, `runtime`, `notify`.
    pub(super) directory: &'a Path,
    /// Where the program is.
    pub(super) program: &'a str,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(&'a str, String)>,
    /// User and group.
    pub(super) id: u32,
    /// As `setpriv` writes them: `net_bind_service`.
    pub(super) capabilities: &'a [String],
    /// Whether there is a runtime directory, and the kubeconfig is a credential; a pod has a service account's files.
    pub(super) is_unit: bool,
    /// System calls that it may make, by name; all, if none is given.
    pub(super) calls: &'a [String],
}

/// A file system of its own: read-only, with nothing of the machine's temporary files.
const SHUT: &str = r#"
set -e
mount --bind "$DIRECTORY" /mnt
mount -t tmpfs -o mode=755 tmpfs "$(dirname "$PROGRAM")"
touch "$PROGRAM"
mount --bind "$WEIR" "$PROGRAM"
mount -t tmpfs -o mode=755 tmpfs /run
if [ "$UNIT" = 1 ]; then
  mkdir -p /run/weir-ingress /run/credentials
  mount --bind /mnt/runtime /run/weir-ingress
  install -m 0400 -o "$ID" /mnt/kubeconfig /run/credentials/kubeconfig
else
  mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
  mount --bind /mnt/serviceaccount /var/run/secrets/kubernetes.io/serviceaccount
fi
for covered in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o ro tmpfs "$covered"; done
for shown in /run "$(dirname "$PROGRAM")" /mnt /; do mount -o remount,bind,ro "$shown"; done
cd /
unset DIRECTORY PROGRAM WEIR UNIT ID
exec "$@"
"#;

/// Lets through the system calls that are named, answers others with EPERM, and becomes what it is told to be. As systemd does
/// it: libseccomp makes the filter, and a name that this machine does not have is left out.
const FILTER: &str = r#"
import ctypes, errno, os, sys
seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
seccomp.seccomp_init.restype = ctypes.c_void_p
seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
seccomp.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
context = seccomp.seccomp_init(0x00050000 | errno.EPERM)
for name in sys.argv[1].split(","):
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0 and seccomp.seccomp_rule_add(context, 0x7FFF0000, number, 0) != 0:
        sys.exit("no rule for " + name)
if seccomp.seccomp_load(context) != 0:
    sys.exit("the filter is not taken")
os.execv(sys.argv[2], sys.argv[2:])
"#;

/// A running ingress, killed on drop.
pub(super) struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    pub(super) fn start(place: &Place<'_>, name: &str) -> Self {
        let added: Vec<String> = place.capabilities.iter().map(|it| format!(",+{it}")).collect();
        let added = added.concat();
        let id = place.id.to_string();
        let log = place.directory.join(format!("{name}.log"));
        let mut command = place.namespace.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", SHUT, "sh"])
            .args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"])
            .arg(format!("--inh-caps=-all{added}"))
            .arg(format!("--ambient-caps=-all{added}"))
            .arg(format!("--bounding-set=-all{added}"));
        if !place.calls.is_empty() {
            command.args(["/usr/bin/python3", "-I", "-c", FILTER, &place.calls.join(",")]);
        }
        command
            .arg(place.program)
            .args(&place.args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DIRECTORY", place.directory)
            .env("PROGRAM", place.program)
            .env("WEIR", env!("CARGO_BIN_EXE_weir"))
            .env("UNIT", if place.is_unit { "1" } else { "0" })
            .env("ID", &id)
            .envs(place.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .process_group(0);
        Self { child: command.spawn().expect("nsenter and unshare are util-linux's"), log }
    }

    /// A field of `/proc/PID/status`.
    pub(super) fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.expect("a status has it").trim().to_owned()
    }

    /// What it has written to its standard error.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// Asks it to end, as the kubelet and systemd do.
    pub(super) fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it was started here") {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it was started here").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
