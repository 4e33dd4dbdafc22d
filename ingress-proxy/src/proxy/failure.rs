//! When an exchange fails: why, and what the client hears.

use std::borrow::Cow;

use super::Answer;
use crate::live::Target;
use crate::metrics::UpstreamFailure;

/// How often a request is sent at most, unless its rule says otherwise; what may be sent again is decided for each failure.
pub(crate) const MAX_ATTEMPTS: u8 = 3;

/// Why an exchange did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The last endpoint went away.
    NoneLeft,
    /// Every endpoint was tried.
    AllTried,
    /// Every endpoint that is left has as many requests in flight as the rule allows.
    Full,
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
            Self::Full => of_service(503, "every endpoint is at max-connections"),
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
        })
    }
}

/// The status that a failure of an endpoint has, and its words.
pub(crate) fn said_of(failure: UpstreamFailure) -> (u16, &'static str) {
    match failure {
        UpstreamFailure::ConnectTimeout => (504, "the endpoint did not accept a connection in time"),
        UpstreamFailure::ReadTimeout | UpstreamFailure::WriteTimeout => {
            (504, "the endpoint did not answer in time")
        }
        UpstreamFailure::ConnectRefused => (502, "the endpoint refused the connection"),
        UpstreamFailure::ConnectOther => (502, "the endpoint could not be reached"),
        UpstreamFailure::TlsHandshake => (502, "TLS could not be agreed on with the endpoint"),
        UpstreamFailure::TlsUntrusted => (502, "the endpoint's certificate is not trusted"),
        UpstreamFailure::InvalidResponse => (502, "the endpoint's response is malformed"),
        UpstreamFailure::Closed => (502, "the endpoint closed the connection without a full response"),
    }
}
