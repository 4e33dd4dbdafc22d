//! Endpoints of a backend, and the choice among them.
//!
//! A [`Pool`] lives as long as some rule names its backend; the table points at it. Endpoint changes swap the
//! pool's list and touch nothing else, so that a rolling Deployment never rebuilds a route. Endpoints that stay
//! keep their identity, and with it their count of requests in flight.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pingora::upstreams::peer::HttpPeer;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::compile::Endpoints;
use crate::config::Timeouts;
use crate::http2::Connections;
use crate::idle::Idle;
use crate::metrics::UpstreamFailure;

/// How long an endpoint that refused a connection is passed over while there are others. Long enough to spare
/// the next requests the detour, short enough that a restarted pod is back before anyone looks.
const AVOID: Duration = Duration::from_secs(1);
/// Streams on one HTTP/2 connection to an endpoint (pingora's default is one).
const MAX_H2_STREAMS: usize = 100;
/// HTTP/2 connections to endpoints are asked for a sign of life this often.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);

/// One address that takes requests.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    /// Built once, cloned per request that goes by pingora.
    peer: HttpPeer,
    /// Connections of requests that went past pingora.
    idle: Idle,
    /// Connections by HTTP/2.
    connections: Connections,
    in_flight: AtomicU32,
    /// Milliseconds on [`clock`] until which it is passed over.
    avoid_until_ms: AtomicU64,
}

impl Endpoint {
    fn new(address: SocketAddr, h2c: bool, timeouts: &Timeouts) -> Self {
        let mut peer = HttpPeer::new(address, false, String::new());
        let options = &mut peer.options;
        // pingora has no timeout at all by default: a black-holed pod would hold its requests forever.
        options.connection_timeout = Some(timeouts.connect);
        options.total_connection_timeout = Some(timeouts.connect);
        options.read_timeout = Some(timeouts.read);
        options.write_timeout = Some(timeouts.write);
        options.idle_timeout = Some(timeouts.upstream_idle);
        if h2c {
            options.set_http_version(2, 2);
            options.max_h2_streams = MAX_H2_STREAMS;
            options.h2_ping_interval = Some(H2_PING_INTERVAL);
        }
        Self {
            address,
            peer,
            idle: Idle::new(timeouts.upstream_idle),
            connections: Connections::new(timeouts.upstream_idle),
            in_flight: AtomicU32::new(0),
            avoid_until_ms: AtomicU64::new(0),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What pingora connects to.
    pub(crate) fn peer(&self) -> Box<HttpPeer> {
        Box::new(self.peer.clone())
    }

    /// Its connections that wait for a request.
    pub(crate) fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Its connections by HTTP/2.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Passes it over for a while: it refused a connection.
    pub(crate) fn avoid(&self) {
        self.avoid_until_ms.store(clock() + AVOID.as_millis() as u64, Ordering::Relaxed);
    }
}

/// A chosen endpoint; counts as one request in flight until dropped.
#[derive(Debug)]
pub(crate) struct Chosen(Arc<Endpoint>);

impl Chosen {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(endpoint))
    }
}

impl std::ops::Deref for Chosen {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoints of one backend.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    list: ArcSwap<List>,
}

#[derive(Debug, Default)]
struct List {
    endpoints: Box<[Arc<Endpoint>]>,
    h2c: bool,
}

impl Pool {
    /// Makes the pool hold exactly these endpoints. Returns whether anything changed.
    pub(crate) fn update(&self, wanted: &Endpoints, timeouts: &Timeouts) -> bool {
        let now = self.list.load();
        let same = now.h2c == wanted.h2c
            && now.endpoints.iter().map(|endpoint| endpoint.address).eq(wanted.addresses.iter().copied());
        if same {
            return false;
        }
        let keep = |address: &SocketAddr| {
            let found = now.endpoints.iter().find(|endpoint| endpoint.address == *address)?;
            (now.h2c == wanted.h2c).then(|| Arc::clone(found))
        };
        let endpoints = wanted
            .addresses
            .iter()
            .map(|address| {
                keep(address).unwrap_or_else(|| Arc::new(Endpoint::new(*address, wanted.h2c, timeouts)))
            })
            .collect();
        self.list.store(Arc::new(List { endpoints, h2c: wanted.h2c }));
        true
    }

    /// Whether its endpoints speak HTTP/2 in cleartext.
    pub(crate) fn is_h2c(&self) -> bool {
        self.list.load().h2c
    }

    /// Closes connections that waited too long. Returns how many are left.
    pub(crate) fn sweep(&self) -> usize {
        self.list
            .load()
            .endpoints
            .iter()
            .map(|endpoint| endpoint.idle.sweep() + endpoint.connections.sweep())
            .sum()
    }

    /// Whether no endpoint is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.load().endpoints.is_empty()
    }

    /// How many endpoints are there.
    pub(crate) fn len(&self) -> usize {
        self.list.load().endpoints.len()
    }

    /// Chooses an endpoint that is not in `failed`.
    ///
    /// Two are drawn at random and the one with fewer requests in flight wins, which keeps the longest queue
    /// near the average without looking at all of them. Those that refused lately come last, not never: when
    /// all did, trying is better than failing.
    pub(crate) fn choose(&self, failed: &[SocketAddr]) -> Option<Chosen> {
        let list = self.list.load();
        let all = &list.endpoints;
        let now = clock();
        let good = |endpoint: &Endpoint| {
            endpoint.avoid_until_ms.load(Ordering::Relaxed) <= now && !failed.contains(&endpoint.address)
        };
        let load = |endpoint: &Endpoint| endpoint.in_flight.load(Ordering::Relaxed);
        let count = all.len();
        let start = match count {
            0 => return None,
            1 => 0,
            _ => {
                let first = random_below(count);
                let second = (first + 1 + random_below(count - 1)) % count;
                match (good(&all[first]), good(&all[second])) {
                    (true, true) if load(&all[second]) < load(&all[first]) => {
                        return Some(Chosen::new(&all[second]));
                    }
                    (true, _) => return Some(Chosen::new(&all[first])),
                    (false, true) => return Some(Chosen::new(&all[second])),
                    (false, false) => first,
                }
            }
        };
        let from_start = || (0..count).map(|step| &all[(start + step) % count]);
        from_start()
            .find(|endpoint| good(endpoint))
            .or_else(|| from_start().find(|endpoint| !failed.contains(&endpoint.address)))
            .map(Chosen::new)
    }

    /// Chooses by rank for a key, if there is one, else by load.
    pub(crate) fn choose_by(&self, rank_by: Option<u64>, failed: &[SocketAddr]) -> Option<Chosen> {
        match rank_by {
            Some(key) => self.choose_ranked(key, failed),
            None => self.choose(failed),
        }
    }

    /// Chooses the endpoint that ranks highest for `key` and is not in `failed` (rendezvous hashing): the same key
    /// finds the same endpoint, and when endpoints come or go only those keys move that have to. One hash per
    /// endpoint.
    pub(crate) fn choose_ranked(&self, key: u64, failed: &[SocketAddr]) -> Option<Chosen> {
        let list = self.list.load();
        let now = clock();
        let left = || list.endpoints.iter().filter(|endpoint| !failed.contains(&endpoint.address));
        let answering = left().filter(|endpoint| endpoint.avoid_until_ms.load(Ordering::Relaxed) <= now);
        let highest = answering.max_by_key(|endpoint| rank(key, endpoint));
        highest.or_else(|| left().max_by_key(|endpoint| rank(key, endpoint))).map(Chosen::new)
    }
}

/// How high an endpoint ranks for a key; the same on every replica.
fn rank(key: u64, endpoint: &Endpoint) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new(); // the same in every process of one build
    (key, endpoint.address).hash(&mut hasher);
    hasher.finish()
}

/// Milliseconds since the first call.
fn clock() -> u64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64 + 1
}

/// A number below `bound`, from a per-thread xorshift: spreading load needs no better.
pub(crate) fn random_below(bound: usize) -> usize {
    (random() % bound as u64) as usize
}

/// 64 bits that are good enough to spread load and to tell requests apart in a log, and for no secret.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0_u8) | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// A fresh connection to an endpoint.
pub(crate) async fn connect(address: SocketAddr, longest: Duration) -> Result<TcpStream, UpstreamFailure> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    match timeout(longest, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => Err(UpstreamFailure::ConnectTimeout),
    }
}

fn refusal(error: &io::Error) -> UpstreamFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => UpstreamFailure::ConnectRefused,
        io::ErrorKind::TimedOut => UpstreamFailure::ConnectTimeout,
        _ => UpstreamFailure::ConnectOther,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &[&str]) -> Pool {
        let pool = Pool::default();
        pool.update(&wanted(addresses), &Timeouts::default());
        pool
    }

    fn wanted(addresses: &[&str]) -> Endpoints {
        Endpoints { addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(), h2c: false }
    }

    #[test]
    fn an_empty_pool_chooses_nothing() {
        assert!(pool(&[]).choose(&[]).is_none());
    }

    #[test]
    fn two_endpoints_share_evenly_when_requests_stay_in_flight() {
        let pool = pool(&["10.0.0.1:80", "10.0.0.2:80"]);
        let held: Vec<_> = (0..100).map(|_| pool.choose(&[]).unwrap()).collect();
        let first = held.iter().filter(|chosen| chosen.address().to_string() == "10.0.0.1:80").count();
        assert_eq!(first, 50);
    }

    #[test]
    fn every_endpoint_is_drawn() {
        let addresses = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"];
        let pool = pool(&addresses);
        let mut seen: Vec<_> = (0..200).map(|_| pool.choose(&[]).unwrap().address().to_string()).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, addresses);
    }

    #[test]
    fn failed_endpoints_are_never_chosen_and_avoided_ones_last() {
        let pool = pool(&["10.0.0.1:80", "10.0.0.2:80"]);
        let failed = ["10.0.0.1:80".parse().unwrap()];
        for _ in 0..20 {
            assert_eq!(pool.choose(&failed).unwrap().address().to_string(), "10.0.0.2:80");
        }
        pool.choose(&failed).unwrap().avoid();
        for _ in 0..20 {
            assert_eq!(pool.choose(&[]).unwrap().address().to_string(), "10.0.0.1:80");
        }
        assert_eq!(pool.choose(&failed).unwrap().address().to_string(), "10.0.0.2:80");
        assert!(pool.choose(&["10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap()]).is_none());
    }

    #[test]
    fn a_key_keeps_its_endpoint_while_others_come_and_go() {
        let addresses: Vec<String> = (1..=8).map(|n| format!("10.0.0.{n}:80")).collect();
        let all: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let (seven, eight) = (pool(&all[..7]), pool(&all));
        let of = |pool: &Pool, key| pool.choose_ranked(key, &[]).unwrap().address();
        let moved: Vec<u64> = (0..800).filter(|key| of(&seven, *key) != of(&eight, *key)).collect();
        assert!(moved.iter().all(|key| of(&eight, *key).to_string() == "10.0.0.8:80"));
        assert!((50..150).contains(&moved.len()), "an eighth of the keys, not {}", moved.len());

        let first = of(&eight, 1);
        let second = eight.choose_ranked(1, &[first]).unwrap();
        assert_ne!(second.address(), first);
        eight.choose_ranked(1, &[]).unwrap().avoid();
        assert_eq!(of(&eight, 1), second.address());
        assert!(pool(&[]).choose_ranked(1, &[]).is_none());
    }

    #[test]
    fn an_update_keeps_the_endpoints_that_stay() {
        let pool = pool(&["10.0.0.1:80"]);
        let held = pool.choose(&[]).unwrap();
        let timeouts = Timeouts::default();
        assert!(!pool.update(&wanted(&["10.0.0.1:80"]), &timeouts));
        assert!(pool.update(&wanted(&["10.0.0.1:80", "10.0.0.2:80"]), &timeouts));
        // The held one has a request in flight, so the new one is preferred.
        assert_eq!(pool.choose(&[]).unwrap().address().to_string(), "10.0.0.2:80");
        drop(held);
        assert_eq!(pool.len(), 2);
    }
}
