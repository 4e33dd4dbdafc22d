//! Why the kubelet as a whole cannot start or go on. What concerns one pod is an Event on that pod instead.

use std::{io, path::PathBuf};

/// The result of a kubelet operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the kubelet: operation, object, remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting cannot be used.
    #[error("{flag}: {problem}; set it explicitly")]
    Setting {
        /// The flag to set.
        flag: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The system refused a file or directory.
    #[error(transparent)]
    Io(#[from] Refused),
    /// The address of the HTTPS server is taken or not ours.
    #[error("cannot listen on {address}: {source}; choose another with --port or --address")]
    Listen {
        /// What was asked for.
        address: std::net::SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("cannot use {path}: {problem}")]
    Certificate {
        /// The PEM file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The apiserver refused what the node cannot live without.
    #[error("cannot {operation}: {source}")]
    Api {
        /// The verb and the object.
        operation: &'static str,
        /// The apiserver's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// Volumes of pods cannot be taken away.
    #[error("volumes: {0}")]
    Volumes(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The container runtime cannot be used.
    #[error("container runtime: {0}")]
    Runtime(#[from] crate::runtime::Error),
}

/// What the system refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", path.display())]
pub struct Refused {
    /// The verb.
    pub operation: &'static str,
    /// The file, directory, or program.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// Wraps a system error with the verb and the object; made for `map_err`.
pub(crate) fn refused<S: Into<io::Error>, E: From<Refused>>(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(S) -> E {
    let path = path.into();
    move |source| Refused { operation, path, source: source.into() }.into()
}

impl Error {
    /// [`refused`], as this error.
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        refused(operation, path)
    }

    /// Wraps an answer of the apiserver with what was asked.
    pub(crate) fn api(operation: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { operation, source: Box::new(source) }
    }
}
