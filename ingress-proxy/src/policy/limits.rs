//! How much one client may ask for: requests per time, and requests at a time.
//!
//! Rates are counted by the generic cell rate algorithm: of each client one number is kept, the moment up to which
//! its requests are paid for. The numbers lie in a table of fixed size, found by a keyed hash; where a bucket is full
//! the client that is next to be forgiven anyway is forgotten. So memory is bounded, no request pays more than a look
//! at one bucket, and a flood of addresses costs at most that others start afresh. Requests in flight are counted
//! exactly, in a map that has no entry for a client without any.
//!
//! IPv6 clients are counted by their /64, which is what one client has.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::client::is_in;
use super::{By, Client, Reply};
use crate::config::Network;

/// What a client over its limit hears: nginx's default for `limit_req_status` and `limit_conn_status`.
const STATUS: u16 = 503;
/// Buckets of the table of rates, of [`WAYS`] clients each: together 65,536 clients and one megabyte, made when the
/// first rate is asked for.
const BUCKETS: usize = 8_192;
const WAYS: usize = 8;
/// Clients with requests in flight that are counted at a time. Those beyond are not limited, and a metric says so.
const MAX_COUNTED: usize = 65_536;
/// Parts of the map of requests in flight, so that threads seldom meet.
const SHARDS: usize = 16;

/// `limit-rps`, `limit-rpm`, `limit-connections`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Who counts together: the rules of one Ingress.
    pub(crate) group: Box<str>,
    /// Requests in flight for one client.
    pub(crate) at_a_time: Option<u32>,
    pub(crate) rates: Box<[Rate]>,
    /// `limit-whitelist`: not limited.
    pub(crate) exempt: Box<[Network]>,
}

/// A rate and how far it may be exceeded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) requests: u32,
    pub(crate) per: Per,
    /// Requests beyond the rate that are served without delay, to be made up for later.
    pub(crate) burst: u32,
}

/// The time that a rate is given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Per {
    Second,
    Minute,
}

impl Per {
    fn in_us(self) -> u64 {
        match self {
            Self::Second => 1_000_000,
            Self::Minute => 60_000_000,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
        }
    }
}

impl Limits {
    /// Lets the request in, with its place among those in flight if these are limited, or says why not. Nothing is
    /// counted of one that is `only_asked` about.
    pub(super) fn admit(
        &self,
        client: &Client,
        rates: &Rates,
        places: &Arc<Places>,
        only_asked: bool,
    ) -> Result<Option<Place>, Reply> {
        if self.is_exempt(client) {
            return Ok(None);
        }
        let who = network_of(client.address);
        let place = match self.at_a_time {
            None => None,
            Some(most) => places.take((&self.group, who), most, only_asked).map_err(|Full| {
                Reply::new(STATUS, By::ConnectionLimit, format!("more than {most} requests at a time"))
            })?,
        };
        for rate in &self.rates {
            if !rates.admit((&self.group, rate.per, who), rate, client.now_us, only_asked) {
                let text = format!("more than {} requests per {}", rate.requests, rate.per.name());
                return Err(Reply::new(STATUS, By::RateLimit, text));
            }
        }
        Ok(place)
    }

    pub(super) fn is_exempt(&self, client: &Client) -> bool {
        is_in(&self.exempt, client.address)
    }
}

/// What counts as one client.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// The table of rates.
#[derive(Debug)]
pub(crate) struct Rates {
    hasher: RandomState,
    buckets: OnceLock<Box<[Mutex<Bucket>]>>,
    forgotten: Counter,
}

type Bucket = [Entry; WAYS];

/// One client's rate. All zero is nobody's.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    key: u64,
    /// Up to when its requests are paid for.
    paid_until_us: u64,
}

impl Rates {
    /// `forgotten` counts clients that were forgotten before their time.
    pub(super) fn new(forgotten: Counter) -> Self {
        Self { hasher: RandomState::new(), buckets: OnceLock::new(), forgotten }
    }

    fn admit(&self, who: impl Hash, rate: &Rate, now_us: u64, only_asked: bool) -> bool {
        let cost_us = (rate.per.in_us() / u64::from(rate.requests.max(1))).max(1);
        let key = self.hasher.hash_one(who).max(1);
        let buckets = self.buckets.get_or_init(|| (0..BUCKETS).map(|_| Mutex::default()).collect());
        let bucket = &buckets[(key % BUCKETS as u64) as usize];
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let known = bucket.iter().position(|entry| entry.key == key);
        let paid_until = known.map_or(0, |at| bucket[at].paid_until_us).max(now_us);
        if paid_until - now_us > cost_us.saturating_mul(u64::from(rate.burst)) {
            return false;
        }
        if only_asked {
            return true;
        }
        let at = known.unwrap_or_else(|| {
            let forgiven_first = |index: &usize| bucket[*index].paid_until_us;
            let victim = (0..WAYS).min_by_key(forgiven_first).expect("a bucket has entries");
            if bucket[victim].paid_until_us > now_us {
                self.forgotten.inc();
            }
            victim
        });
        bucket[at] = Entry { key, paid_until_us: paid_until + cost_us };
        true
    }
}

/// Requests in flight, by client.
#[derive(Debug)]
pub(crate) struct Places {
    hasher: RandomState,
    shards: [Mutex<HashMap<u64, u32>>; SHARDS],
    counted: Gauge,
    uncounted: Counter,
}

/// A client has as many requests in flight as it may.
#[derive(Debug)]
struct Full;

/// One request's place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    key: u64,
}

impl Places {
    /// `counted` shows the clients with requests in flight, `uncounted` the requests beyond [`MAX_COUNTED`].
    pub(super) fn new(counted: Gauge, uncounted: Counter) -> Self {
        Self { hasher: RandomState::new(), shards: Default::default(), counted, uncounted }
    }

    fn shard(&self, key: u64) -> std::sync::MutexGuard<'_, HashMap<u64, u32>> {
        self.shards[(key % SHARDS as u64) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Ok(None)` beyond the bound on what is counted.
    fn take(self: &Arc<Self>, who: impl Hash, most: u32, only_asked: bool) -> Result<Option<Place>, Full> {
        let key = self.hasher.hash_one(who);
        let mut shard = self.shard(key);
        match shard.get(&key).copied().unwrap_or(0) {
            count if count >= most => return Err(Full),
            _ if only_asked => return Ok(None),
            0 if shard.len() >= MAX_COUNTED / SHARDS => {
                self.uncounted.inc();
                return Ok(None);
            }
            0 => {
                shard.insert(key, 1);
                self.counted.inc();
            }
            count => {
                shard.insert(key, count + 1);
            }
        }
        Ok(Some(Place { places: Arc::clone(self), key }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shard = self.places.shard(self.key);
        if let Some(count) = shard.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.key);
                self.places.counted.dec();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str, now_us: u64) -> Client {
        Client { address: address.parse().unwrap(), https: false, now_us, dice: 0 }
    }

    fn state() -> (Rates, Arc<Places>) {
        (Rates::new(Counter::default()), Arc::new(Places::new(Gauge::default(), Counter::default())))
    }

    fn limits(rates: &[Rate], at_a_time: Option<u32>) -> Limits {
        let exempt = ["10.0.0.0/8".parse().unwrap()];
        Limits { group: "n/i".into(), at_a_time, rates: rates.into(), exempt: exempt.into() }
    }

    #[test]
    fn a_burst_is_served_and_then_the_rate() {
        let (rates, places) = state();
        let limits = limits(&[Rate { requests: 2, per: Per::Second, burst: 4 }], None);
        let served =
            |address: &str, now_us| limits.admit(&client(address, now_us), &rates, &places, false).is_ok();
        let at_once = (0..10).filter(|_| served("192.0.2.1", 0)).count();
        assert_eq!(at_once, 5, "one and the burst");
        assert!(served("192.0.2.2", 0), "others are not concerned");
        assert!(!served("192.0.2.1", 499_999));
        assert!(served("192.0.2.1", 500_000));
        assert!(!served("192.0.2.1", 500_000));
        assert_eq!((0..10).filter(|_| served("192.0.2.1", 60_000_000)).count(), 5, "all is forgiven");
        assert!((0..100).all(|_| served("10.1.1.1", 0)), "exempt");
        let reply = limits.admit(&client("192.0.2.1", 60_000_000), &rates, &places, false).unwrap_err();
        assert_eq!((reply.status, &*reply.text), (503, "more than 2 requests per second"));
    }

    #[test]
    fn a_client_of_ipv6_is_a_network() {
        let (rates, places) = state();
        let limits = limits(&[Rate { requests: 1, per: Per::Minute, burst: 0 }], None);
        let served = |address: &str| limits.admit(&client(address, 0), &rates, &places, false).is_ok();
        assert!(served("2001:db8:0:1::1"));
        assert!(!served("2001:db8:0:1:ffff::2"));
        assert!(served("2001:db8:0:2::1"));
    }

    #[test]
    fn memory_is_bounded_and_forgetting_is_counted() {
        let (rates, _) = state();
        let rate = Rate { requests: 1, per: Per::Minute, burst: 0 };
        for client in 0..(BUCKETS * WAYS * 2) {
            assert!(rates.admit(client, &rate, 0, false), "a new client is let in");
        }
        let forgotten = rates.forgotten.get();
        assert!(forgotten >= (BUCKETS * WAYS) as u64, "{forgotten}");
    }

    #[test]
    fn places_are_given_back() {
        let (rates, places) = state();
        let limits = limits(&[], Some(2));
        let take = |address: &str| limits.admit(&client(address, 0), &rates, &places, false);
        let first = take("192.0.2.1").unwrap();
        let second = take("192.0.2.1").unwrap();
        assert_eq!(take("192.0.2.1").unwrap_err().by, By::ConnectionLimit);
        assert!(take("192.0.2.2").is_ok());
        drop(first);
        assert!(take("192.0.2.1").is_ok());
        drop(second);
        assert_eq!(places.counted.get(), 0);
        assert!(places.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }

    /// What is only asked about takes neither a place nor a share of the rate, and hears the same.
    #[test]
    fn questions_are_answered_and_not_counted() {
        let (rates, places) = state();
        let limits = limits(&[Rate { requests: 1, per: Per::Minute, burst: 0 }], Some(1));
        let ask = || limits.admit(&client("192.0.2.1", 0), &rates, &places, true);
        assert!((0..9).all(|_| matches!(ask(), Ok(None))));
        assert_eq!(places.counted.get(), 0);
        let place = limits.admit(&client("192.0.2.1", 0), &rates, &places, false).unwrap();
        assert_eq!(ask().unwrap_err().by, By::ConnectionLimit);
        drop(place);
        assert_eq!(ask().unwrap_err().by, By::RateLimit);
    }

    /// A request that its rate refuses takes no place.
    #[test]
    fn a_refused_request_has_no_place() {
        let (rates, places) = state();
        let limits = limits(&[Rate { requests: 1, per: Per::Minute, burst: 0 }], Some(10));
        let _kept = limits.admit(&client("192.0.2.1", 0), &rates, &places, false).unwrap();
        assert!(limits.admit(&client("192.0.2.1", 0), &rates, &places, false).is_err());
        assert_eq!(places.counted.get(), 1);
        let key = places.hasher.hash_one(("n/i", client("192.0.2.1", 0).address));
        assert_eq!(places.shard(key)[&key], 1);
    }
}
