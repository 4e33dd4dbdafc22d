//! What can go wrong, and what to do about it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Revision;

/// An error of the store. Cheap to clone, because a failed group commit answers everyone who was in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the file open.
    #[error(
        "cannot open the store {path}: another process has it open; stop the other weir, or use another --data-dir"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened or made.
    #[error(
        "cannot open the store {path}: {source}; the directory must exist and be writable, and the file one that weir made"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the engine said.
        source: Arc<redb::Error>,
    },
    /// The file was written by a version that keeps its data differently.
    #[error(
        "the store {path} has format {found}, and this weir reads format {expected}: use the weir that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that the file says it has.
        found: u64,
        /// The format that this version reads and writes.
        expected: u64,
    },
    /// A read failed.
    #[error("cannot read the store: {source}; check the disk")]
    Read {
        /// What the engine said.
        source: Arc<redb::Error>,
    },
    /// A commit failed. Whether it reached the disk is unknown, so the store accepts nothing more until it is reopened.
    #[error(
        "cannot commit to the store: {source}; check the disk and its free space, then restart the apiserver"
    )]
    Commit {
        /// What the engine said.
        source: Arc<redb::Error>,
    },
    /// The store has stopped, on purpose or after a failed commit.
    #[error("the store has stopped; the log has the reason")]
    Closed,
    /// A transaction writes the same key twice.
    #[error("a transaction writes the key {key:?} twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A transaction is larger than one may be.
    #[error("a transaction of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its keys and values together.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The history that was asked for is not kept any more.
    #[error("revision {requested} is compacted; the oldest that can be watched from is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision a watch can start after.
        oldest: Revision,
    },
    /// A revision that has not been reached.
    #[error("revision {requested} is in the future; the head is {head}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest there is.
        head: Revision,
    },
}
