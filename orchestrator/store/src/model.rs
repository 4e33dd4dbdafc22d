//! The words of the store: revisions, entries, transactions, events.
//!
//! These are values without behaviour of their own; both engines and their callers share them.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::Error;

/// A point in the store's history. Revisions are handed out in order, one for each transaction that changes something,
/// and never twice, not even after a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before everything. As a compared `mod_revision` it means "the key is absent".
    pub const ABSENT: Revision = Revision(0);

    /// The revision after this one.
    pub(crate) fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Revision {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Revision)
    }
}

/// A key, its value, and its place in history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, whole (no prefix is stripped).
    pub key: Bytes,
    /// The value, shared: cloning an entry copies no data.
    pub value: Bytes,
    /// The revision at which the key came to be; a key that was deleted and made again has a new one.
    pub create_revision: Revision,
    /// The revision of the last change.
    pub mod_revision: Revision,
    /// How many times the key was written since it came to be; 1 for a new key.
    pub version: u64,
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key that is compared.
    pub key: Bytes,
    /// What its `mod_revision` must be; [`Revision::ABSENT`] if the key must not exist.
    pub mod_revision: Revision,
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sets `key` to `value`.
    Put {
        /// The key that is written.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes `key`; removing an absent key does nothing.
    Delete {
        /// The key that is removed.
        key: Bytes,
    },
}

impl Operation {
    /// The key that the operation writes.
    pub fn key(&self) -> &Bytes {
        match self {
            Operation::Put { key, .. } | Operation::Delete { key } => key,
        }
    }
}

/// Conditions and writes that happen together or not at all. A key may be written at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Every one of these must hold.
    pub compares: Vec<Compare>,
    /// All of these are applied, with one revision.
    pub operations: Vec<Operation>,
}

impl Txn {
    /// Makes `key`, which must not exist.
    pub fn create(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        Txn::default().put_if(key, Revision::ABSENT, value)
    }

    /// Replaces `key`, which must be at `expected`.
    pub fn update(key: impl Into<Bytes>, expected: Revision, value: impl Into<Bytes>) -> Txn {
        Txn::default().put_if(key, expected, value)
    }

    /// Removes `key`, which must be at `expected`.
    pub fn delete(key: impl Into<Bytes>, expected: Revision) -> Txn {
        Txn::default().delete_if(key, expected)
    }

    /// Adds: `key` must be at `expected`, and nothing is written to it.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Bytes>, expected: Revision) -> Txn {
        self.compares.push(Compare { key: key.into(), mod_revision: expected });
        self
    }

    /// Adds: `key` must be at `expected` and becomes `value`.
    #[must_use]
    pub fn put_if(mut self, key: impl Into<Bytes>, expected: Revision, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        self.operations.push(Operation::Put { key: key.clone(), value: value.into() });
        self.expect(key, expected)
    }

    /// Adds: `key` must be at `expected` and is removed.
    #[must_use]
    pub fn delete_if(mut self, key: impl Into<Bytes>, expected: Revision) -> Txn {
        let key = key.into();
        self.operations.push(Operation::Delete { key: key.clone() });
        self.expect(key, expected)
    }

    /// Adds: `key` becomes `value`, whatever it was.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        self.operations.push(Operation::Put { key: key.into(), value: value.into() });
        self
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Every compare held, and the writes are durable.
    Committed {
        /// The `mod_revision` of everything that was written; the head, if nothing was.
        revision: Revision,
    },
    /// A compare did not hold, and nothing was written.
    Mismatch {
        /// What each compared key holds now, in the order of the compares.
        current: Vec<Option<Entry>>,
    },
}

/// A stretch of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Only keys that begin with this.
    pub prefix: Bytes,
    /// Only keys greater than this one: the last key of the page before.
    pub after: Option<Bytes>,
    /// At most this many entries; 0 means all.
    pub limit: usize,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Range {
        Range { prefix: prefix.into(), after: None, limit: 0 }
    }
}

/// A page of a [`Range`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries, in key order.
    pub entries: Vec<Entry>,
    /// The revision at which the page was read.
    pub revision: Revision,
    /// Whether there are entries after these. The last key is then the next page's `after`.
    pub more: bool,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was written; the entry is new if its version is 1.
    Put(Entry),
    /// It was removed.
    Delete {
        /// The key that is gone.
        key: Bytes,
    },
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision of the transaction.
    pub revision: Revision,
    /// What it did.
    pub change: Change,
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match &self.change {
            Change::Put(entry) => &entry.key,
            Change::Delete { key } => key,
        }
    }
}

/// A piece of a watch: every event that matches, up to and including `revision`. A transaction is never split over two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The events in revision order; empty when other keys moved the head.
    pub events: Vec<Event>,
    /// The watch is complete up to here.
    pub revision: Revision,
}

/// A running watch: batches in order, and an error as its last item.
pub type Watch = BoxStream<'static, Result<Batch, Error>>;
