//! The stage that runs a command in a running container and waits for it.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use libcontainer::{
    container::builder::ContainerBuilder, oci_spec::runtime::Spec, syscall::syscall::SyscallType,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{self, SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    create::chain,
    payload::Payload,
    record::{self, Config, Message},
};

/// Stdin is the socket to the kubelet; stdout and stderr are the command's.
pub(super) fn run(directory: &Path, timeout_ms: u64, command: Vec<String>) -> bool {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let message = start(directory, command)
        .and_then(|(pid, signals)| wait(pid, &signals, deadline).map_err(|e| e.to_string()))
        .unwrap_or_else(|reason| Message::Failed { reason });
    let sent = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|control| UnixStream::from(control).write_all(&record::line(&message)));
    sent.is_ok()
}

fn start(directory: &Path, command: Vec<String>) -> Result<(Pid, SignalFd), String> {
    // Before there is a child, so that its end cannot be missed.
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(|e| format!("cannot block signals: {e}"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| e.to_string())?;
    let config: Config = record::read(directory, record::CONFIG_FILE)
        .and_then(|config| config.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|e| format!("cannot read {} in {}: {e}", record::CONFIG_FILE, directory.display()))?;
    let null = File::open("/dev/null").map_err(|e| format!("cannot open /dev/null: {e}"))?;
    let spec = Spec::load(directory.join("config.json")).map_err(|e| chain(&e))?;
    // libcontainer takes environment and capabilities from the container, but neither user nor directory.
    let process = spec.process().as_ref().ok_or("the container's configuration has no process")?;
    let user = process.user();
    let pid = ContainerBuilder::new(config.id, SyscallType::default())
        .with_executor(Payload { failure: None })
        .with_root_path(directory.join(record::LIBCONTAINER_DIRECTORY))
        .and_then(|builder| {
            builder
                .with_stdin(null)
                .as_tenant()
                .with_user(Some(user.uid()))
                .with_group(Some(user.gid()))
                .with_additional_gids(user.additional_gids().clone().unwrap_or_default())
                .with_cwd(Some(process.cwd().clone()))
                .with_container_args(command)
                .build()
        })
        .map_err(|e| chain(&e))?;
    Ok((Pid::from_raw(pid.as_raw()), signals))
}

fn wait(pid: Pid, signals: &SignalFd, deadline: Instant) -> io::Result<Message> {
    let control = io::stdin();
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, exit_code) => return Ok(Message::Executed { exit_code }),
            WaitStatus::Signaled(_, signal, _) => {
                return Ok(Message::Executed { exit_code: 128 + signal as i32 });
            }
            _ => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let hung_up = {
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(control.as_fd(), PollFlags::empty()),
            ];
            // Rounded up, so as not to wake just before the deadline again and again.
            poll(
                &mut fds,
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            )?;
            fds[1].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
        };
        while signals.read_signal()?.is_some() {}
        // A kubelet that does not wait for the answer any more wants no command left over.
        if hung_up || left.is_zero() {
            signal::kill(pid, Signal::SIGKILL).ok();
            waitpid(pid, None)?;
            return Ok(Message::TimedOut);
        }
    }
}
