//! How clients' connections end: when the proxy drains, and behind a last answer.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// When the proxy drains, a connection may wait so long for its next request, which is then told that it is the last one.
/// Closed at once, it would break a request that is on its way.
pub(crate) const LAST_REQUEST: Duration = Duration::from_secs(1);
/// Behind a last answer, this much more is read and thrown away: closing with unread bytes would make the kernel reset the
/// connection, and the client would see that instead of the answer.
pub(crate) const LINGER_BYTES: usize = 1024 * 1024;
/// And this long.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// Whether the proxy drains. The task is woken when that begins.
pub(crate) struct Draining {
    token: CancellationToken,
    begins: Pin<Box<WaitForCancellationFutureOwned>>,
    registered: bool,
}

impl Draining {
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self { begins: Box::pin(token.clone().cancelled_owned()), token, registered: false }
    }

    /// Cost: a load.
    pub(crate) fn is_on(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The same; the task is woken when it begins. Cost: a load, but for the first time on a connection.
    pub(crate) fn has_begun(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.registered {
            self.registered = self.begins.as_mut().poll(cx).is_pending();
        }
        self.is_on()
    }
}
