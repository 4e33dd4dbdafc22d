//! Random numbers for what is no secret.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

/// A number below `bound`.
pub(super) fn random_below(bound: usize) -> usize {
    (random() % bound as u64) as usize
}

/// A number from 0 up to 1.
pub(super) fn random_part() -> f64 {
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}

/// 64 bits, from a per-thread xorshift, that are good enough to spread load and to tell requests apart in a log.
pub(crate) fn random() -> u64 {
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
