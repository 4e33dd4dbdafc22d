//! Waits for changes of a log: inotify on its directory, which sees writes and rotations alike.

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

/// An inotify instance for one directory; it ends with the stream that reads from it, and streams are bounded.
pub(super) struct Watch {
    descriptor: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches the directory of `path`.
    #[expect(
        deprecated,
        reason = "its successor is unsafe, which this crate forbids; the descriptor is owned and open"
    )]
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(path.parent().unwrap_or(path), flags)?;
        Ok(Self { descriptor: AsyncFd::with_interest(OwnedFd::from(inotify), Interest::READABLE)? })
    }

    /// Returns after the next change, or at once if there was one since the last call. Which change does not matter:
    /// the reader looks.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.descriptor.readable().await?;
            match nix::unistd::read(self.descriptor.get_ref(), &mut buffer) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
