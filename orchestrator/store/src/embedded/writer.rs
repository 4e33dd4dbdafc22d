//! The one writer: takes what is queued, applies it in order, commits it once.
//!
//! It is a thread and not a task because redb blocks on the disk. Transactions of one batch see each other's writes, as
//! if each had been committed alone; a caller is answered after the commit even if it only learned of a mismatch,
//! because that mismatch may be with a write of the same batch.
//!
//! Commits are one-phase: redb checksums the new tree root and falls back to the last complete commit, at the price of
//! one sync instead of two.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use redb::Database;
use tokio::sync::{mpsc, oneshot, watch as signal};

use super::history::History;
use super::tables::{self, ENTRIES, META, REVISION};
use crate::{Change, Entry, Error, Event, Metrics, Operation, Revision, Txn, TxnOutcome};

/// Transactions in one durable commit. Bounds how long the first of them waits.
const BATCH: usize = 256;
/// Bytes in one durable commit, past which no further transaction joins.
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of one transaction: an object of the API server's largest body, grown by defaults, and its neighbours.
const TXN_BYTES: usize = 8 << 20;

/// A transaction and who waits for it.
pub(super) struct Job {
    pub(super) txn: Txn,
    pub(super) answer: oneshot::Sender<Result<TxnOutcome, Error>>,
}

/// What can be said of a transaction before it is queued.
pub(super) fn check(txn: &Txn) -> Result<(), Error> {
    let mut keys = HashSet::with_capacity(txn.operations.len());
    if let Some(twice) = txn.operations.iter().find(|operation| !keys.insert(operation.key())) {
        return Err(Error::DuplicateKey { key: String::from_utf8_lossy(twice.key()).into_owned() });
    }
    let bytes = size(txn);
    if bytes > TXN_BYTES {
        return Err(Error::TooLarge { bytes, limit: TXN_BYTES });
    }
    Ok(())
}

fn size(txn: &Txn) -> usize {
    let size = |operation: &Operation| match operation {
        Operation::Put { key, value } => key.len() + value.len(),
        Operation::Delete { key } => key.len(),
    };
    txn.operations.iter().map(size).sum()
}

pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) revision: Revision,
    pub(super) history: Arc<History>,
    /// Wakes the watches; dropped with the writer, which ends them.
    pub(super) publish: signal::Sender<Revision>,
    pub(super) metrics: Metrics,
}

/// What a batch did, before it is durable.
struct Applied {
    outcomes: Vec<TxnOutcome>,
    events: Vec<Event>,
    revision: Revision,
}

impl Writer {
    /// Runs until every sender is gone, or until a commit fails.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let started = Instant::now();
            let jobs = gather(first, &mut queue);
            let (txns, answers): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.txn, job.answer)).unzip();
            match self.commit(txns) {
                Ok(applied) => {
                    self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                    self.metrics.batch_size.observe(answers.len() as f64);
                    self.publish(applied, answers);
                }
                Err(error) => {
                    tracing::error!(%error, "the store stops: a commit failed");
                    for answer in answers {
                        // A caller that went away does not need to know.
                        let _ = answer.send(Err(error.clone()));
                    }
                    return;
                }
            }
        }
    }

    fn commit(&self, txns: Vec<Txn>) -> Result<Applied, Error> {
        let commit = || -> Result<Applied, redb::Error> {
            let write = self.database.begin_write()?;
            let applied;
            {
                let mut entries = write.open_table(ENTRIES)?;
                applied = apply(&mut entries, self.revision, txns)?;
                if applied.revision > self.revision {
                    write.open_table(META)?.insert(REVISION, applied.revision.0)?;
                }
            }
            if applied.revision > self.revision {
                write.commit()?;
            } else {
                write.abort()?;
            }
            Ok(applied)
        };
        commit().map_err(|error| Error::Commit { source: Arc::new(error) })
    }

    fn publish(&mut self, applied: Applied, answers: Vec<oneshot::Sender<Result<TxnOutcome, Error>>>) {
        if applied.revision > self.revision {
            self.revision = applied.revision;
            self.history.push(applied.events, applied.revision);
            self.publish.send_replace(applied.revision);
        }
        for (outcome, answer) in applied.outcomes.into_iter().zip(answers) {
            match outcome {
                TxnOutcome::Committed { .. } => self.metrics.committed.inc(),
                TxnOutcome::Mismatch { .. } => self.metrics.mismatched.inc(),
            };
            // A caller that went away does not need to know.
            let _ = answer.send(Ok(outcome));
        }
    }
}

/// The first job and whatever else is queued, up to a batch.
fn gather(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = size(&first.txn);
    let mut jobs = vec![first];
    while jobs.len() < BATCH && bytes < BATCH_BYTES {
        let Ok(job) = queue.try_recv() else { break };
        bytes += size(&job.txn);
        jobs.push(job);
    }
    jobs
}

type Entries<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

fn apply(entries: &mut Entries<'_>, head: Revision, txns: Vec<Txn>) -> Result<Applied, redb::Error> {
    let mut applied =
        Applied { outcomes: Vec::with_capacity(txns.len()), events: Vec::new(), revision: head };
    let mut buffer = Vec::new();
    for txn in txns {
        if let Some(current) = mismatch(entries, &txn)? {
            applied.outcomes.push(TxnOutcome::Mismatch { current });
            continue;
        }
        let revision = applied.revision.next();
        let before = applied.events.len();
        for operation in txn.operations {
            if let Some(change) = write(entries, operation, revision, &mut buffer)? {
                applied.events.push(Event { revision, change });
            }
        }
        if applied.events.len() > before {
            applied.revision = revision;
        }
        applied.outcomes.push(TxnOutcome::Committed { revision: applied.revision });
    }
    Ok(applied)
}

/// `None` if every compare holds, else what the compared keys hold.
fn mismatch(entries: &Entries<'_>, txn: &Txn) -> Result<Option<Vec<Option<Entry>>>, redb::Error> {
    let mut holds = true;
    let mut current = Vec::with_capacity(txn.compares.len());
    for compare in &txn.compares {
        let entry = tables::lookup(entries, &compare.key)?;
        holds &= entry.as_ref().map_or(Revision::ABSENT, |entry| entry.mod_revision) == compare.mod_revision;
        current.push(entry);
    }
    Ok((!holds).then_some(current))
}

fn write(
    entries: &mut Entries<'_>,
    operation: Operation,
    revision: Revision,
    buffer: &mut Vec<u8>,
) -> Result<Option<Change>, redb::Error> {
    match operation {
        Operation::Put { key, value } => {
            let old = tables::lookup(entries, &key)?;
            let (create_revision, version) =
                old.map_or((revision, 1), |old| (old.create_revision, old.version + 1));
            let entry = Entry { key, value, create_revision, mod_revision: revision, version };
            tables::encode(&entry, buffer);
            entries.insert(entry.key.as_ref(), buffer.as_slice())?;
            Ok(Some(Change::Put(entry)))
        }
        Operation::Delete { key } => {
            let existed = entries.remove(key.as_ref())?.is_some();
            Ok(existed.then_some(Change::Delete { key }))
        }
    }
}
