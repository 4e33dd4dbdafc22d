//! The clock by which endpoints are judged.

use std::sync::LazyLock;
use std::time::Instant;

/// Microseconds since the first call, plus one: 0 is before anything happened.
pub(super) fn now_us() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64 + 1
}
