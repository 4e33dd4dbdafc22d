//! How long an endpoint takes to answer, as a peak-EWMA (that of Finagle and Linkerd).
//!
//! An exponentially weighted moving average over time, not over samples: a sample weighs what has passed since the last
//! one. It is pessimistic: a sample above the average replaces it at once, and only time brings it down again. An endpoint
//! that is not asked is forgiven at the same pace, so that it is tried again.

use std::sync::atomic::{AtomicU64, Ordering};

/// After so long without a peak, 63 % of it are forgotten. Finagle's and Linkerd's.
const DECAY_MS: f32 = 10_000.0;
/// Estimates below count as this: such differences between endpoints are the noise of two schedulers and a network, and
/// would draw all requests to one of them.
const FLOOR_US: f32 = 1_000.0;

/// One endpoint's. Milliseconds of the last sample's time in the upper half, the bits of the estimate in microseconds in the
/// lower; 0 until the first sample. One word, so that the two always belong together.
#[derive(Debug, Default)]
pub(super) struct Latency(AtomicU64);

impl Latency {
    /// Takes an answer's time into account. Writes at most once a millisecond, but for peaks.
    pub(super) fn answered(&self, took_us: u64, now_us: u64) {
        self.learn(took_us, now_us, true);
    }

    /// The same for an answer to a request with a body. What a client took to send it is in the time, so that it may be no
    /// peak of the endpoint's: it only has its weight.
    pub(super) fn answered_body(&self, took_us: u64, now_us: u64) {
        self.learn(took_us, now_us, false);
    }

    fn learn(&self, took_us: u64, now_us: u64, may_be_peak: bool) {
        let took = (took_us as f32).max(1.0);
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let next = match unpack(word) {
                None => took,
                Some((_, estimate)) if may_be_peak && took >= estimate => took,
                Some((at_ms, estimate)) => {
                    let kept = kept(at_ms, now_us);
                    if kept >= 1.0 {
                        return;
                    }
                    estimate * kept + took * (1.0 - kept)
                }
            };
            match self.0.compare_exchange_weak(word, pack(now_us, next), Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(other) => word = other,
            }
        }
    }

    /// Takes the time into account after which no answer came. It can only make the endpoint look slower: who fails fast is to
    /// attract nobody.
    pub(super) fn failed(&self, took_us: u64, now_us: u64) {
        if self.estimate_us(now_us).is_some_and(|estimate| took_us as f32 > estimate) {
            self.answered(took_us, now_us);
        }
    }

    /// What an answer is expected to take now; `None` before the first one.
    pub(super) fn estimate_us(&self, now_us: u64) -> Option<f32> {
        let (at_ms, estimate) = unpack(self.0.load(Ordering::Relaxed))?;
        Some(if estimate <= FLOOR_US { FLOOR_US } else { (estimate * kept(at_ms, now_us)).max(FLOOR_US) })
    }
}

/// The share of an estimate that is left.
fn kept(at_ms: u32, now_us: u64) -> f32 {
    // The clock wraps after 49 days, and of two threads one may have looked at it earlier.
    let passed_ms = (millis(now_us).wrapping_sub(at_ms) as i32).max(0);
    if passed_ms == 0 {
        return 1.0; // as it mostly is on a busy endpoint; an exponential costs 20 ns
    }
    (-(passed_ms as f32) / DECAY_MS).exp()
}

fn millis(now_us: u64) -> u32 {
    (now_us / 1_000) as u32
}

fn pack(now_us: u64, estimate: f32) -> u64 {
    u64::from(millis(now_us)) << 32 | u64::from(estimate.to_bits())
}

fn unpack(word: u64) -> Option<(u32, f32)> {
    (word != 0).then(|| ((word >> 32) as u32, f32::from_bits(word as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;
    const S: u64 = 1_000_000;

    /// In whole milliseconds.
    fn millis_of(latency: &Latency, now_us: u64) -> u64 {
        (latency.estimate_us(now_us).unwrap() / 1_000.0).round() as u64
    }

    fn after(samples: &[(u64, u64)], now_us: u64) -> u64 {
        let latency = Latency::default();
        for (took_us, at_us) in samples {
            latency.answered(*took_us, *at_us);
        }
        millis_of(&latency, now_us)
    }

    #[test]
    fn a_peak_counts_at_once_and_time_forgives_it() {
        assert_eq!(Latency::default().estimate_us(S), None);
        assert_eq!(after(&[(20 * MS, S)], S), 20);
        assert_eq!(after(&[(20 * MS, S), (500 * MS, S)], S), 500);
        for (passed_s, expected) in [(10, 184), (20, 68), (200, 1)] {
            assert_eq!(after(&[(500 * MS, S)], S + passed_s * S), expected, "after {passed_s} s");
        }
    }

    #[test]
    fn a_sample_weighs_the_time_since_the_last() {
        assert_eq!(after(&[(500 * MS, S), (2 * MS, S)], S), 500);
        let later = after(&[(500 * MS, S), (100 * MS, 11 * S)], 11 * S);
        assert_eq!(later, 247);
        // As many samples as it may be in the same time come to the same.
        let many: Vec<(u64, u64)> = (0..=10_000).map(|n| (100 * MS, S + n * MS)).collect();
        let many = after(&[&[(500 * MS, S)], &many[..]].concat(), 11 * S);
        assert!(many.abs_diff(later) <= 1, "{many}, not {later}");
    }

    #[test]
    fn a_slow_client_makes_no_peak() {
        let latency = Latency::default();
        latency.answered(10 * MS, S);
        latency.answered_body(S, S + 100 * MS);
        assert_eq!(millis_of(&latency, S + 100 * MS), 20);
        // An endpoint that is slow to answer bodies is found out all the same.
        for n in 0..300 {
            latency.answered_body(S, 2 * S + n * 100 * MS);
        }
        assert!(millis_of(&latency, 32 * S) > 900);
    }

    #[test]
    fn what_is_fast_enough_is_all_the_same() {
        assert_eq!(after(&[(10, S)], S), 1);
        assert_eq!(after(&[(900, S)], S), 1);
        assert_eq!(after(&[(0, S)], S), 1);
    }

    #[test]
    fn a_failure_makes_nothing_faster() {
        let latency = Latency::default();
        latency.failed(10, S);
        assert_eq!(latency.estimate_us(S), None);
        latency.answered(50 * MS, S);
        latency.failed(10, 21 * S);
        assert_eq!(millis_of(&latency, 21 * S), 7, "time did that");
        latency.failed(5 * S, 21 * S);
        assert_eq!(millis_of(&latency, 21 * S), 5_000);
    }

    #[test]
    fn a_clock_that_wraps_or_runs_behind_changes_nothing() {
        let wrap = u64::from(u32::MAX) * MS;
        assert_eq!(after(&[(500 * MS, wrap)], wrap + 10 * S), 184);
        assert_eq!(after(&[(500 * MS, 2 * S)], S), 500);
    }
}
