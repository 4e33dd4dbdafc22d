//! The container by a real runtime, `crun`, from a bundle such as a kubelet's runtime makes of a pod and an image: a file system
//! of nothing but what is in the image, the runtime's default filter of system calls, the pod's network.

use std::{
    fs::{self, File},
    iter,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};
use weir_tests::Namespace;

/// Longer than an orderly end takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// What `RuntimeDefault` is to CRI-O and Podman.
const DEFAULT_FILTER: &str = "/usr/share/containers/seccomp.json";
/// By which other programs know authorities, in the image as on this machine.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How it is to run.
pub(super) struct Place<'a> {
    pub(super) namespace: &'a Namespace,
    /// For its bundle and its log.
    pub(super) directory: &'a Path,
    /// Its service account's files: all that it sees of this machine beside the image.
    pub(super) account: &'a Path,
    /// Behind the image's entrypoint.
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(&'a str, String)>,
    /// User and group.
    pub(super) id: u32,
    /// Without `CAP_`, in lower case.
    pub(super) capabilities: &'a [String],
    /// Of the pod's network.
    pub(super) sysctls: Map<String, Value>,
}

/// Runs the runtime as the first process of a PID namespace, so that all goes with it, and lets it see only version 2 of cgroups:
/// it takes no mixture.
const RUN: &str = r#"
set -e
mount -t proc proc /proc
test "$(stat --file-system --format=%T /sys/fs/cgroup)" = cgroup2fs || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
touch /run/network
mount --bind /proc/self/ns/net /run/network
exec crun --root /run/crun --cgroup-manager disabled run --bundle "$BUNDLE" ingress
"#;

/// A running ingress, killed on drop.
pub(super) struct Process {
    /// `unshare`, whose only child is the runtime.
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(super) fn start(place: &Place<'_>, name: &str) -> Self {
        let bundle = place.directory.join(format!("{name}.bundle"));
        fs::create_dir_all(bundle.join("rootfs")).expect("a bundle");
        fs::write(bundle.join("config.json"), place.config().to_string()).expect("a bundle");
        let log = place.directory.join(format!("{name}.log"));
        // It ends with the test, also where that is killed.
        let mut command = place.namespace.command("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--kill-child", "--ipc", "--uts", "sh", "-c", RUN])
            .env("BUNDLE", bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log"))
            .process_group(0);
        Self { child: command.spawn().expect("nsenter, setpriv and unshare are util-linux's"), log }
    }

    /// The runtime's process, by the number that it has here.
    fn runtime(&self) -> Option<String> {
        let child = self.child.id();
        let children = fs::read_to_string(format!("/proc/{child}/task/{child}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    /// What a program says that runs beside the runtime.
    fn beside(&self, program: &str, words: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.runtime().expect("it runs"), "--all", program]).args(words);
        let output = command.output().expect("nsenter is util-linux's");
        assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn crun(&self, words: &[&str]) -> String {
        self.beside("crun", &[&["--root", "/run/crun"], words].concat())
    }

    /// A field of `/proc/PID/status`.
    pub(super) fn status(&self, field: &str) -> String {
        let state: Value = serde_json::from_str(&self.crun(&["state", "ingress"])).expect("JSON");
        let status = self.beside("cat", &[&format!("/proc/{}/status", state["pid"])]);
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.expect("a status has it").trim().to_owned()
    }

    /// What it has written to its standard error.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// Asks it to end, as the kubelet does.
    pub(super) fn terminate(&self) {
        self.crun(&["kill", "ingress", "TERM"]);
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
        if thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
        // Who waits for the first of a PID namespace has waited for all, and their ports are free.
        let killed = self.runtime().map(|runtime| Command::new("kill").args(["-KILL", &runtime]).status());
        if !killed.is_some_and(|status| status.is_ok_and(|status| status.success())) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Place<'_> {
    /// The runtime's configuration (OCI runtime specification); mounts and hidden paths are containerd's defaults.
    fn config(&self) -> Value {
        let capabilities: Vec<String> =
            self.capabilities.iter().map(|it| format!("CAP_{}", it.to_uppercase())).collect();
        let env: Vec<String> = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let args: Vec<&str> = iter::once("/weir").chain(self.args.iter().map(String::as_str)).collect();
        let own = ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
        let namespaces: Vec<Value> =
            own.into_iter().chain([json!({"type": "network", "path": "/run/network"})]).collect();
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": self.id, "gid": self.id},
                "cwd": "/",
                "args": args,
                "env": env,
                // A user other than root has none of them effective.
                "capabilities": {"bounding": capabilities},
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": self.mounts(),
            "linux": {
                "namespaces": namespaces,
                "sysctl": self.sysctls,
                "seccomp": default_filter(),
                "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    /// What is in every container, and in this one; files by themselves stand for the image's one layer.
    fn mounts(&self) -> Vec<Value> {
        let mount = |kind: &str, at: &str, options: &str| {
            let options: Vec<&str> = options.split(',').collect();
            json!({"destination": at, "type": kind, "source": kind, "options": options})
        };
        let show = |from: &Path, at: &str| json!({"destination": at, "type": "bind", "source": from, "options": ["bind", "ro", "nosuid", "nodev"]});
        let weir = Path::new(env!("CARGO_BIN_EXE_weir"));
        let mut mounts = vec![
            mount("proc", "/proc", "nosuid,noexec,nodev"),
            mount("tmpfs", "/dev", "nosuid,strictatime,mode=755,size=65536k"),
            mount("devpts", "/dev/pts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"),
            mount("tmpfs", "/dev/shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
            mount("mqueue", "/dev/mqueue", "nosuid,noexec,nodev"),
            mount("sysfs", "/sys", "nosuid,noexec,nodev,ro"),
            mount("cgroup", "/sys/fs/cgroup", "nosuid,noexec,nodev,relatime,ro"),
            show(self.account, "/var/run/secrets/kubernetes.io/serviceaccount"),
            show(weir, "/weir"),
            show(Path::new(AUTHORITIES), AUTHORITIES),
        ];
        let ldd = Command::new("ldd").arg(weir).output().expect("ldd is libc's");
        let ldd = String::from_utf8(ldd.stdout).expect("UTF-8");
        let libraries =
            ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
        mounts.extend(libraries.map(|library| show(Path::new(library), library)));
        mounts
    }
}

/// The filter for a process without capabilities on this kind of machine. The profile's rules say what they depend on, those of
/// the specification do not.
fn default_filter() -> Value {
    let text = fs::read_to_string(DEFAULT_FILTER);
    let text = text.expect("the profile (Debian: golang-github-containers-common)");
    let profile: Value = serde_json::from_str(&text).expect("JSON");
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let rules = profile["syscalls"].as_array().expect("rules").iter().filter(|rule| {
        let machines = names(&rule["includes"]["arches"]);
        names(&rule["includes"]["caps"]).is_empty()
            && (machines.is_empty() || machines.iter().any(|it| it == machine))
            && !names(&rule["excludes"]["arches"]).iter().any(|it| it == machine)
    });
    let kept = |object: &Value, keys: &[&str]| -> Value {
        let kept = keys.iter().filter(|key| !object[**key].is_null());
        kept.map(|key| ((*key).to_owned(), object[*key].clone())).collect::<Map<_, _>>().into()
    };
    let rules: Vec<Value> = rules.map(|rule| kept(rule, &["names", "action", "args", "errnoRet"])).collect();
    let mut filter = kept(&profile, &["defaultAction", "defaultErrnoRet"]);
    filter["syscalls"] = rules.into();
    filter
}
