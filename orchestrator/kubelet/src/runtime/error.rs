//! Why a runtime call failed, in words that an Event on the pod can carry.

use std::{io, path::PathBuf};

use crate::error::{Refused, refused};

/// The result of a runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed runtime call: operation, object, remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is not on this machine. The kubelet shows it as `ErrImagePull` or `ErrImageNeverPull`.
    #[error("image \"{reference}\" is not on this node; import it with: weir image import FILE")]
    ImageNotFound {
        /// The reference as it was asked for.
        reference: String,
    },
    /// The image store failed.
    #[error(transparent)]
    Image(#[from] crate::image::Error),
    /// The specification asks for what cannot be. The kubelet shows it as `CreateContainerConfigError`.
    #[error("{object}: {problem}")]
    Invalid {
        /// The container, sandbox or field.
        object: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No such sandbox or container.
    #[error("{kind} {id} does not exist")]
    NotFound {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// The id asked for.
        id: String,
    },
    /// The call does not fit the container's state, for instance a command in one that has exited.
    #[error("cannot {operation} container {id}: it is {state}")]
    State {
        /// The verb.
        operation: &'static str,
        /// The container.
        id: String,
        /// The state it is in.
        state: &'static str,
    },
    /// The container's command could not be started. The kubelet shows it as `RunContainerError` / `StartError`.
    #[error("failed to start container \"{container}\": {reason}")]
    Start {
        /// The container's name in the pod.
        container: String,
        /// What the container process reported.
        reason: String,
    },
    /// A command could not be run in a container.
    #[error("failed to run the command in container \"{container}\": {reason}")]
    Exec {
        /// The container's name in the pod.
        container: String,
        /// What the process reported.
        reason: String,
    },
    /// The CNI plugin refused or failed. The kubelet shows it as `FailedCreatePodSandBox`.
    #[error("CNI {command} by {plugin} for sandbox {sandbox} failed: {reason}")]
    Cni {
        /// ADD or DEL.
        command: &'static str,
        /// The plugin's program.
        plugin: String,
        /// The sandbox.
        sandbox: String,
        /// The plugin's own message.
        reason: String,
    },
    /// Something did not come about in the time it has.
    #[error("{operation} of {object} took longer than {limit_ms} ms")]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// The container or sandbox.
        object: String,
        /// The bound.
        limit_ms: u64,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] Refused),
}

impl Error {
    /// [`refused`], as this error.
    pub(crate) fn io<S: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(S) -> Self {
        refused(operation, path)
    }
}
