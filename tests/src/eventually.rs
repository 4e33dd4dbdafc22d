//! Waiting for what only looking shows.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

/// Longest wait for something to become true.
const DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Tries until it holds; the last refusal is the error.
pub fn eventually<T>(what: &str, check: impl Fn() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > DEADLINE => return Err(error.context(what.to_owned())),
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}
