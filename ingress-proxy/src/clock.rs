//! What time it is, read once in a turn.
//!
//! What a connection's task does between two waits, its turn, happens at one moment as far as any timeout, latency or limit
//! can tell. A request takes two turns, and asks for the time seven times.
//!
//! **Cost.** The first question of a turn reads the machine's clock, 20 to 50 ns; every other one is a look at a variable of
//! the thread.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
enum Turn {
    /// Nobody's: the clock is read every time.
    None,
    Begun,
    At(Instant),
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::None) };
}

/// The time, as this turn knows it.
pub(crate) fn now() -> Instant {
    match TURN.get() {
        Turn::At(now) => now,
        Turn::None => Instant::now(),
        Turn::Begun => {
            let now = Instant::now();
            TURN.set(Turn::At(now));
            now
        }
    }
}

/// The time in microseconds since some moment in the life of this process, and never 0, which is before anything happened.
pub(crate) fn now_us() -> u64 {
    in_us(now())
}

/// The same of a time that is known.
pub(crate) fn in_us(time: Instant) -> u64 {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    time.into_std().saturating_duration_since(*START).as_micros() as u64 + 1
}

pin_project! {
    /// A task whose every poll is one turn.
    pub(crate) struct InTurns<F> {
        #[pin]
        work: F,
    }
}

/// Makes every poll of a task one turn.
pub(crate) fn in_turns<F: Future>(work: F) -> InTurns<F> {
    InTurns { work }
}

impl<F: Future> Future for InTurns<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Ends the turn, also by a panic.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                TURN.set(Turn::None);
            }
        }
        TURN.set(Turn::Begun);
        let _end = End;
        self.project().work.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The time before and after some of it has passed.
    fn around() -> (Instant, Instant) {
        let before = now();
        std::thread::sleep(Duration::from_millis(1));
        (before, now())
    }

    #[tokio::test]
    async fn time_stands_still_in_a_turn_and_goes_on_with_the_next() {
        let (first, second) = in_turns(async {
            let first = around();
            tokio::task::yield_now().await;
            (first, around())
        })
        .await;
        assert_eq!((first.0, second.0), (first.1, second.1));
        assert!(first.0 < second.0);
    }

    #[tokio::test]
    async fn outside_of_a_turn_time_goes_on() {
        let (before, after) = around();
        assert!(before < after);
        let broken = in_turns(async { assert!(now() < now(), "it fails as a task may") });
        assert!(tokio::spawn(broken).await.is_err());
        let (before, after) = around();
        assert!(before < after, "a turn that broke is over");
    }
}
