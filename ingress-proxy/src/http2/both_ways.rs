//! An exchange with an endpoint, whichever protocol that speaks: both directions at once, to the end of the response.

use std::task::{Context, Poll};

use super::patience::{Lack, Patience};
use crate::proxy::Trouble;

/// What an exchange is made of.
pub(crate) trait BothWays {
    /// Hears whether the client has given up.
    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble>;

    /// Moves the request on until it is sent or something must be waited for.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble>;

    /// Moves the response on until the client was sent all of it or something must be waited for. `unwanted` is asked, of a
    /// status and of whether the same request can be sent once more, whether the response is not for the client.
    fn poll_response(
        &mut self,
        unwanted: &impl Fn(u16, bool) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>>;

    /// What is waited for.
    fn lack(&self) -> Lack;

    /// Counts what moves in either direction.
    fn moves(&self) -> u64;

    /// Whether the same request can be sent once more: nothing reached the client, and all of the body is at hand.
    fn can_repeat(&self) -> bool;
}

/// To the end of the response, as long as something moves or patience lasts.
pub(crate) async fn run(
    exchange: &mut impl BothWays,
    mut patience: Patience<'_>,
    unwanted: impl Fn(u16, bool) -> bool,
) -> Result<(), Trouble> {
    std::future::poll_fn(|cx| {
        exchange.check(cx)?;
        exchange.poll_request(cx)?;
        if exchange.poll_response(&unwanted, cx)?.is_ready() {
            return Poll::Ready(Ok(()));
        }
        patience.check(exchange.moves(), exchange.lack(), cx)?;
        Poll::Pending
    })
    .await
}
