//! The last step in a container: becoming its command.

use std::{fs::File, io::Write, os::unix::process::CommandExt, process::Command, sync::Arc};

use libcontainer::{
    oci_spec::runtime::Spec,
    workload::{Executor, ExecutorError, ExecutorValidationError, default},
};
use nix::sys::signal::SigSet;

/// Gives the command the signal mask and dispositions that a program expects (here, signals are blocked and SIGPIPE is
/// ignored; the standard library undoes the latter), and reports a failure through a pipe that closes by itself when
/// it succeeds.
#[derive(Clone)]
pub(super) struct Payload {
    /// Where the reason goes.
    pub(super) failure: Option<Arc<File>>,
}

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec.process().as_ref().and_then(|process| process.args().as_ref());
        let (program, args) = args.and_then(|args| args.split_first()).ok_or(ExecutorError::InvalidArg)?;
        SigSet::empty().thread_set_mask().map_err(|errno| ExecutorError::Other(errno.to_string()))?;
        let error = Command::new(program).args(args).exec();
        let reason = format!("cannot execute \"{program}\": {error}");
        if let Some(mut pipe) = self.failure.as_deref() {
            // If nobody reads it, the exit code still says that something is wrong.
            pipe.write_all(reason.as_bytes()).ok();
        }
        Err(ExecutorError::Other(reason))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        default::get_executor().validate(spec)
    }
}
