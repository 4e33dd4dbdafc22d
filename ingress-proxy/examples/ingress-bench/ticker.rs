//! Wakes in time: the runtime's own timers go by milliseconds.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use nix::sys::prctl;
use tokio::sync::Notify;

/// Ticks on a thread of its own, which ends with it.
pub(crate) struct Ticker(Arc<Notify>);

impl Ticker {
    /// One that ticks from now on.
    pub(crate) fn start(period: Duration) -> Self {
        let ticks = Arc::new(Notify::new());
        let weak = Arc::downgrade(&ticks);
        thread::spawn(move || run(&weak, period));
        Self(ticks)
    }

    /// Waits for the next tick. Those that were missed are one.
    pub(crate) async fn tick(&self) {
        self.0.notified().await;
    }
}

fn run(ticks: &Weak<Notify>, period: Duration) {
    // The kernel may else be 50 µs late, to wake several sleepers at once.
    let _ = prctl::set_timerslack(1);
    let mut next = Instant::now();
    while let Some(ticks) = ticks.upgrade() {
        ticks.notify_one();
        drop(ticks);
        next += period;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
