//! Sockets that the hooks connected to a backend which their service does not have any more, and those that had a port
//! before a service did ([`in_use()`]).
//!
//! A connected socket keeps its peer whatever the maps say: a resolver would go on asking a pod that is gone. So such
//! sockets are destroyed: their owner's next read fails with ECONNABORTED (a datagram socket's write with EDESTADDRREQ),
//! it connects again, and is given a backend that lives. The hooks record who asked for what (`socket_peers_*`); the socket itself is found in its namespace by its cookie.
//!
//! Level-triggered: a pass reads what is recorded, asks what each service has *now*, and destroys the difference. It runs
//! soon after a change, and once more later for a connect that raced with it.

mod diag;
mod in_use;
mod namespaces;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};
use weir_dataplane_ebpf::{Be16, Protocol, SocketPeerKey};

use self::diag::{Diag, States};
pub use self::in_use::{PortInUse, in_use};
use crate::{
    kernel::maps::{Family, FamilyMaps, Maps, TableError},
    paths::Paths,
};

/// From a change to the pass that looks at it; passes are no closer together than this.
const SOON: Duration = Duration::from_secs(1);
/// And to the one for a socket that chose by the old table and was recorded late.
const LATER: Duration = Duration::from_secs(15);

/// A socket that was led to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The socket.
    pub cookie: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Whom it was led to.
    pub backend: SocketAddr,
    /// [`weir_dataplane_ebpf::Frontend::service`] that it asked for.
    pub service: u32,
}

/// Every socket that the hooks remember.
pub fn read(maps: &Maps) -> Result<Vec<Peer>, TableError> {
    let mut peers = Vec::new();
    read_family(&maps.v4, &mut peers)?;
    read_family(&maps.v6, &mut peers)?;
    Ok(peers)
}

fn read_family<A: Family>(maps: &FamilyMaps<A>, peers: &mut Vec<Peer>) -> Result<(), TableError> {
    for batch in maps.socket_peers.batches() {
        peers.extend(batch?.into_iter().map(|(key, value)| Peer {
            cookie: u64::from(key.cookie[0]) | u64::from(key.cookie[1]) << 32,
            protocol: key.protocol,
            backend: SocketAddr::new(key.address.ip(), key.port.get()),
            service: value.service,
        }));
    }
    Ok(())
}

fn forget<A: Family>(maps: &FamilyMaps<A>, peers: &[Peer]) -> Result<(), TableError> {
    let keys: Vec<SocketPeerKey<A>> = peers
        .iter()
        .filter_map(|peer| {
            Some(SocketPeerKey {
                cookie: [peer.cookie as u32, (peer.cookie >> 32) as u32],
                address: A::of(peer.backend.ip())?,
                port: Be16::new(peer.backend.port()),
                protocol: peer.protocol,
                padding: 0,
            })
        })
        .collect();
    maps.socket_peers.remove(&keys)
}

/// Destroys these sockets wherever they are, and forgets them. A socket that is not connected, or by now to something
/// else, is left alone. Returns how many there were.
pub fn destroy(maps: &Maps, paths: &Paths, stale: &[Peer]) -> Result<u64, TableError> {
    let own = paths.namespaces();
    // A thread that enters a namespace does not come back, and so is not one of the runtime's.
    let destroyed = std::thread::scope(|scope| {
        scope.spawn(|| destroy_everywhere(&own, stale)).join().expect("looking for sockets does not panic")
    });
    forget(&maps.v4, stale)?;
    forget(&maps.v6, stale)?;
    Ok(destroyed)
}

fn destroy_everywhere(own: &Path, stale: &[Peer]) -> u64 {
    let mut wanted = HashMap::<u64, Vec<&Peer>>::new();
    for peer in stale {
        wanted.entry(peer.cookie).or_default().push(peer);
    }
    let protocols: HashSet<Protocol> = stale.iter().map(|peer| peer.protocol).collect();
    let mut destroyed = 0;
    let here = Diag::open().and_then(|diag| destroy_in(&diag, &protocols, &wanted));
    let mut note = |result: io::Result<u64>, place: &str| match result {
        Ok(count) => destroyed += count,
        Err(error) => warn!(%error, place, "sockets of removed backends may stay"),
    };
    note(here, "the node's namespace");
    let mut refused = None;
    for namespace in namespaces::all(own) {
        if let Err(error) = setns(&namespace, CloneFlags::CLONE_NEWNET) {
            refused = Some(error);
            continue;
        }
        note(Diag::open().and_then(|diag| destroy_in(&diag, &protocols, &wanted)), "a pod's namespace");
    }
    if let Some(error) = refused {
        debug!(%error, "cannot enter every network namespace; sockets in pods may stay");
    }
    destroyed
}

fn destroy_in(
    diag: &Diag,
    protocols: &HashSet<Protocol>,
    wanted: &HashMap<u64, Vec<&Peer>>,
) -> io::Result<u64> {
    let mut destroyed = 0;
    for protocol in protocols {
        for socket in diag.list(*protocol, States::CONNECTED)? {
            let peers = wanted.get(&socket.cookie()).map(Vec::as_slice).unwrap_or_default();
            let is_stale = |peer: &&&Peer| peer.protocol == *protocol && peer.backend == socket.peer();
            if peers.iter().any(|peer| is_stale(&peer)) && diag.destroy(&socket)? {
                debug!(local = %socket.local(), backend = %socket.peer(), "ended a socket whose backend went");
                destroyed += 1;
            }
        }
    }
    Ok(destroyed)
}

/// What a pass is at.
#[derive(Debug)]
enum Step {
    Read(Result<Vec<Peer>, TableError>),
    Destroyed(Result<u64, TableError>),
}

/// When passes run: one at a time, beside the agent's task. That one only judges.
#[derive(Debug)]
pub(crate) struct Reaper {
    maps: Arc<Maps>,
    paths: Paths,
    soon: Option<Instant>,
    later: Option<Instant>,
    running: Option<JoinHandle<Step>>,
}

/// What a pass asks its owner.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Which of these does its service not have any more? The answer goes to [`Reaper::destroy`].
    Judge(Vec<Peer>),
    /// So many are gone.
    Destroyed(u64),
}

impl Reaper {
    pub(crate) fn new(maps: Arc<Maps>, paths: Paths) -> Self {
        Self { maps, paths, soon: None, later: None, running: None }
    }

    /// Backends may have gone.
    pub(crate) fn changed(&mut self) {
        let now = Instant::now();
        self.soon.get_or_insert(now + SOON);
        self.later = Some(now + LATER);
    }

    /// The next thing to do. May be dropped and asked again.
    pub(crate) async fn progress(&mut self) -> Progress {
        loop {
            if let Some(running) = &mut self.running {
                let step = running.await;
                self.running = None;
                match step {
                    Ok(Step::Read(Ok(peers))) => return Progress::Judge(peers),
                    Ok(Step::Destroyed(Ok(count))) => return Progress::Destroyed(count),
                    Ok(Step::Read(Err(error)) | Step::Destroyed(Err(error))) => {
                        warn!(%error, "sockets of removed backends stay for now");
                        self.later = Some(Instant::now() + LATER);
                    }
                    Err(error) => warn!(%error, "a pass over sockets ended early"),
                }
            }
            let Some(next) = self.soon.into_iter().chain(self.later).min() else {
                return std::future::pending().await;
            };
            sleep_until(next).await;
            let now = Instant::now();
            self.soon = self.soon.filter(|when| *when > now);
            self.later = self.later.filter(|when| *when > now);
            let maps = Arc::clone(&self.maps);
            self.running = Some(spawn_blocking(move || Step::Read(read(&maps))));
        }
    }

    /// Ends the sockets that were judged to be stale.
    pub(crate) fn destroy(&mut self, stale: Vec<Peer>) {
        if stale.is_empty() {
            return;
        }
        let (maps, paths) = (Arc::clone(&self.maps), self.paths.clone());
        self.running = Some(spawn_blocking(move || Step::Destroyed(destroy(&maps, &paths, &stale))));
    }
}
