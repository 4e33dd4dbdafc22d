//! The recent past: what watches are served from.
//!
//! Events are kept in memory, in revision order, up to a bound of count and bytes. They are not written to disk a
//! second time: a restart begins with an empty history whose floor is the revision of the file, so a watch from
//! exactly there goes on, and one from before is told that its past is compacted. Its caller lists again, which costs
//! one read from memory; a durable log would cost every write twice.
//!
//! A watcher owns nothing but a revision. It reads the history at its own pace and sleeps on the head, so that there is
//! no queue per watcher to bound; one that is overtaken by the floor is dropped, and can never skip an event.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream;
use tokio::sync::watch as signal;

use crate::{Batch, Change, Error, Event, Metrics, Revision, Watch};

/// Events that a watcher examines in one go, so that one far behind does not hold the lock for long.
const SCAN_LIMIT: usize = 1024;

/// The events of the recent past and the head they lead to.
pub(super) struct History {
    // A mutex, not a lock-free ring: it is held for a copy of at most SCAN_LIMIT reference counts.
    ring: Mutex<Ring>,
    metrics: Metrics,
    max_events: usize,
    max_bytes: usize,
}

struct Ring {
    events: VecDeque<Event>,
    bytes: usize,
    /// Everything after this revision is in `events`.
    floor: Revision,
    head: Revision,
}

impl History {
    pub(super) fn new(head: Revision, max_events: usize, max_bytes: usize, metrics: Metrics) -> History {
        metrics.revision.set(head.0.cast_signed());
        metrics.compacted_revision.set(head.0.cast_signed());
        let ring = Ring { events: VecDeque::new(), bytes: 0, floor: head, head };
        History { ring: Mutex::new(ring), metrics, max_events, max_bytes }
    }

    /// Appends the events of a durable commit, and forgets what is over the bound.
    pub(super) fn push(&self, events: Vec<Event>, head: Revision) {
        let mut ring = self.lock();
        ring.bytes += events.iter().map(size).sum::<usize>();
        ring.events.extend(events);
        ring.head = head;
        while ring.events.len() > self.max_events || ring.bytes > self.max_bytes {
            let Some(oldest) = ring.events.front().map(|event| event.revision) else { break };
            ring.forget(oldest);
        }
        self.measure(&ring);
    }

    pub(super) fn head(&self) -> Revision {
        self.lock().head
    }

    pub(super) fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut ring = self.lock();
        if revision > ring.head {
            return Err(Error::Future { requested: revision, head: ring.head });
        }
        if revision <= ring.floor {
            return Err(Error::Compacted { requested: revision, oldest: ring.floor });
        }
        ring.forget(revision);
        self.measure(&ring);
        Ok(())
    }

    /// The next piece after `after`; `None` when there is nothing new.
    fn read(&self, prefix: &[u8], after: Revision) -> Result<Option<Batch>, Error> {
        let ring = self.lock();
        if after < ring.floor {
            return Err(Error::Compacted { requested: after, oldest: ring.floor });
        }
        if after >= ring.head {
            return Ok(None);
        }
        let start = ring.events.partition_point(|event| event.revision <= after);
        // A batch ends with a whole transaction, so it may run past the limit by the rest of one.
        let end = match ring.events.get(start + SCAN_LIMIT) {
            None => ring.events.len(),
            Some(event) => {
                let last = event.revision;
                ring.events.partition_point(|event| event.revision <= last)
            }
        };
        let revision = match ring.events.get(end) {
            None => ring.head,
            Some(_) => ring.events[end - 1].revision,
        };
        let events = ring.events.range(start..end).filter(|event| event.key().starts_with(prefix));
        Ok(Some(Batch { events: events.cloned().collect(), revision }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        // Nothing in the critical sections can panic half-way through a change.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measure(&self, ring: &Ring) {
        self.metrics.revision.set(ring.head.0.cast_signed());
        self.metrics.compacted_revision.set(ring.floor.0.cast_signed());
        self.metrics.history_events.set(ring.events.len().cast_signed() as i64);
        self.metrics.history_bytes.set(ring.bytes.cast_signed() as i64);
    }
}

impl Ring {
    /// Drops whole transactions up to and including `revision`.
    fn forget(&mut self, revision: Revision) {
        while let Some(event) = self.events.pop_front_if(|event| event.revision <= revision) {
            self.bytes -= size(&event);
        }
        self.floor = revision;
    }
}

fn size(event: &Event) -> usize {
    match &event.change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Delete { key } => key.len(),
    }
}

/// Counts a watch while it runs.
struct Running(Metrics);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.watchers.dec();
    }
}

struct Cursor {
    history: Arc<History>,
    head: signal::Receiver<Revision>,
    prefix: Bytes,
    after: Revision,
    running: Running,
}

/// Starts a watch; fails at once if `after` is already forgotten.
pub(super) fn watch(
    history: &Arc<History>,
    head: signal::Receiver<Revision>,
    prefix: Bytes,
    after: Revision,
) -> Result<Watch, Error> {
    let floor = history.lock().floor;
    if after < floor {
        return Err(Error::Compacted { requested: after, oldest: floor });
    }
    history.metrics.watchers.inc();
    let running = Running(history.metrics.clone());
    let cursor = Cursor { history: Arc::clone(history), head, prefix, after, running };
    Ok(Box::pin(stream::unfold(Some(cursor), async |cursor| {
        let mut cursor = cursor?;
        match cursor.step().await {
            ControlFlow::Continue(batch) => Some((Ok(batch), Some(cursor))),
            ControlFlow::Break(error) => Some((Err(error), None)),
        }
    })))
}

impl Cursor {
    async fn step(&mut self) -> ControlFlow<Error, Batch> {
        loop {
            // Marked as seen before reading, so that a head that moves in between wakes the wait below.
            self.head.borrow_and_update();
            match self.history.read(&self.prefix, self.after) {
                Ok(Some(batch)) => {
                    self.after = batch.revision;
                    return ControlFlow::Continue(batch);
                }
                Ok(None) => {}
                Err(error) => {
                    self.running.0.watchers_dropped.inc();
                    return ControlFlow::Break(error);
                }
            }
            if self.head.changed().await.is_err() {
                return ControlFlow::Break(Error::Closed);
            }
        }
    }
}
