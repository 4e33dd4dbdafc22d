//! What is wrong with an Ingress, as data.

use super::{IngressFact, ObjectKey};
use crate::table::HostPattern;

/// One fault, reported as an Event on the Ingress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The Ingress at fault.
    pub ingress: ObjectKey,
    /// Its uid, so that an Event never lands on a namesake.
    pub uid: String,
    /// The Event's reason.
    pub reason: Reason,
    /// The Event's message: field, fault and remedy.
    pub text: String,
    /// The host whose rules it is about, if it is about one's.
    pub host: Option<HostPattern>,
}

impl Problem {
    pub(crate) fn new(ingress: &IngressFact, reason: Reason, text: String) -> Self {
        Self { ingress: ingress.key.clone(), uid: ingress.uid.clone(), reason, text, host: None }
    }
}

/// The reasons that Events carry; few and stable, so that alerts can match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The named IngressClass does not exist.
    UnknownClass,
    /// A TLS secret is missing or holds no usable pair.
    BadSecret,
    /// A TLS certificate is of no use to a host, or will soon be.
    BadCertificate,
    /// A backend's Service is missing or of a type without endpoints.
    BadService,
    /// A backend names a port that its Service does not have.
    BadPort,
    /// A backend is not a Service.
    BadBackend,
    /// A host is no host name.
    InvalidHost,
    /// A path cannot be brought into normal form.
    InvalidPath,
    /// Somebody else has the same host and path.
    Conflict,
    /// An annotation cannot be read.
    BadAnnotation,
    /// An annotation is known, but is not served.
    UnservedAnnotation,
    /// An annotation is refused for good.
    RefusedAnnotation,
    /// An annotation below our prefixes that does not exist.
    UnknownAnnotation,
}

impl Reason {
    /// As written in the Event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownClass => "UnknownClass",
            Self::BadSecret => "BadSecret",
            Self::BadCertificate => "BadCertificate",
            Self::BadService => "BadService",
            Self::BadPort => "BadPort",
            Self::BadBackend => "BadBackend",
            Self::InvalidHost => "InvalidHost",
            Self::InvalidPath => "InvalidPath",
            Self::Conflict => "Conflict",
            Self::BadAnnotation => "BadAnnotation",
            Self::UnservedAnnotation => "UnservedAnnotation",
            Self::RefusedAnnotation => "RefusedAnnotation",
            Self::UnknownAnnotation => "UnknownAnnotation",
        }
    }
}
