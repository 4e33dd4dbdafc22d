//! Passive ejection: an endpoint that fails several times in a row gets no requests for a while.
//!
//! What counts is the endpoint's own fault: no connection, no answer, an answer that is none, or a gateway's 502, 503, 504.
//! Any other answer ends the row. Back again, an endpoint has one chance: the next failure ejects it for twice as long.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Failures in a row that eject an endpoint. One or two happen to the best.
const MAX_FAILURES: u32 = 3;
/// How long the first ejection lasts: a restarted pod is back before anyone looks.
const FIRST: Duration = Duration::from_secs(1);
/// How long one lasts at most, each being twice the one before; and after as long without one they begin anew.
const LONGEST: Duration = Duration::from_secs(30);

/// Whether an answer's status is a failure of the endpoint's.
pub(crate) fn is_failure(status: u16) -> bool {
    matches!(status, 502..=504)
}

/// One endpoint's failures, and until when it is ejected because of them.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    failures: AtomicU32,
    /// One after the other.
    ejections: AtomicU32,
    until_us: AtomicU64,
}

impl Ejection {
    pub(super) fn is_on(&self, now_us: u64) -> bool {
        self.until_us.load(Ordering::Relaxed) > now_us
    }

    /// How long it is still on, if it is.
    pub(super) fn left_us(&self, now_us: u64) -> Option<u64> {
        self.until_us.load(Ordering::Relaxed).checked_sub(now_us).filter(|left| *left > 0)
    }

    /// The endpoint did what it is there for.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// The endpoint failed. Says whether it is due for an ejection.
    pub(super) fn failed(&self, now_us: u64) -> bool {
        // Also what was under way when it was ejected fails now, and says nothing new.
        !self.is_on(now_us) && self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_FAILURES
    }

    /// Ejects it. One at a time.
    pub(super) fn begin(&self, now_us: u64) {
        let last_us = self.until_us.load(Ordering::Relaxed);
        let is_anew = last_us + micros(LONGEST) < now_us;
        let before = if is_anew { 0 } else { self.ejections.load(Ordering::Relaxed) };
        let lasts = FIRST.saturating_mul(2_u32.saturating_pow(before)).min(LONGEST);
        self.ejections.store(before + 1, Ordering::Relaxed);
        self.until_us.store(now_us + micros(lasts), Ordering::Relaxed);
    }
}

/// Whether one more endpoint of a backend may be ejected: at most half of them are. When more fail it is mostly not they
/// who are at fault, and fewer would break down under what is left for them.
pub(super) fn has_room(ejected: usize, all: usize) -> bool {
    (ejected + 1) * 2 <= all
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn failing(ejection: &Ejection, times: usize, now_us: u64) -> bool {
        (0..times).map(|_| ejection.failed(now_us)).last().unwrap()
    }

    /// How long an ejection at this time lasts, in seconds.
    fn lasts(ejection: &Ejection, now_us: u64) -> u64 {
        ejection.begin(now_us);
        (0..100).find(|seconds| !ejection.is_on(now_us + seconds * S)).unwrap()
    }

    #[test]
    fn failures_in_a_row_are_counted() {
        let ejection = Ejection::default();
        assert!(!failing(&ejection, 2, S));
        ejection.succeeded();
        assert!(!failing(&ejection, 2, S));
        assert!(failing(&ejection, 1, S));
        assert!(!ejection.is_on(S), "that is for the pool to decide");
    }

    #[test]
    fn what_was_under_way_does_not_prolong_it() {
        let ejection = Ejection::default();
        assert!(failing(&ejection, 3, S));
        ejection.begin(S);
        assert!(ejection.is_on(S) && ejection.is_on(2 * S - 1) && !ejection.is_on(2 * S));
        assert_eq!((ejection.left_us(S + 1), ejection.left_us(2 * S)), (Some(S - 1), None));
        assert!(!failing(&ejection, 9, 2 * S - 1));
        assert!(failing(&ejection, 1, 2 * S), "it had one chance");
    }

    #[test]
    fn ejections_grow_to_a_bound_and_begin_anew() {
        let ejection = Ejection::default();
        let mut now_us = 100 * S;
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(lasts(&ejection, now_us), expected);
            now_us += (expected + 1) * S;
        }
        assert_eq!(lasts(&ejection, now_us + 30 * S), 1);
        let old = Ejection { ejections: AtomicU32::new(u32::MAX - 1), ..Ejection::default() };
        assert_eq!(lasts(&old, S), 30, "no overflow");
    }

    #[test]
    fn half_of_them_stay() {
        for (all, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
            assert_eq!((0..100).find(|ejected| !has_room(*ejected, all)), Some(most), "{all}");
        }
    }

    #[test]
    fn gateway_errors_are_failures() {
        let failures: Vec<u16> = (100..600).filter(|status| is_failure(*status)).collect();
        assert_eq!(failures, [502, 503, 504]);
    }
}
