//! When which endpoint is checked next.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::endpoint::Endpoint;
use super::super::random::random_part;

/// The endpoints of a pool by the time of their next check. Each has its own time in the interval, so that however many there
/// are, they are not all asked at once.
#[derive(Debug)]
pub(super) struct Agenda {
    interval: Duration,
    /// As many as endpoints.
    next: BTreeMap<(Instant, SocketAddr), Arc<Endpoint>>,
}

impl Agenda {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, next: BTreeMap::new() }
    }

    /// Holds exactly these endpoints from now on. Those that it had keep their time.
    pub(super) fn follow(&mut self, endpoints: &[Arc<Endpoint>], now: Instant) {
        let wanted: HashSet<*const Endpoint> = endpoints.iter().map(Arc::as_ptr).collect();
        self.next.retain(|_, endpoint| wanted.contains(&Arc::as_ptr(endpoint)));
        let had: HashSet<*const Endpoint> = self.next.values().map(Arc::as_ptr).collect();
        for endpoint in endpoints.iter().filter(|endpoint| !had.contains(&Arc::as_ptr(endpoint))) {
            let at = now + self.interval.mul_f64(random_part());
            self.next.insert((at, endpoint.address()), Arc::clone(endpoint));
        }
    }

    /// When the next check is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next.first_key_value().map(|((at, _), _)| *at)
    }

    /// The endpoint whose turn it is, if it is somebody's. Its next check is an interval from now: what came late makes the
    /// checks behind it late, not more.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Arc<Endpoint>> {
        let first = self.next.first_entry().filter(|first| first.key().0 <= now)?;
        let endpoint = first.remove();
        self.next.insert((now + self.interval, endpoint.address()), Arc::clone(&endpoint));
        Some(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timeouts;

    const INTERVAL: Duration = Duration::from_secs(5);

    fn endpoints(numbers: std::ops::Range<u16>) -> Vec<Arc<Endpoint>> {
        let new = |port| {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            Arc::new(Endpoint::new(address, None, &Timeouts::default(), 0))
        };
        numbers.map(new).collect()
    }

    /// Who is checked up to this time, in order.
    fn until(agenda: &mut Agenda, end: Instant) -> Vec<(Instant, u16)> {
        let mut begun = Vec::new();
        while let Some(at) = agenda.next().filter(|at| *at <= end) {
            begun.push((at, agenda.begin(at).unwrap().address().port()));
        }
        begun
    }

    #[test]
    fn checks_are_spread_over_the_interval_and_stay_so() {
        let (mut agenda, start) = (Agenda::new(INTERVAL), Instant::now());
        agenda.follow(&endpoints(0..1_000), start);
        let first = until(&mut agenda, start + INTERVAL);
        assert_eq!(first.len(), 1_000, "each once");
        for fifth in 0..5 {
            let (from, to) = (start + INTERVAL / 5 * fifth, start + INTERVAL / 5 * (fifth + 1));
            let number = first.iter().filter(|(at, _)| (from..to).contains(at)).count();
            assert!((120..280).contains(&number), "{number} in a fifth of the interval");
        }
        let second = until(&mut agenda, start + 2 * INTERVAL);
        let expected: Vec<_> = first.iter().map(|(at, port)| (*at + INTERVAL, *port)).collect();
        assert_eq!(second, expected);
    }

    #[test]
    fn endpoints_come_and_go() {
        let (mut agenda, start, all) = (Agenda::new(INTERVAL), Instant::now(), endpoints(0..4));
        agenda.follow(&all[..3], start);
        let kept = agenda.next.clone();
        agenda.follow(&all[1..], start);
        assert_eq!(agenda.next.len(), 3);
        let stayed = kept.iter().filter(|(_, endpoint)| endpoint.address().port() > 0);
        assert!(stayed.into_iter().all(|(key, _)| agenda.next.contains_key(key)), "they keep their time");
        // The same address with another identity is another endpoint.
        agenda.follow(&endpoints(1..4), start);
        assert!(agenda.next.values().all(|endpoint| all.iter().all(|old| !Arc::ptr_eq(old, endpoint))));
        agenda.follow(&[], start);
        assert_eq!((agenda.next(), agenda.begin(start + INTERVAL).is_none()), (None, true));
    }

    #[test]
    fn what_is_late_is_not_made_up_for() {
        let (mut agenda, start) = (Agenda::new(INTERVAL), Instant::now());
        agenda.follow(&endpoints(0..1), start);
        assert!(agenda.next().unwrap() < start + INTERVAL);
        let late = start + 10 * INTERVAL;
        assert!(agenda.begin(late).is_some());
        assert_eq!(agenda.next(), Some(late + INTERVAL));
        assert!(agenda.begin(late).is_none(), "it is nobody's turn");
    }
}
