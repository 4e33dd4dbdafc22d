//! The embedded engine: one redb file, one writer.
//!
//! ```text
//! txn() ─▶ bounded queue ─▶ writer thread: many transactions → one durable redb commit
//!                              └▶ history (memory) ─▶ head signal ─▶ watches; then every caller is answered
//! ```
//!
//! While one commit waits for the disk, the next transactions gather in the queue, so that the cost of a sync is
//! shared by whoever wrote meanwhile, and a lone write never waits for company. Events are published after the commit
//! and before the answers, so that who was answered finds its own write in a watch.

mod history;
mod tables;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use redb::Database;
use tokio::sync::{mpsc, oneshot, watch as signal};

use crate::{Entry, Error, Metrics, Page, Range, Revision, Store, Txn, TxnOutcome, Watch};
use history::History;
use writer::{Job, Writer};

/// Transactions that wait for the writer; more callers than this wait to enqueue.
const QUEUE: usize = 1024;

/// How the embedded engine uses memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the file that redb keeps in memory.
    pub cache_bytes: usize,
    /// Events kept for watches.
    pub history_events: usize,
    /// Bytes of keys and values kept for watches; whichever bound is met first counts.
    pub history_bytes: usize,
}

impl Default for Options {
    /// Small on purpose: the API server reads the file once, at its start, and serves from its own memory, and its one
    /// watch is never far behind.
    fn default() -> Self {
        Options { cache_bytes: 8 << 20, history_events: 8192, history_bytes: 16 << 20 }
    }
}

/// A store in one file of this machine.
pub struct Embedded {
    jobs: Option<mpsc::Sender<Job>>,
    database: Option<Arc<Database>>,
    writer: Option<JoinHandle<()>>,
    history: Arc<History>,
    head: signal::Receiver<Revision>,
    metrics: Metrics,
}

impl Embedded {
    /// Opens the store at `path`, or makes it. Blocks on the disk: after a crash redb repairs its free lists, which takes
    /// time in proportion to the file.
    pub fn open(path: &Path, options: &Options, metrics: Metrics) -> Result<Embedded, Error> {
        let database = redb::Builder::new().set_cache_size(options.cache_bytes).create(path);
        let database = Arc::new(database.map_err(|error| open_error(path, error))?);
        let revision = tables::prepare(&database, path)?;

        let history =
            Arc::new(History::new(revision, options.history_events, options.history_bytes, metrics.clone()));
        let (publish, head) = signal::channel(revision);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            database: Arc::clone(&database),
            revision,
            history: Arc::clone(&history),
            publish,
            metrics: metrics.clone(),
        };
        let writer = std::thread::Builder::new().name("weir-store".to_owned()).spawn(|| writer.run(queue));
        let writer = writer.map_err(|error| Error::Open {
            path: path.to_owned(),
            source: Arc::new(redb::Error::Io(error)),
        })?;
        tracing::info!(path = %path.display(), %revision, "store opened");
        let (jobs, database, writer) = (Some(jobs), Some(database), Some(writer));
        Ok(Embedded { jobs, database, writer, history, head, metrics })
    }

    /// Runs a read on a thread that may block.
    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, Error>> {
        let Some(database) = self.database.clone() else { return ready(Err(Error::Closed)).boxed() };
        async move {
            let result = tokio::task::spawn_blocking(move || read(&database)).await;
            result.map_err(|_| Error::Closed)?.map_err(|error| Error::Read { source: Arc::new(error) })
        }
        .boxed()
    }
}

impl Drop for Embedded {
    /// Waits for the writer, which finishes what was queued: at most a queue's worth of commits. After this the file
    /// can be opened again.
    fn drop(&mut self) {
        self.jobs.take();
        self.database.take();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer had panicked");
        }
    }
}

impl Store for Embedded {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Error>> {
        async move {
            writer::check(&txn)?;
            let (answer, outcome) = oneshot::channel();
            let jobs = self.jobs.as_ref().ok_or(Error::Closed)?;
            let permit = match jobs.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Closed(())) => return Err(Error::Closed),
                Err(mpsc::error::TrySendError::Full(())) => {
                    self.metrics.queue_full.inc();
                    jobs.reserve().await.map_err(|_| Error::Closed)?
                }
            };
            permit.send(Job { txn, answer });
            outcome.await.map_err(|_| Error::Closed)?
        }
        .boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Page, Error>> {
        self.read(move |database| tables::range(database, &range))
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Entry>, Error>> {
        self.read(move |database| tables::get(database, &key))
    }

    fn head(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        ready(Ok(self.history.head())).boxed()
    }

    fn watch(&self, prefix: Bytes, after: Revision) -> BoxFuture<'_, Result<Watch, Error>> {
        ready(history::watch(&self.history, self.head.clone(), prefix, after)).boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>> {
        ready(self.history.compact(revision)).boxed()
    }
}

fn open_error(path: &Path, error: redb::DatabaseError) -> Error {
    let path = PathBuf::from(path);
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => Error::Locked { path },
        other => Error::Open { path, source: Arc::new(other.into()) },
    }
}
