//! How much a backend is asked again: so that one that breaks under its load does not get a multiple of it.
//!
//! A token bucket in one atomic. Each request puts a share of a token in, time puts some in, and each retry takes one out.
//! A request costs one load while the bucket is full, as it is while all goes well.

use std::sync::atomic::{AtomicU64, Ordering};

/// Thousandths of a token.
const TOKEN: u64 = 1_000;
/// Retries for each request: 20 %, as with Finagle and Linkerd.
const SHARE: u64 = TOKEN / 5;
/// Retries in a second however few requests there are.
const FLOOR_PER_S: u64 = 10;
/// Retries at once, if there were fewer before: for all that a dying node had under way.
const MOST: u64 = 100 * TOKEN;
/// Bits for the number of thousandths; the rest is for milliseconds of the clock.
const TOKEN_BITS: u32 = 20;
const _: () = assert!(MOST + SHARE < 1 << TOKEN_BITS);

/// One backend's: when time last put something in, and what is missing in the bucket. It is full at first.
#[derive(Debug, Default)]
pub(super) struct RetryBudget(AtomicU64);

impl RetryBudget {
    /// A request comes, for the first time.
    pub(super) fn earn(&self) {
        // Two at once that both find the same lose one's share, and the budget is by so much smaller.
        let word = self.0.load(Ordering::Relaxed);
        let (at_ms, missing) = unpack(word);
        if missing > 0 {
            let next = pack(at_ms, missing.saturating_sub(SHARE));
            let _ = self.0.compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether a request may be tried once more; if so, that is paid.
    pub(super) fn spend(&self, now_us: u64) -> bool {
        let now_ms = now_us / 1_000;
        let paid = |word| {
            let (at_ms, missing) = unpack(word);
            let passed_ms = now_ms.saturating_sub(at_ms);
            // Tokens per second are thousandths per millisecond.
            let missing = missing.saturating_sub(passed_ms.saturating_mul(FLOOR_PER_S));
            (missing + TOKEN <= MOST).then(|| pack(now_ms.max(at_ms), missing + TOKEN))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid).is_ok()
    }
}

fn pack(at_ms: u64, missing: u64) -> u64 {
    at_ms << TOKEN_BITS | missing
}

fn unpack(word: u64) -> (u64, u64) {
    (word >> TOKEN_BITS, word & ((1 << TOKEN_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    /// How many of so many retries there may be.
    fn spent(budget: &RetryBudget, tries: usize, now_us: u64) -> usize {
        (0..tries).filter(|_| budget.spend(now_us)).count()
    }

    #[test]
    fn it_is_full_and_then_it_is_empty() {
        let budget = RetryBudget::default();
        assert_eq!(spent(&budget, 1_000, S), 100);
        assert_eq!(spent(&budget, 1_000, S), 0);
    }

    #[test]
    fn requests_and_time_fill_it_up() {
        let budget = RetryBudget::default();
        spent(&budget, 1_000, S);
        for _ in 0..50 {
            budget.earn();
        }
        assert_eq!(spent(&budget, 1_000, S), 10, "a fifth");
        assert_eq!(spent(&budget, 1_000, S + S / 2), 5, "half a second");
        assert_eq!(spent(&budget, 1_000, S), 0, "a clock that was read earlier");
        assert_eq!(spent(&budget, 1_000, 1_000 * S), 100, "no more than it holds");
    }

    #[test]
    fn a_full_one_earns_nothing() {
        let budget = RetryBudget::default();
        for _ in 0..1_000 {
            budget.earn();
        }
        assert_eq!(spent(&budget, 1_000, S), 100);
    }

    #[test]
    fn a_broken_backend_is_asked_a_fifth_more() {
        let budget = RetryBudget::default();
        let retries = (0..100_000_u64).filter(|n| {
            budget.earn();
            budget.spend(S + n * 100) // 10,000 requests a second
        });
        assert_eq!(retries.count(), 100 + 20_000 + 99); // full at first, the share, the floor
    }
}
