//! The stage that makes the container's first process with libcontainer, starts it, and ends.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};

use super::{
    payload::Payload,
    record::{self, Config},
};

/// Leaves the reason in [`record::FAILURE_FILE`] if it fails; stdout and stderr are already the container's.
pub(super) fn run(directory: &Path) -> bool {
    match create(directory) {
        Ok(()) => true,
        Err(reason) => {
            fs::write(directory.join(record::FAILURE_FILE), reason).ok();
            false
        }
    }
}

fn create(directory: &Path) -> Result<(), String> {
    let config: Config = record::read(directory, record::CONFIG_FILE)
        .and_then(|config| config.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|e| format!("cannot read {} in {}: {e}", record::CONFIG_FILE, directory.display()))?;
    if let Some(adjustment) = config.oom_score_adj {
        // Lowering needs CAP_SYS_RESOURCE, and a container that the kernel may kill early is better than none;
        // libcontainer would give up.
        fs::write("/proc/self/oom_score_adj", adjustment.to_string()).ok();
    }
    let (mut failure, pipe) = io::pipe().map_err(|e| format!("cannot make a pipe: {e}"))?;
    let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(pipe)));
    let library = directory.join(record::LIBCONTAINER_DIRECTORY);
    let container = ContainerBuilder::new(config.id, SyscallType::default())
        .with_executor(Payload { failure: Some(pipe) })
        .with_root_path(library)
        .and_then(|builder| builder.with_pid_file(Some(directory.join(record::PID_FILE))))
        .and_then(ContainerBuilder::validate_id)
        .and_then(|builder| builder.as_init(directory).with_systemd(false).build());
    let mut container = container.map_err(|e| chain(&e))?;
    container.start().map_err(|e| chain(&e))?;
    // Ends without a word when the last copy of the pipe is closed by a successful execve.
    let mut reason = String::new();
    failure.read_to_string(&mut reason).map_err(|e| format!("cannot learn whether it started: {e}"))?;
    if reason.is_empty() { Ok(()) } else { Err(reason) }
}

/// An error with its causes. libcontainer repeats causes in some messages; each is told once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}
