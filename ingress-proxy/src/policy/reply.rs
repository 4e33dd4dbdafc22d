//! What a policy answers with instead of an endpoint.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use prometheus_client::encoding::EncodeLabelValue;

/// Which policy gave an answer, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // the names are the label's values
pub(crate) enum By {
    Closed,
    SourceRange,
    ClientCertificate,
    Redirect,
    Cors,
    RateLimit,
    ConnectionLimit,
    BasicAuth,
    ExternalAuth,
    BodySize,
    Rewrite,
    ErrorPage,
}

/// An answer: status, fields, and one line of text that says why. A 204 goes without the line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) by: By,
    /// Boxed because a map is large, and mostly the result is that there is no reply.
    pub(crate) fields: Box<HeaderMap>,
    pub(crate) text: Cow<'static, str>,
}

impl Reply {
    pub(crate) fn new(status: u16, by: By, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, by, fields: Box::default(), text: text.into() }
    }

    /// A redirect; what cannot stand in a field is the client's own doing.
    pub(super) fn redirect(status: u16, location: &str) -> Self {
        match HeaderValue::from_str(location) {
            Ok(value) => {
                Self::new(status, By::Redirect, format!("see {location}")).with(header::LOCATION, value)
            }
            Err(_) => Self::new(400, By::Redirect, "the query has a character that no Location can have"),
        }
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.fields.append(name, value);
        self
    }
}
