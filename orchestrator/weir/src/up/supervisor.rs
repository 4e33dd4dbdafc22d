//! Roles as child processes: started, watched, restarted with backoff, ended in order.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::role::{NOTIFY_SOCKET, SUPERVISED};

/// Wait before the first restart; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A role that ran this long starts over with the first backoff.
const BACKOFF_RESET: Duration = Duration::from_mins(1);
/// How long a role may take to end before it is killed.
const END_DEADLINE: Duration = Duration::from_secs(20);
/// A log larger than this is set aside when its role starts.
const LOG_MAX_BYTES: u64 = 10 << 20;

/// What to run: a subcommand and its flags.
pub(super) struct Role {
    pub(super) name: &'static str,
    pub(super) args: Vec<OsString>,
}

/// A role that is kept running until [`Supervised::end`].
pub(super) struct Supervised {
    name: &'static str,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

/// Where the supervisor keeps its files.
#[derive(Clone)]
pub(super) struct Places {
    /// Logs of roles, one file each.
    pub(super) logs: PathBuf,
    /// Sockets that roles report to.
    pub(super) sockets: PathBuf,
}

impl Supervised {
    /// Starts the role and its supervision.
    ///
    /// Must be called on the main thread: the kernel ties a child's death signal to the thread that started it.
    pub(super) fn start(role: Role, places: &Places) -> Result<Self> {
        let socket_path = places.sockets.join(format!("{}.sock", role.name));
        if let Err(error) = fs::remove_file(&socket_path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("removing {}", socket_path.display()));
        }
        let socket =
            UnixDatagram::bind(&socket_path).with_context(|| format!("binding {}", socket_path.display()))?;
        let (is_ready, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let name = role.name;
        let launcher = Launcher { log: places.logs.join(format!("{name}.log")), role, socket, socket_path };
        let task = tokio::task::spawn_local(launcher.keep_running(is_ready, shutdown.clone()));
        Ok(Self { name, ready, shutdown, task })
    }

    /// Waits until the role serves.
    pub(super) async fn ready(&mut self) -> Result<()> {
        self.ready.wait_for(|ready| *ready).await.with_context(|| format!("{} ended", self.name))?;
        Ok(())
    }

    /// Asks the role to end and waits for it.
    pub(super) async fn end(self) {
        self.shutdown.cancel();
        if let Err(error) = self.task.await {
            eprintln!("weir up: {}: {error}", self.name);
        }
    }
}

struct Launcher {
    role: Role,
    log: PathBuf,
    socket: UnixDatagram,
    socket_path: PathBuf,
}

impl Launcher {
    async fn keep_running(self, is_ready: watch::Sender<bool>, shutdown: CancellationToken) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            let started = Instant::now();
            let outcome = self.run_once(&is_ready, &shutdown).await;
            is_ready.send_replace(false);
            if shutdown.is_cancelled() {
                return;
            }
            if started.elapsed() >= BACKOFF_RESET {
                backoff = BACKOFF_FIRST;
            }
            eprintln!(
                "weir up: {} {}; starting it again in {backoff:?} (log: {})",
                self.role.name,
                outcome.map_or_else(|error| format!("did not start: {error:#}"), |end| self.describe(end)),
                self.log.display(),
            );
            tokio::select! {
                () = sleep(backoff) => {}
                () = shutdown.cancelled() => return,
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn run_once(
        &self,
        is_ready: &watch::Sender<bool>,
        shutdown: &CancellationToken,
    ) -> Result<ExitStatus> {
        let mut child = self.spawn()?;
        let mut message = [0; 64];
        loop {
            tokio::select! {
                status = child.wait() => return Ok(status?),
                received = self.socket.recv(&mut message) => {
                    if message[..received?].starts_with(b"READY=1") {
                        is_ready.send_replace(true);
                    }
                }
                () = shutdown.cancelled() => return end(&mut child).await,
            }
        }
    }

    fn spawn(&self) -> Result<Child> {
        let log = open_log(&self.log).with_context(|| format!("opening {}", self.log.display()))?;
        Command::new("/proc/self/exe")
            .arg0("weir")
            .arg(self.role.name)
            .args(&self.role.args)
            .env(SUPERVISED, "1")
            .env(NOTIFY_SOCKET, &self.socket_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C reaches the supervisor alone, which ends the roles in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting weir {}", self.role.name))
    }

    /// How the role ended, with its last words.
    fn describe(&self, status: ExitStatus) -> String {
        let words = fs::read_to_string(&self.log).unwrap_or_default();
        match words.lines().next_back().and_then(|line| line.strip_prefix("weir: ")) {
            Some(reason) if !status.success() => format!("ended: {reason}"),
            _ => format!("ended with {status}"),
        }
    }
}

async fn end(child: &mut Child) -> Result<ExitStatus> {
    let Some(id) = child.id() else { return Ok(child.wait().await?) };
    kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM)?;
    if let Ok(status) = timeout(END_DEADLINE, child.wait()).await {
        return Ok(status?);
    }
    child.start_kill()?;
    Ok(child.wait().await?)
}

fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_MAX_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
