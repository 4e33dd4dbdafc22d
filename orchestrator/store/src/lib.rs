//! A revisioned key-value store with etcd's model, and the engine that keeps it in one file.
//!
//! The API server is the only caller. It needs four things of a store, and [`Store`] promises just these:
//!
//! - **One global revision.** Every transaction that changes something gets the next number; an [`Entry`] remembers
//!   the revision that created it, the one that last changed it, and how often it was changed.
//! - **Compare, then write, atomically.** A [`Txn`] names the `mod_revision` it expects of each key (absent is a
//!   revision too) and is applied whole or not at all. This is optimistic concurrency, uniqueness of names, and
//!   allocation of addresses, all in one mechanism.
//! - **Reads at the head**, by key and by prefix, in pages.
//! - **Watches from a revision**, in order and without a gap; or the answer that the past is gone
//!   ([`Error::Compacted`]), never a silent hole.
//!
//! An acknowledged transaction is on disk. Nothing is promised of one that was not acknowledged: it is there whole or
//! not at all.
//!
//! The trait is etcd's model on purpose, so that etcd can stand behind it when one machine is not enough; one suite of
//! behavioural tests (`tests/suite`) is written against the trait and run for each engine.

mod embedded;
mod error;
mod metrics;
mod model;

pub use embedded::{Embedded, Options};
pub use error::Error;
pub use metrics::Metrics;
pub use model::{
    Batch, Change, Compare, Entry, Event, Operation, Page, Range, Revision, Txn, TxnOutcome, Watch,
};

use bytes::Bytes;
use futures::future::BoxFuture;

/// A revisioned key-value store. See the crate's documentation for what each promise is for.
///
/// Object-safe, so that the engine is chosen when the API server starts and not when it is compiled.
pub trait Store: Send + Sync + 'static {
    /// Applies `txn` if every compare holds, else answers with what the compared keys hold now.
    ///
    /// When the future resolves to [`TxnOutcome::Committed`], the change is durable. A future that is dropped leaves
    /// the outcome unknown, exactly as a lost connection would.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Error>>;

    /// One page of the keys in `range`, in key order, at the head revision.
    ///
    /// Pages of one listing may be of different revisions; each says its own.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, Error>>;

    /// The entry at `key`, or `None`.
    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Entry>, Error>>;

    /// The newest committed revision.
    fn head(&self) -> BoxFuture<'_, Result<Revision, Error>>;

    /// Every change below `prefix` that is newer than `after`.
    ///
    /// The stream ends with an error, never silently: [`Error::Compacted`] if the watcher fell behind what is kept,
    /// [`Error::Closed`] if the store stopped.
    fn watch(&self, prefix: Bytes, after: Revision) -> BoxFuture<'_, Result<Watch, Error>>;

    /// Forgets changes up to and including `revision`; watches from before it get [`Error::Compacted`].
    ///
    /// A revision that is compacted already, or was never reached, is an error.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>>;
}
