//! One `weir up` on a machine made of namespaces.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{Cgroup, Link, Namespace, get};

/// The node's address on its uplink.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The address of the machine outside.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// The node's name.
pub const NODE_NAME: &str = "node";
/// The line of `weir up` that says all is there.
const READY: &str = "all roles run";
/// Longest wait for that line.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// Longest wait for `weir up` to end.
const END_DEADLINE: Duration = Duration::from_mins(1);
/// Pause between two looks at something that only looking shows.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Lines of each role's log that a failure shows.
const LOG_LINES: usize = 15;

/// What a cluster is made of.
#[derive(Debug)]
pub struct Options {
    /// The executable.
    pub weir: PathBuf,
    /// Archives to import before the start.
    pub images: Vec<PathBuf>,
    /// More flags for `weir up`.
    pub flags: Vec<String>,
}

impl Options {
    /// From the environment that `cargo xtask test cluster` sets.
    pub fn from_environment() -> Result<Self> {
        let path = |variable: &str| {
            std::env::var_os(variable).map(PathBuf::from).with_context(|| {
                format!("{variable} is not set: run these tests with cargo xtask test cluster")
            })
        };
        Ok(Self { weir: path("WEIR")?, images: vec![path("WEIR_ECHO_IMAGE")?], flags: Vec::new() })
    }
}

/// A running cluster of one node, and a machine outside it.
#[derive(Debug)]
pub struct Cluster {
    weir: PathBuf,
    /// More flags for the next `weir up`.
    pub flags: Vec<String>,
    up: Option<Child>,
    /// When `weir up` was started.
    pub started: Instant,
    // Dropped in this order: files and cgroup after the processes, namespaces last.
    directory: TempDir,
    cgroup: Cgroup,
    /// Where the node is.
    pub node: Arc<Namespace>,
    /// Where clients outside are.
    pub outside: Arc<Namespace>,
}

impl Cluster {
    /// Makes the machine, without starting Weir on it.
    pub fn prepare(options: Options) -> Result<Self> {
        let node = Namespace::new()?;
        let outside = Namespace::new()?;
        Link::connect(
            Link { namespace: &node, name: "uplink0", address: &format!("{NODE_ADDRESS}/24") },
            Link { namespace: &outside, name: "eth0", address: &format!("{CLIENT_ADDRESS}/24") },
        )?;
        let directory = TempDir::with_prefix("weir-cluster-")?;
        let mark = directory.path().file_name().expect("a temporary directory has a name");
        let cgroup = Cgroup::new(&mark.to_string_lossy())?;
        let cluster = Self {
            weir: options.weir,
            flags: options.flags,
            up: None,
            started: Instant::now(),
            directory,
            cgroup,
            node: Arc::new(node),
            outside: Arc::new(outside),
        };
        for image in options.images {
            let data_dir = cluster.data_dir();
            let mut import =
                cluster.weir(&["image", "import", "--data-dir", path_str(&data_dir)?, path_str(&image)?]);
            succeed(&mut import)?;
        }
        Ok(cluster)
    }

    /// Makes the machine and starts Weir on it; returns when all roles run.
    pub fn start(options: Options) -> Result<Self> {
        let mut cluster = Self::prepare(options)?;
        cluster.up()?;
        cluster.wait_for_line(READY)?;
        Ok(cluster)
    }

    /// Starts `weir up` and returns at once.
    pub fn up(&mut self) -> Result<()> {
        let mut command = self.up_command()?;
        self.started = Instant::now();
        self.up = Some(command.stdout(Stdio::piped()).spawn().context("starting weir up")?);
        Ok(())
    }

    /// `weir up` with this cluster's flags, not yet started.
    pub fn up_command(&self) -> Result<Command> {
        self.up_command_through(&[])
    }

    /// The same, started by another program that changes what it finds: `setpriv`, `unshare`.
    pub fn up_command_through(&self, program: &[&str]) -> Result<Command> {
        let mut command = self.on_node("env");
        command.args(program).arg(&self.weir).args([
            "up",
            "--uplink=uplink0",
            &format!("--node-ip={NODE_ADDRESS}"),
            &format!("--node-name={NODE_NAME}"),
            &format!("--data-dir={}", path_str(&self.data_dir())?),
            &format!("--run-dir={}", path_str(&self.run_dir())?),
            &format!("--cgroup-root={}", path_str(self.cgroup.path())?),
        ]);
        command.args(&self.flags);
        Ok(command)
    }

    /// Waits until `weir up` says that it listens on the API port, or that everything runs.
    pub fn wait_for_line(&mut self, words: &str) -> Result<()> {
        let up = self.up.as_mut().context("weir up was not started")?;
        let output = up.stdout.take().context("weir up's output is being read already")?;
        let (found, wait) = mpsc::channel();
        let wanted = words.to_owned();
        // The reader goes on to the end, so that weir up never blocks on a full pipe.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                eprintln!("{line}");
                if line.contains(&wanted) {
                    let _ = found.send(());
                }
            }
        });
        wait.recv_timeout(START_DEADLINE)
            .map_err(|_| anyhow!("weir up did not say {words:?}\n{}", self.logs()))
    }

    /// Sends Ctrl-C to `weir up`, waits, and expects a clean exit.
    pub fn down(&mut self) -> Result<()> {
        let Some(mut up) = self.up.take() else { return Ok(()) };
        kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGINT)?;
        let asked = Instant::now();
        loop {
            if let Some(status) = up.try_wait()? {
                ensure!(status.success(), "weir up ended with {status}");
                return Ok(());
            }
            if asked.elapsed() > END_DEADLINE {
                up.kill()?;
                bail!("weir up did not end within {END_DEADLINE:?}\n{}", self.logs());
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// A name that stands in every path this cluster makes.
    pub fn mark(&self) -> &str {
        self.cgroup.name()
    }

    /// The cluster's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The cluster's run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// A command on the node: in its namespace and in its cgroup, as any process of the host.
    pub fn on_node(&self, program: &str) -> Command {
        let mut command = self.node.command("sh");
        let procs = self.cgroup.path().join("cgroup.procs");
        command.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(procs).arg(program);
        command
    }

    /// A `weir` command on the node.
    pub fn weir(&self, words: &[&str]) -> Command {
        let mut command = self.on_node("env");
        command.arg(&self.weir).args(words);
        command
    }

    /// Runs kubectl as the administrator; an error carries what it said, and if it waited in vain, what the cluster
    /// says.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        succeed(self.kubectl_command().args(words)).map_err(|error| {
            if error.to_string().contains("timed out waiting") { error.context(self.state()) } else { error }
        })
    }

    /// The node as it describes itself, and every event.
    fn state(&self) -> String {
        [&["describe", "nodes"][..], &["get", "events", "--all-namespaces"]]
            .map(|words| {
                succeed(self.kubectl_command().args(words)).unwrap_or_else(|error| error.to_string())
            })
            .join("\n")
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let mut kubectl = self.kubectl_command();
        kubectl
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("starting kubectl")?;
        child.stdin.take().expect("standard input was asked for").write_all(manifest.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// kubectl as the administrator, not yet started.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.on_node("kubectl");
        command
            .env("KUBECONFIG", self.data_dir().join("kubeconfig/admin.kubeconfig"))
            .env("HOME", self.directory.path());
        command
    }

    /// Asks through the ingress, from outside, until the answer is 200.
    pub fn wait_for_200(&self, host: &str, path: &str, deadline: Duration) -> Result<()> {
        let ingress = SocketAddr::from((NODE_ADDRESS, 80));
        self.outside.run(|| {
            let started = Instant::now();
            loop {
                let last = match get(ingress, host, path, Duration::from_secs(5)) {
                    Ok(response) if response.status == 200 => return Ok(()),
                    Ok(response) => format!("{}: {}", response.status, response.body.trim()),
                    Err(error) => format!("{error:#}"),
                };
                ensure!(started.elapsed() < deadline, "no 200 from {host}{path} within {deadline:?}: {last}");
                thread::sleep(LOOK_AGAIN);
            }
        })
    }

    /// The process id of a role; one that is just being started again is waited for.
    pub fn role(&self, role: &str) -> Result<Pid> {
        let up = self.up.as_ref().context("weir up was not started")?;
        let asked = Instant::now();
        loop {
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", up.id()))?;
            for child in children.split_whitespace() {
                let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                if words.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes()) {
                    return Ok(Pid::from_raw(child.parse()?));
                }
            }
            ensure!(
                asked.elapsed() < START_DEADLINE,
                "no process of role {role} below weir up\n{}",
                self.logs()
            );
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Proportional set size of every process of Weir, in bytes: shared pages are counted once.
    pub fn pss_bytes(&self) -> Result<u64> {
        let mut kilobytes = 0;
        for process in fs::read_dir("/proc")?.flatten() {
            let Ok(executable) = fs::read_link(process.path().join("exe")) else { continue };
            let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if executable != self.weir || !String::from_utf8_lossy(&words).contains(self.mark()) {
                continue;
            }
            let rollup = fs::read_to_string(process.path().join("smaps_rollup"))?;
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            let pss =
                pss.and_then(|rest| rest.split_whitespace().next()).context("smaps_rollup has no Pss")?;
            kilobytes += pss.parse::<u64>()?;
        }
        Ok(kilobytes * 1024)
    }

    /// The last lines of every role's log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for log in fs::read_dir(self.data_dir().join("roles")).into_iter().flatten().flatten() {
            let content = fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<_> = content.lines().collect();
            let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            let _ = writeln!(text, "--- {}\n{last}", log.path().display());
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.down() {
            eprintln!("ending the cluster: {error:#}");
        }
    }
}

fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{}: {}{}",
        command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
