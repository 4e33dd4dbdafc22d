//! An endpoint that came to a pool in which others were gets its share by and by, while its caches and its code warm up.
//!
//! While it is new it is passed over by chance, whatever the method: its share of the choices grows linearly with its age. Never
//! to nothing, for it would never get warm. What is tied to an endpoint by its key stays so.

use std::time::Duration;

/// The share of its share that it has at once.
const LEAST: f64 = 0.1;

/// The part of its share that an endpoint of this age gets.
pub(super) fn part(age_us: u64, window: Duration) -> f64 {
    let window_us = window.as_micros() as f64;
    if age_us as f64 >= window_us { 1.0 } else { (age_us as f64 / window_us).max(LEAST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_with_age_and_is_never_nothing() {
        let window = Duration::from_secs(10);
        for (age_s, expected) in [(0, 0.1), (1, 0.1), (2, 0.2), (5, 0.5), (9, 0.9), (10, 1.0), (99, 1.0)] {
            let part = part(age_s * 1_000_000, window);
            assert!((part - expected).abs() < 1e-9, "{part} after {age_s}");
        }
        assert!(part(0, Duration::ZERO) >= 1.0);
    }
}
