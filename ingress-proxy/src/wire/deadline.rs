//! Until when a connection may wait, and what else ends its waiting.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer for all that a connection waits for.
///
/// **Cost.** Moving the deadline away, which every request does several times, is a store. The timer itself fires at the
/// earlier time, sees that the deadline has moved, and follows it: about two operations on the timer wheel in each span
/// as long as the shortest timeout, however many requests there are.
///
/// It must be polled by one task only: the timer's waker is registered once, not at every poll.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Instant,
    armed: Instant,
    timer: Pin<Box<Sleep>>,
    registered: bool,
}

impl Deadline {
    pub(crate) fn new(at: Instant) -> Self {
        Self { at, armed: at, timer: Box::pin(sleep_until(at)), registered: false }
    }

    /// Waits this long from `now` on.
    pub(crate) fn set(&mut self, now: Instant, wait: Duration) {
        self.at = now + wait;
        if self.at < self.armed {
            self.arm();
        }
    }

    /// Whether it has passed; the task wakes when it does.
    pub(crate) fn has_passed(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.registered && !self.timer.is_elapsed() {
                return false;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                self.registered = true;
                return false;
            }
            if Instant::now() >= self.at {
                return true;
            }
            self.arm();
        }
    }

    fn arm(&mut self) {
        self.armed = self.at;
        self.timer.as_mut().reset(self.at);
        self.registered = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    async fn passed(deadline: &mut Deadline) {
        poll_fn(|cx| if deadline.has_passed(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    #[tokio::test(start_paused = true)]
    async fn it_passes_when_it_was_set_to_and_not_before() {
        let start = Instant::now();
        let mut deadline = Deadline::new(start + Duration::from_secs(10));
        passed(&mut deadline).await;
        assert_eq!(start.elapsed().as_secs(), 10);
        for seconds in [60, 5, 75, 1] {
            let start = Instant::now();
            deadline.set(start, Duration::from_secs(75));
            deadline.set(start, Duration::from_secs(seconds));
            passed(&mut deadline).await;
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_keeps_moving_does_not_pass() {
        let mut deadline = Deadline::new(Instant::now() + Duration::from_secs(10));
        for _ in 0..100 {
            let later = tokio::time::timeout(Duration::from_secs(9), passed(&mut deadline));
            assert!(later.await.is_err());
            deadline.set(Instant::now(), Duration::from_secs(10));
        }
    }
}
