//! How a backend's endpoints are checked: annotations `health-check*`.

use std::num::NonZeroU16;
use std::time::Duration;

use crate::upstream::ProxyProtocol;

/// An active check. Part of what a backend is known by: rules that check a Service in different ways see different endpoints
/// of it as healthy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: CheckKind,
    /// Where, if not at the port that requests go to.
    pub port: Option<NonZeroU16>,
    /// From the begin of one check of an endpoint to the begin of the next.
    pub interval: Duration,
    /// For all of a check, from the connection to the end of the answer. Not more than `interval`, so that an endpoint is
    /// asked once at a time.
    pub timeout: Duration,
    /// Successes in a row that put an endpoint back.
    pub rise: u8,
    /// Failures in a row that take it out.
    pub fall: u8,
    /// What connections to the endpoints begin with.
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckKind {
    /// A GET, in the protocol of the backend, that is to be answered with 2xx or 3xx.
    Http {
        /// Path and query.
        path: String,
        /// The `Host`; the Service's name if there is none.
        host: Option<String>,
    },
    /// A call of `grpc.health.v1.Health/Check`, that is to be answered with `SERVING`.
    Grpc {
        /// Whose health is asked for; empty for the server's.
        service: String,
        /// The authority; the Service's name if there is none.
        host: Option<String>,
    },
    /// A connection is to come about, with TLS where that is spoken.
    Tcp,
}
