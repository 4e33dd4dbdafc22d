//! When an endpoint fails: whether to try another, and what the client hears.

use std::borrow::Cow;

use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

use super::{Answer, Context};
use crate::metrics::{Metrics, UpstreamFailure};
use crate::serve::MAX_ATTEMPTS;

/// No connection came about, so nothing was sent: any request may be tried elsewhere.
#[expect(clippy::unnecessary_box_returns, reason = "pingora hands the box over and wants it back")]
pub(super) fn connecting(metrics: &Metrics, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    metrics.upstream_failure(reason(error.etype()));
    if let Some(chosen) = &ctx.chosen {
        chosen.avoid();
        ctx.failed.push(chosen.address());
    }
    error.set_retry(ctx.attempts < MAX_ATTEMPTS && another_is_left(ctx));
    error
}

/// The connection broke while it was in use.
///
/// The endpoint may have seen the request. It is sent again only if doing it twice is the same as once, nothing
/// of a response reached the client, and the whole body is still at hand. On a kept connection a break mostly
/// means that the endpoint had closed it already, so the same endpoint may be asked again on a fresh one.
#[expect(clippy::unnecessary_box_returns, reason = "pingora hands the box over and wants it back")]
pub(super) fn exchanging(
    metrics: &Metrics,
    session: &Session,
    ctx: &mut Context,
    mut error: Box<Error>,
    reused: bool,
) -> Box<Error> {
    if *error.esource() == ErrorSource::Downstream {
        error.set_retry(false);
        return error;
    }
    metrics.upstream_failure(reason(error.etype()));
    let broke = matches!(
        error.etype(),
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error
    );
    let harmless = session.req_header().method.is_idempotent()
        && session.response_written().is_none()
        && !session.retry_buffer_truncated();
    if broke && !reused {
        ctx.failed.extend(ctx.chosen.as_ref().map(|chosen| chosen.address()));
    }
    let retry = broke && harmless && ctx.attempts < MAX_ATTEMPTS && another_is_left(ctx);
    // Decided either way: pingora panics on an error whose retry was left open.
    error.set_retry(retry);
    error
}

fn another_is_left(ctx: &Context) -> bool {
    let pool = ctx.target.as_ref().and_then(|target| target.backend.as_ref().ok());
    pool.is_some_and(|pool| pool.choose(&ctx.failed).is_some())
}

/// What the client is told; `None` when it is gone.
pub(super) fn answer(error: &Error, ctx: &Context) -> Option<Answer> {
    let service = ctx.target.as_ref().map_or("", |target| &target.service);
    let say =
        |status, what: &str| Some(Answer::new(status, Cow::Owned(format!("Service {service:?}: {what}"))));
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(503), _) => say(503, "its last endpoint went away"),
        (ErrorType::HTTPStatus(502), _) => say(502, "no endpoint could be reached"),
        (ErrorType::HTTPStatus(code), _) => {
            Some(Answer::new(*code, Cow::Borrowed("the request cannot be served")))
        }
        (ErrorType::ConnectTimedout, _) => say(504, "the endpoint did not accept a connection in time"),
        (ErrorType::ReadTimedout | ErrorType::WriteTimedout, ErrorSource::Upstream) => {
            say(504, "the endpoint did not answer in time")
        }
        (ErrorType::ConnectRefused, _) => say(502, "the endpoint refused the connection"),
        (ErrorType::ConnectNoRoute | ErrorType::ConnectError | ErrorType::SocketError, _) => {
            say(502, "the endpoint could not be reached")
        }
        (ErrorType::InvalidHTTPHeader, ErrorSource::Upstream) => {
            say(502, "the endpoint's response is malformed")
        }
        (_, ErrorSource::Upstream) => say(502, "the endpoint closed the connection without a full response"),
        (ErrorType::ReadTimedout, ErrorSource::Downstream) => {
            Some(Answer::new(408, Cow::Borrowed("the request body did not arrive in time")))
        }
        (
            ErrorType::WriteError
            | ErrorType::WriteTimedout
            | ErrorType::ReadError
            | ErrorType::ConnectionClosed
            | ErrorType::H2Error,
            ErrorSource::Downstream,
        ) => None,
        (_, ErrorSource::Downstream) => Some(Answer::new(400, Cow::Borrowed("the request is malformed"))),
        _ => Some(Answer::new(500, Cow::Borrowed("internal error"))),
    }
}

fn reason(error: &ErrorType) -> UpstreamFailure {
    match error {
        ErrorType::ConnectRefused => UpstreamFailure::ConnectRefused,
        ErrorType::ConnectTimedout => UpstreamFailure::ConnectTimeout,
        ErrorType::ConnectNoRoute | ErrorType::ConnectError | ErrorType::SocketError => {
            UpstreamFailure::ConnectOther
        }
        ErrorType::ReadTimedout => UpstreamFailure::ReadTimeout,
        ErrorType::WriteTimedout => UpstreamFailure::WriteTimeout,
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError => UpstreamFailure::Closed,
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error | ErrorType::InvalidH2 => {
            UpstreamFailure::InvalidResponse
        }
        _ => UpstreamFailure::Other,
    }
}
