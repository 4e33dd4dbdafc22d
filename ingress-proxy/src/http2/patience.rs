//! How long is waited for what an exchange lacks, and what it is if it does not come.

use std::task::Context;
use std::time::Duration;

use crate::clock;
use crate::config::Timeouts;
use crate::metrics::UpstreamFailure;
use crate::proxy::Trouble;
use crate::wire::Deadline;

/// What an exchange lacks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lack {
    /// The client takes nothing.
    Window,
    /// The client sends nothing of its body.
    Body,
    /// The endpoint takes nothing.
    Write,
    /// The endpoint says nothing.
    Response,
}

/// The deadline of one exchange, which moves on with it.
pub(crate) struct Patience<'s> {
    deadline: &'s mut Deadline,
    timeouts: &'s Timeouts,
    moves: u64,
}

impl<'s> Patience<'s> {
    pub(crate) fn new(deadline: &'s mut Deadline, timeouts: &'s Timeouts, lack: Lack) -> Self {
        let mut patience = Self { deadline, timeouts, moves: 0 };
        patience.renew(lack);
        patience
    }

    /// Whether it is over. `moves` counts what was moved so far.
    pub(super) fn check(&mut self, moves: u64, lack: Lack, cx: &mut Context<'_>) -> Result<(), Trouble> {
        if moves != self.moves {
            self.moves = moves;
            self.renew(lack);
        }
        if self.deadline.has_passed(cx) { Err(self.wait(lack).1) } else { Ok(()) }
    }

    fn renew(&mut self, lack: Lack) {
        let (wait, _) = self.wait(lack);
        self.deadline.set(clock::now(), wait);
    }

    fn wait(&self, lack: Lack) -> (Duration, Trouble) {
        match lack {
            Lack::Window => (self.timeouts.client, Trouble::ClientGone),
            Lack::Body => (self.timeouts.client, Trouble::SlowClient),
            Lack::Write => (self.timeouts.write, Trouble::Endpoint(UpstreamFailure::WriteTimeout)),
            Lack::Response => (self.timeouts.read, Trouble::Endpoint(UpstreamFailure::ReadTimeout)),
        }
    }
}
