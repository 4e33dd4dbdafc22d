//! One choice among a backend's endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{Balance, Method, is_second_better};
use super::endpoint::Endpoint;
use super::random::{random_below, random_part};
use super::slow_start;

/// One choice among endpoints.
///
/// Those that are ejected come last, not never: when no other is left, trying is better than failing. Those that health checks
/// took out come never, unless all are out. One that has as many requests in flight as it may comes never.
pub(super) struct Choice<'l> {
    pub(super) all: &'l [Arc<Endpoint>],
    pub(super) failed: &'l [SocketAddr],
    pub(super) now_us: u64,
    pub(super) balance: Balance,
}

impl<'l> Choice<'l> {
    /// By rank for a key, if there is one, else in the manner of `balance`; `turn` says whose turn it is.
    pub(super) fn endpoint(
        &self,
        rank_by: Option<u64>,
        turn: impl FnOnce() -> usize,
    ) -> Option<&'l Arc<Endpoint>> {
        match (rank_by, self.balance.method) {
            (Some(key), _) => self.ranked(key),
            (None, Method::RoundRobin) => self.in_turn(turn()),
            (None, method) => self.of_two(method),
        }
    }

    /// The better of two that are drawn at random.
    fn of_two(&self, method: Method) -> Option<&'l Arc<Endpoint>> {
        let all = self.all;
        if all.len() < 2 {
            return self.from(0);
        }
        let first = random_below(all.len());
        let second = (first + 1 + random_below(all.len() - 1)) % all.len();
        match (self.is_good(&all[first]), self.is_good(&all[second])) {
            (true, true) if is_second_better(method, &all[first], &all[second], self.now_us) => {
                Some(&all[second])
            }
            (true, _) => Some(&all[first]),
            (false, true) => Some(&all[second]),
            (false, false) => self.from(first),
        }
    }

    /// The one whose turn it is.
    fn in_turn(&self, turn: usize) -> Option<&'l Arc<Endpoint>> {
        self.from(turn.checked_rem(self.all.len())?)
    }

    /// The one that ranks highest for `key` (rendezvous hashing): the same key finds the same endpoint, and when endpoints come
    /// or go only those keys move that have to. One hash per endpoint.
    fn ranked(&self, key: u64) -> Option<&'l Arc<Endpoint>> {
        let able = self.all.iter().filter(|endpoint| self.is_able(endpoint));
        let highest = able.max_by_key(|endpoint| rank(key, endpoint));
        let last = || self.all.iter().filter(self.come_last());
        highest.or_else(|| last().max_by_key(|endpoint| rank(key, endpoint)))
    }

    /// The first good one from `start` on, or else the first that is able, or comes last.
    fn from(&self, start: usize) -> Option<&'l Arc<Endpoint>> {
        let from_start = || self.all[start..].iter().chain(&self.all[..start]);
        from_start()
            .find(|endpoint| self.is_good(endpoint))
            .or_else(|| from_start().find(|endpoint| self.is_able(endpoint)))
            .or_else(|| from_start().find(self.come_last()))
    }

    fn is_left(&self, endpoint: &Endpoint) -> bool {
        !self.failed.contains(&endpoint.address())
            && self.balance.most.is_none_or(|most| endpoint.in_flight() < most)
    }

    fn is_able(&self, endpoint: &Endpoint) -> bool {
        !endpoint.ejection.is_on(self.now_us) && self.is_left(endpoint)
    }

    /// Which endpoints may be tried when none is able.
    fn come_last(&self) -> impl Fn(&&'l Arc<Endpoint>) -> bool {
        let may_be_out = all_are_out(self.all);
        move |endpoint| self.is_left(endpoint) && (may_be_out || !endpoint.ejection.is_out())
    }

    fn is_good(&self, endpoint: &Endpoint) -> bool {
        self.is_able(endpoint)
            && self.balance.slow_start.is_none_or(|window| {
                let part = slow_start::part(endpoint.age_us(self.now_us), window);
                part >= 1.0 || random_part() < part
            })
    }
}

/// Whether health checks took all of them out. Then it is likelier the check that is wrong than every pod that Kubernetes calls
/// ready, and all are used.
pub(super) fn all_are_out(endpoints: &[Arc<Endpoint>]) -> bool {
    endpoints.iter().all(|endpoint| endpoint.ejection.is_out())
}

/// How high an endpoint ranks for a key; the same on every replica.
fn rank(key: u64, endpoint: &Endpoint) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new(); // the same in every process of one build
    (key, endpoint.address()).hash(&mut hasher);
    hasher.finish()
}
