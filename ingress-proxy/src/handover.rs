//! One process takes the listeners over from another, so that an upgrade refuses nobody.
//!
//! ```text
//! running process                      the one that follows
//!   listens at --handover  ◀── connects ──┤
//!   ├── both listening sockets ──────────▶│ loads the cluster, accepts beside the other
//!   │◀───────────── "serving" ────────────┤ ready
//!   drains and ends                       listens at --handover
//! ```
//!
//! The sockets are the same ones, so no connection is lost between the two, not even one that waits to be accepted. A follower
//! that fails before it serves leaves everything as it was.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::{Config, Error, serve};

/// What comes with the sockets; another version of this exchange says something else.
const GREETING: &[u8; 14] = b"weir-ingress 1";
/// What a follower says when it serves.
const SERVING: &[u8; 7] = b"serving";
/// The sockets: one for HTTP, one for HTTPS.
const SOCKETS: usize = 2;
/// A running process that does not send its sockets in this time is none.
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// A follower that does not serve by then has failed; another may try.
const START_LIMIT: Duration = Duration::from_mins(5);

/// Where clients come in.
pub(crate) struct Listeners {
    pub(crate) http: TcpListener,
    pub(crate) https: TcpListener,
    pub(crate) succession: Succession,
}

/// Who served before this process, and who does after it.
pub(crate) struct Succession {
    path: PathBuf,
    predecessor: Option<Predecessor>,
    successors: Option<Successors>,
}

impl Listeners {
    /// Takes over those of a running process, where that is wanted and there is one, and binds the others; inside `runtime`.
    pub(crate) async fn open(config: &Config, runtime: &Handle) -> Result<Self, Error> {
        let path = config.handover.as_deref();
        let mut predecessor = match path {
            Some(path) => Predecessor::find(path).await,
            None => None,
        };
        let mut listener = |address| {
            let _inside = runtime.enter();
            let taken = predecessor.as_mut().and_then(|predecessor| predecessor.take(address));
            taken.map_or_else(|| serve::bind(address), |taken| serve::adopt(taken, address))
        };
        let (http, https) = (listener(config.http_address)?, listener(config.https_address)?);
        let prepare = |path| {
            let own = [&http, &https].map(|listener| listener.as_fd().try_clone_to_owned());
            let own: io::Result<Vec<OwnedFd>> = own.into_iter().collect();
            own.and_then(|own| Successors::prepare(path, own))
        };
        let successors = path.map(prepare).transpose();
        let path = path.unwrap_or(Path::new("")).to_owned();
        let successors = successors.map_err(|source| Error::Handover { path: path.clone(), source })?;
        let succession = Succession { path, predecessor, successors };
        Ok(Self { http, https, succession })
    }
}

impl Succession {
    /// Tells the process before that this one serves, and returns when another serves; for ever where none can.
    pub(crate) async fn relieved(&mut self) -> Result<(), Error> {
        let Some(successors) = &mut self.successors else { return std::future::pending().await };
        let relieved = async {
            successors.listen()?;
            if let Some(predecessor) = self.predecessor.take() {
                predecessor.relieve();
            }
            successors.relieved().await
        };
        relieved.await.map_err(|source| Error::Handover { path: self.path.clone(), source })
    }
}

/// The process that serves until this one does.
struct Predecessor {
    stream: UnixStream,
    sockets: Vec<StdListener>,
}

impl Predecessor {
    /// Asks at `path`; nothing where nobody answers.
    async fn find(path: &Path) -> Option<Self> {
        let path = path.to_owned();
        let asked = spawn_blocking(move || match ask(&path) {
            Ok(found) => Some(found),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no listeners are taken over");
                None
            }
        });
        asked.await.unwrap_or_default()
    }

    /// Its listener at an address, if it has one there.
    fn take(&mut self, address: SocketAddr) -> Option<StdListener> {
        let at = self.sockets.iter().position(|socket| socket.local_addr().is_ok_and(|at| at == address))?;
        Some(self.sockets.swap_remove(at))
    }

    /// Tells it that this process serves.
    fn relieve(mut self) {
        if let Err(error) = self.stream.write_all(SERVING) {
            tracing::warn!(%error, "the process that served before is gone already");
        }
    }
}

fn ask(path: &Path) -> io::Result<Predecessor> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(GREETING_LIMIT))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; GREETING.len()];
    let parts = &mut [IoSliceMut::new(&mut greeting)];
    recvmsg(&stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if greeting != *GREETING {
        return Err(io::Error::other("who listens there speaks another version"));
    }
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok(Predecessor { stream, sockets: files.flatten().map(StdListener::from).collect() })
}

/// Where the process that follows is waited for. The path goes with it, unless it is the follower's by then.
struct Successors {
    /// Where others will look, and where the socket is until then.
    path: PathBuf,
    at: PathBuf,
    listener: UnixListener,
    sockets: Vec<OwnedFd>,
    is_relieved: bool,
}

impl Successors {
    /// Makes the socket beside `path`, with these listeners to give away.
    fn prepare(path: &Path, sockets: Vec<OwnedFd>) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut at = path.as_os_str().to_owned();
        at.push(format!(".{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let at = PathBuf::from(at);
        let listener = UnixListener::bind(&at)?;
        // Only for who could stop this process, too.
        fs::set_permissions(&at, fs::Permissions::from_mode(0o600))?;
        Ok(Self { path: path.to_owned(), at, listener, sockets, is_relieved: false })
    }

    /// Waits at the path from now on, in place of whoever did before.
    fn listen(&mut self) -> io::Result<()> {
        fs::rename(&self.at, &self.path)?;
        self.at.clone_from(&self.path);
        Ok(())
    }

    /// Returns when another process serves.
    async fn relieved(&mut self) -> io::Result<()> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let stream = stream.into_std()?;
            let sockets: io::Result<Vec<OwnedFd>> = self.sockets.iter().map(OwnedFd::try_clone).collect();
            let sockets = sockets?;
            let given = spawn_blocking(move || give(stream, &sockets)).await;
            match given.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                Ok(()) => {
                    self.is_relieved = true;
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "the process that was to follow has failed"),
            }
        }
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        if !self.is_relieved
            && let Err(error) = fs::remove_file(&self.at)
        {
            tracing::warn!(path = %self.at.display(), %error, "a socket is left behind");
        }
    }
}

/// Gives the sockets away and waits until their new owner serves.
fn give(mut stream: UnixStream, sockets: &[OwnedFd]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(START_LIMIT))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = sockets.iter().map(OwnedFd::as_fd).collect();
    control.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(&stream, &[IoSlice::new(GREETING)], &mut control, SendFlags::empty())?;
    let mut said = [0; SERVING.len()];
    stream.read_exact(&mut said)?;
    if said == *SERVING { Ok(()) } else { Err(io::Error::other("it said something else")) }
}
