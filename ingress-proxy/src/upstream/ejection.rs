//! Passive ejection: an endpoint that fails several times in a row gets no requests for a while.
//!
//! What counts is the endpoint's own fault: no connection, no answer, an answer that is none, or a gateway's 502, 503, 504.
//! Any other answer ends the row. Back again, an endpoint has one chance: the next failure ejects it for twice as long.
//!
//! What health checks ([`super::health`]) took out is ejected too, until they put it back. It is a bit of the same word, so that
//! requests pay nothing for it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Failures in a row that eject an endpoint. One or two happen to the best.
const MAX_FAILURES: u32 = 3;
/// How long the first ejection lasts: a restarted pod is back before anyone looks.
const FIRST: Duration = Duration::from_secs(1);
/// How long one lasts at most, each being twice the one before; and after as long without one they begin anew.
const LONGEST: Duration = Duration::from_secs(30);

/// The bit of who was taken out by health checks. With it, the time until which an endpoint is ejected never comes.
const OUT: u64 = 1 << 63;

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
    /// With [`OUT`].
    until_us: AtomicU64,
}

impl Ejection {
    pub(super) fn is_on(&self, now_us: u64) -> bool {
        self.until_us.load(Ordering::Relaxed) > now_us
    }

    /// How long it is still on because of failed requests, if it is.
    pub(super) fn left_us(&self, now_us: u64) -> Option<u64> {
        (self.until_us.load(Ordering::Relaxed) & !OUT).checked_sub(now_us).filter(|left| *left > 0)
    }

    /// Whether health checks took it out.
    pub(super) fn is_out(&self) -> bool {
        self.until_us.load(Ordering::Relaxed) & OUT != 0
    }

    /// Health checks take it out, or put it back with a clean slate.
    pub(super) fn take_out(&self, out: bool) {
        if out {
            self.until_us.fetch_or(OUT, Ordering::Relaxed);
        } else {
            self.failures.store(0, Ordering::Relaxed);
            self.until_us.store(0, Ordering::Relaxed);
        }
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
        let last_us = self.until_us.load(Ordering::Relaxed) & !OUT;
        let is_anew = last_us + micros(LONGEST) < now_us;
        let before = if is_anew { 0 } else { self.ejections.load(Ordering::Relaxed) };
        let lasts = FIRST.saturating_mul(2_u32.saturating_pow(before)).min(LONGEST);
        self.ejections.store(before + 1, Ordering::Relaxed);
        // Who is taken out meanwhile stays so.
        let until_us = |word: u64| Some((word & OUT) | (now_us + micros(lasts)));
        let _ = self.until_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, until_us);
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

    /// How long an ejection at this time lasts, in seconds; 99 and more are 99.
    fn lasts(ejection: &Ejection, now_us: u64) -> u64 {
        ejection.begin(now_us);
        (0..99).find(|seconds| !ejection.is_on(now_us + seconds * S)).unwrap_or(99)
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
    fn who_is_out_stays_out_until_it_is_put_back() {
        let ejection = Ejection::default();
        ejection.take_out(true);
        assert!(ejection.is_out() && ejection.is_on(u64::MAX >> 1));
        assert_eq!(ejection.left_us(S), None, "there is no time at which it is back");
        assert!(!failing(&ejection, 9, S), "it is ejected already");
        assert_eq!(lasts(&ejection, S), 99, "whatever its requests do");
        assert!(ejection.is_out());
        assert_eq!(ejection.left_us(S), Some(S));
        ejection.take_out(false);
        assert!(!ejection.is_out() && !ejection.is_on(S));
        assert!(!failing(&ejection, 2, S), "failures of before are forgotten");
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
