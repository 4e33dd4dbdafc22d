//! Why the API server cannot start, or had to stop.

use std::net::SocketAddr;

/// An error of the API server as a whole. What a single request did wrong is a `Status` in its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificates cannot be made.
    #[error(transparent)]
    Pki(#[from] crate::pki::Error),
    /// The store cannot be opened, or failed while running.
    #[error(transparent)]
    Store(#[from] weir_store::Error),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] crate::serve::TlsError),
    /// The key for service accounts cannot be used.
    #[error(transparent)]
    ServiceAccountKey(#[from] crate::authn::KeyError),
    /// The token file cannot be used.
    #[error(transparent)]
    TokenFile(#[from] crate::authn::TokenFileError),
    /// The port cannot be had.
    #[error(
        "cannot listen on {address}: {source}; another server has the port, or the address is not this machine's: see --port and --bind-address"
    )]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// An object that every cluster has cannot be made.
    #[error("cannot make {what}: {status}")]
    Bootstrap {
        /// The object.
        what: String,
        /// Why not.
        status: weir_api::Status,
    },
    /// A part of the server ended that should not have.
    #[error("the apiserver stopped: {0} ended unexpectedly; the log has the reason")]
    Stopped(&'static str),
}
