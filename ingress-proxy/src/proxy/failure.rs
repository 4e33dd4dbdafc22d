//! When an endpoint fails: whether to try another, and what the client hears.

use std::borrow::Cow;
use std::sync::Arc;

use http::header;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

use super::Answer;
use super::context::{Context, ErrorPage};
use crate::live::Target;
use crate::metrics::{Metrics, UpstreamFailure};
use crate::policy::{By, Reply, Retry};
use crate::upstream::{Chosen, Pool, is_failure};

/// How often a request is sent at most, unless its rule says otherwise; what may be sent again is decided for each failure.
pub(crate) const MAX_ATTEMPTS: u8 = 3;

/// Why an exchange did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The last endpoint went away.
    NoneLeft,
    /// Every endpoint was tried.
    AllTried,
    /// With the endpoint.
    Endpoint(UpstreamFailure),
    /// The client did not send its body in time.
    SlowClient,
    /// The client closed the connection, or takes nothing.
    ClientGone,
    /// The client's body is malformed.
    BadRequest,
    /// It is larger than the rule allows.
    BodyTooLarge,
    /// The endpoint answered, but not what the client is to get.
    Unwanted {
        status: u16,
        /// All of the request is at hand, and nothing reached the client.
        can_repeat: bool,
    },
    /// A status that pingora gives.
    Status(u16),
    /// Neither side's fault.
    Internal,
}

impl Trouble {
    /// What the client is told; `None` when it is gone.
    pub(crate) fn answer(self, target: Option<&Target>) -> Option<Answer> {
        let service = target.map_or("", |target| &target.service);
        let of_service =
            |status, what: &str| Answer::new(status, Cow::Owned(format!("Service {service:?}: {what}")));
        Some(match self {
            Self::NoneLeft => of_service(503, "its last endpoint went away"),
            Self::AllTried => of_service(502, "no endpoint could be reached"),
            Self::Endpoint(failure) => {
                let (status, what) = said_of(failure);
                of_service(status, what)
            }
            Self::SlowClient => Answer::new(408, Cow::Borrowed("the request body did not arrive in time")),
            Self::ClientGone => return None,
            Self::BadRequest => Answer::new(400, Cow::Borrowed("the request is malformed")),
            Self::BodyTooLarge => {
                Answer::new(413, Cow::Borrowed("the request body is larger than the rule allows"))
            }
            Self::Unwanted { status, .. } => of_service(status, "its response is replaced"),
            Self::Status(code) => Answer::new(code, Cow::Borrowed("the request cannot be served")),
            Self::Internal => Answer::new(500, Cow::Borrowed("internal error")),
        })
    }
}

fn said_of(failure: UpstreamFailure) -> (u16, &'static str) {
    match failure {
        UpstreamFailure::ConnectTimeout => (504, "the endpoint did not accept a connection in time"),
        UpstreamFailure::ReadTimeout | UpstreamFailure::WriteTimeout => {
            (504, "the endpoint did not answer in time")
        }
        UpstreamFailure::ConnectRefused => (502, "the endpoint refused the connection"),
        UpstreamFailure::ConnectOther => (502, "the endpoint could not be reached"),
        UpstreamFailure::InvalidResponse => (502, "the endpoint's response is malformed"),
        UpstreamFailure::Closed | UpstreamFailure::Other => {
            (502, "the endpoint closed the connection without a full response")
        }
    }
}

impl From<&Error> for Trouble {
    fn from(error: &Error) -> Self {
        match (error.etype(), error.esource()) {
            (ErrorType::HTTPStatus(503), _) => Self::NoneLeft,
            (ErrorType::HTTPStatus(502), _) => Self::AllTried,
            (ErrorType::HTTPStatus(code), _) => Self::Status(*code),
            (ErrorType::ReadTimedout, ErrorSource::Downstream) => Self::SlowClient,
            (
                ErrorType::WriteError
                | ErrorType::WriteTimedout
                | ErrorType::ReadError
                | ErrorType::ConnectionClosed
                | ErrorType::H2Error,
                ErrorSource::Downstream,
            ) => Self::ClientGone,
            (
                ErrorType::ConnectTimedout
                | ErrorType::ConnectRefused
                | ErrorType::ConnectNoRoute
                | ErrorType::ConnectError
                | ErrorType::SocketError,
                _,
            )
            | (_, ErrorSource::Upstream) => Self::Endpoint(failure(error.etype())),
            (_, ErrorSource::Downstream) => Self::BadRequest,
            _ => Self::Internal,
        }
    }
}

/// No connection came about, so nothing was sent: any request may be tried elsewhere.
#[expect(clippy::unnecessary_box_returns, reason = "pingora hands the box over and wants it back")]
pub(super) fn connecting(metrics: &Metrics, ctx: &mut Context, mut error: Box<Error>) -> Box<Error> {
    metrics.upstream_failure(failure(error.etype()));
    if let Some((pool, chosen)) = asked(ctx) {
        pool.failed(chosen, metrics);
    }
    ctx.failed.extend(ctx.chosen.as_ref().map(|chosen| chosen.address()));
    error.set_retry(may_go_on(ctx, |retry| retry.error) && may_ask_another(metrics, ctx));
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
    // With a status it is the answer of a policy.
    if *error.esource() == ErrorSource::Downstream || matches!(error.etype(), ErrorType::HTTPStatus(_)) {
        error.set_retry(false);
        return error;
    }
    if *error.etype() == UNWANTED_RESPONSE {
        error.set_retry(true); // it was decided when the response came
        return error;
    }
    metrics.upstream_failure(failure(error.etype()));
    let broke = matches!(
        error.etype(),
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error
    );
    if let Some((pool, chosen)) = asked(ctx).filter(|_| !(broke && reused)) {
        pool.failed(chosen, metrics);
    }
    if broke && !reused {
        ctx.failed.extend(ctx.chosen.as_ref().map(|chosen| chosen.address()));
    }
    let covered = |retry: &Retry| match error.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => retry.timeout,
        ErrorType::InvalidHTTPHeader => retry.invalid_header,
        _ => broke && retry.error,
    };
    let harmless = session.response_written().is_none() && is_repeatable(session, ctx);
    let retry = harmless && may_go_on(ctx, covered) && may_ask_another(metrics, ctx);
    // Decided either way: pingora panics on an error whose retry was left open.
    error.set_retry(retry);
    error
}

/// A response that another endpoint, or an error page, is to be asked instead of.
pub(super) const UNWANTED_RESPONSE: ErrorType = ErrorType::Custom("unwanted response");

/// Looks at the head of a response before the client sees it: whether the rule has it replaced by an error page, or
/// has another endpoint tried.
pub(super) fn judge_response(
    metrics: &Metrics,
    session: &Session,
    ctx: &mut Context,
    status: u16,
) -> Result<(), Box<Error>> {
    let is_interim = (100..200).contains(&status) && status != 101;
    if let Some((pool, chosen)) = asked(ctx).filter(|_| !is_interim) {
        // Who makes error pages answers with the status that the page is for.
        if is_failure(status) && ctx.error_page.is_none() {
            pool.failed(chosen, metrics);
        } else {
            let fields = &session.req_header().headers;
            let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
            chosen.answered(framing.iter().any(|name| fields.contains_key(name)));
        }
    }
    let Some(passage) = ctx.passage.as_ref().filter(|_| ctx.error_page.is_none()) else { return Ok(()) };
    let replaced = passage.replaces(status);
    let unwanted = |what| Err(Error::explain(UNWANTED_RESPONSE, what));
    if may_go_on(ctx, |retry| retry.statuses.contains(&status)) && is_repeatable(session, ctx) {
        let before = ctx.failed.len();
        ctx.failed.extend(ctx.chosen.as_ref().map(|chosen| chosen.address()));
        if may_ask_another(metrics, ctx) {
            return unwanted("proxy-next-upstream names its status");
        }
        ctx.failed.truncate(before);
    }
    if replaced {
        metrics.policies.answered(By::ErrorPage);
        let target = ctx.target.as_ref();
        let fallback = target.and_then(|target| target.fallback.clone()).filter(|f| f.has_endpoints());
        let text = format!("the endpoint answered with status {status}");
        ctx.refusal = Some(Reply::new(status, By::ErrorPage, text).into());
        if let Some(fallback) = fallback.filter(|_| !session.retry_buffer_truncated()) {
            ctx.fall_back(fallback, ErrorPage { status, instead_of_response: true });
            return unwanted("custom-http-errors names its status");
        }
        return Err(Error::explain(ErrorType::HTTPStatus(status), "custom-http-errors names its status"));
    }
    Ok(())
}

/// Whether the request can be sent again: all of it is at hand, and twice is the same as once.
fn is_repeatable(session: &Session, ctx: &Context) -> bool {
    let retry = ctx.passage.as_ref().map(|passage| &passage.upstream().retry);
    let wanted = session.req_header().method.is_idempotent() || retry.is_some_and(|r| r.non_idempotent);
    wanted && !session.retry_buffer_truncated()
}

/// Whether another attempt may follow, if the rule's policy covers what happened.
fn may_go_on(ctx: &Context, covered: impl FnOnce(&Retry) -> bool) -> bool {
    let usual = Retry::default();
    let retry = ctx.passage.as_ref().map_or(&usual, |passage| &passage.upstream().retry);
    covered(retry) && retry.may_go_on(ctx.attempts, MAX_ATTEMPTS, ctx.started.elapsed())
}

/// Whether there is another endpoint, and the backend's budget has a retry left; if so, that is spent.
fn may_ask_another(metrics: &Metrics, ctx: &Context) -> bool {
    pool(ctx).is_some_and(|pool| pool.has_other(&ctx.failed, None) && pool.spend_retry(metrics))
}

fn pool(ctx: &Context) -> Option<&Arc<Pool>> {
    ctx.target.as_ref().and_then(|target| target.backend.as_ref().ok())
}

/// The endpoint that the request is at, and its pool.
fn asked(ctx: &Context) -> Option<(&Arc<Pool>, &Chosen)> {
    pool(ctx).zip(ctx.chosen.as_ref())
}

fn failure(error: &ErrorType) -> UpstreamFailure {
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
