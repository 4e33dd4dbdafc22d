//! The listener's end of what the programs tell: the ring buffer `events`, its switch, and the count of what was lost.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::{Map, MapData, MapError, MapInfo, PerCpuArray, RingBuf};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use weir_dataplane_ebpf::Event;

use super::{
    maps::{Table, TableError},
    sys,
};
use crate::paths::Paths;

/// Why nothing can be heard.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// One reads the ring buffer already, and two would take each other's events.
    #[error("somebody listens already: end the other `weir dataplane monitor` of this node")]
    Taken,
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The ring buffer.
    #[error("open the programs' events: {0}")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The lock, the clock, or waiting.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The ring buffer's only reader.
pub struct Events {
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
    until: Table<u32, u64>,
    lost: Map,
    lost_before: u64,
    /// The kernel's number for the ring buffer.
    id: u32,
    /// Held for as long as this lives: the run directory itself, so that no file is left, which stays whatever becomes of pins.
    only: File,
}

impl Events {
    /// Becomes the reader. What an earlier one left is dropped.
    pub fn open(paths: &Paths) -> Result<Self, EventsError> {
        let lock = |source| EventsError::Io { operation: "lock the run directory", source };
        let only = File::open(paths.run_dir()).map_err(lock)?;
        match only.try_lock() {
            Ok(()) => Self::with_lock(paths, only),
            Err(std::fs::TryLockError::WouldBlock) => Err(EventsError::Taken),
            Err(std::fs::TryLockError::Error(error)) => Err(lock(error)),
        }
    }

    fn with_lock(paths: &Paths, only: File) -> Result<Self, EventsError> {
        let pinned = |name: &str| -> Result<Map, EventsError> {
            let data = MapData::from_pin(paths.map(name)).map_err(|error| EventsError::Open(error.into()))?;
            Map::from_map_data(data).map_err(|error| EventsError::Open(error.into()))
        };
        let id = ring_id(paths)?.unwrap_or_default();
        let ring = RingBuf::try_from(pinned("events")?).map_err(|error| EventsError::Open(error.into()))?;
        let wait = |source| EventsError::Io { operation: "wait for the programs' events", source };
        let ready = sys::watch(ring.as_fd().try_clone_to_owned().map_err(wait)?).map_err(wait)?;
        let until = Table::open(&paths.map("monitor"))?;
        let mut events = Self { ring, ready, until, lost: pinned("events_lost")?, lost_before: 0, id, only };
        events.drain(|_| {});
        events.newly_lost()?;
        Ok(events)
    }

    /// Listens where programs tell now, if that is elsewhere: whether it is. Nothing when these places have no such pin.
    pub fn follow(&mut self, paths: &Paths) -> Result<Option<bool>, EventsError> {
        let Some(id) = ring_id(paths)? else { return Ok(None) };
        if id != self.id {
            let only = self.only.try_clone();
            let only = only.map_err(|source| EventsError::Io { operation: "keep the lock", source })?;
            *self = Self::with_lock(paths, only)?;
            return Ok(Some(true));
        }
        Ok(Some(false))
    }

    /// Whether the ring buffer that this reads is the one of these places.
    pub fn is_of(&self, paths: &Paths) -> bool {
        ring_id(paths).is_ok_and(|id| id == Some(self.id))
    }

    /// Makes the programs tell for this long from now on.
    pub fn listen(&self, duration: Duration) -> Result<(), EventsError> {
        let until = since_boot()? + duration;
        Ok(self.until.write(&[0], &[until.as_nanos() as u64])?)
    }

    /// Makes them tell nothing any more.
    pub fn end(&self) -> Result<(), EventsError> {
        Ok(self.until.write(&[0], &[0])?)
    }

    /// Waits until there may be something.
    pub async fn readable(&self) -> Result<(), EventsError> {
        let mut ready = self
            .ready
            .readable()
            .await
            .map_err(|source| EventsError::Io { operation: "wait for the programs' events", source })?;
        ready.clear_ready();
        Ok(())
    }

    /// Takes everything that is there.
    pub fn drain(&mut self, take: impl FnMut(Event)) {
        drain(&mut self.ring, take);
    }

    /// How many were lost since this was asked last.
    pub fn newly_lost(&mut self) -> Result<u64, EventsError> {
        let failed = |error: MapError| EventsError::Open(error.into());
        let counters = PerCpuArray::<_, u64>::try_from(&self.lost).map_err(failed)?;
        let now = counters.get(&0, 0).map_err(failed)?.iter().sum();
        Ok(now - std::mem::replace(&mut self.lost_before, now))
    }
}

/// The kernel's number for the ring buffer that is pinned, if one is.
fn ring_id(paths: &Paths) -> Result<Option<u32>, EventsError> {
    match MapInfo::from_pin(paths.map("events")) {
        Ok(info) => Ok(Some(info.id())),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EventsError::Open(error.into())),
    }
}

/// A listener that ends in whatever way leaves the programs silent; one that is killed is forgotten after a while.
impl Drop for Events {
    fn drop(&mut self) {
        // It ends by itself then, a little later.
        let _ = self.end();
    }
}

/// Takes everything out of a ring buffer of events.
pub fn drain(ring: &mut RingBuf<impl std::borrow::Borrow<MapData>>, mut take: impl FnMut(Event)) {
    while let Some(item) = ring.next() {
        // A program of another version may tell something else.
        if let Some(event) = sys::read_pod(&item) {
            take(event);
        }
    }
}

/// The clock of [`Event::time_ns`].
pub fn since_boot() -> Result<Duration, EventsError> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_err(|error| EventsError::Io { operation: "read the clock", source: error.into() })?;
    Ok(now.into())
}
