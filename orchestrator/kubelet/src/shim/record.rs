//! The files of a container's directory, and what goes over the shim's sockets.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The shim's own configuration, beside OCI's `config.json`.
pub(crate) const CONFIG_FILE: &str = "shim.json";
/// Exists from the moment the container's command runs.
pub(crate) const RUNNING_FILE: &str = "running.json";
/// Exists from the moment the container is over.
pub(crate) const EXIT_FILE: &str = "exit.json";
/// Takes connections for as long as the shim lives.
pub(crate) const SOCKET_FILE: &str = "shim.sock";
/// Is there when everything shall end: a shim that has not begun does not begin.
pub(crate) const ENDING_FILE: &str = "ending";
/// Where the stage that creates leaves the process id of the container's first process.
pub(crate) const PID_FILE: &str = "pid";
/// Where the stage that creates leaves the reason if it fails.
pub(crate) const FAILURE_FILE: &str = "failure";
/// libcontainer's own state of the container.
pub(crate) const LIBCONTAINER_DIRECTORY: &str = "oci";

/// The exit code of a container whose command could not be started; containerd's choice.
pub(crate) const EXIT_NOT_STARTED: i32 = 128;

/// What the shim needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    /// The container's id.
    pub(crate) id: String,
    /// The container's cgroup, relative to the hierarchies' mount points.
    pub(crate) cgroup: PathBuf,
    /// Where the log goes.
    pub(crate) log_path: PathBuf,
    /// The log is rotated when it reaches this size.
    pub(crate) log_max_size_bytes: u64,
    /// So many log files there are at most, the current one included.
    pub(crate) log_max_files: u32,
    /// Stdin stays open.
    pub(crate) stdin: bool,
    /// See [`ContainerSpec::oom_score_adj`](crate::runtime::ContainerSpec::oom_score_adj).
    pub(crate) oom_score_adj: Option<i32>,
}

/// The container runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Its first process.
    pub(crate) pid: i32,
    /// The shim.
    pub(crate) shim_pid: u32,
    /// When its command began to run.
    pub(crate) started_at: Timestamp,
}

/// The container is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "an exit code is called exit code")]
pub(crate) struct Exit {
    /// The exit code, or 128 + signal.
    pub(crate) exit_code: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// The kernel killed for want of memory.
    pub(crate) oom_killed: bool,
    /// When its command began to run, if it did.
    pub(crate) started_at: Option<Timestamp>,
    /// When it ended.
    pub(crate) finished_at: Timestamp,
    /// Why it never ran, or that its end was not seen.
    pub(crate) message: Option<String>,
}

/// What a shim says: a line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// The command runs.
    Started(Running),
    /// The command could not be started; the record follows.
    Failed {
        /// Why.
        reason: String,
    },
    /// How a command run by `shim exec` ended.
    Executed {
        /// Its exit code, or 128 + signal.
        exit_code: i32,
    },
    /// A command run by `shim exec` took too long and was killed.
    TimedOut,
}

/// What a shim is told: a line of JSON.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Send a signal to the container's first process. The shim does it, because the process id is safe with nobody
    /// but the parent.
    Signal(i32),
    /// Kill everything in the container.
    Kill,
}

/// Replaces a record as a whole. The directory is in memory, so there is nothing to sync.
pub(crate) fn write(directory: &Path, file: &str, record: &impl Serialize) -> io::Result<()> {
    let aside = directory.join(format!("{file}.new"));
    fs::write(&aside, serde_json::to_vec(record)?)?;
    fs::rename(aside, directory.join(file))
}

/// Reads a record; none if there is no such file.
pub(crate) fn read<T: DeserializeOwned>(directory: &Path, file: &str) -> io::Result<Option<T>> {
    match fs::read(directory.join(file)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A message or an order as its line.
pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("messages have only text keys");
    line.push(b'\n');
    line
}
