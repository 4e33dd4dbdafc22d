//! How one of a backend's endpoints is chosen.

use std::time::Duration;

use super::endpoint::Endpoint;

/// What a rule asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) method: Method,
    /// For how long an endpoint that came to others gets less than its share.
    pub(crate) slow_start: Option<Duration>,
    /// The most requests in flight to one endpoint.
    pub(crate) most: Option<u32>,
}

/// Whom a request goes to, if nothing else ties it to an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Method {
    /// Of two drawn at random, the one with less waiting ahead: requests in flight, each of which takes what the latency's
    /// peak-EWMA says. Two choices keep the longest queue near the average without looking at all of them, and without the
    /// herd that runs to the one that is best.
    #[default]
    Ewma,
    /// One after the other, however they fare.
    RoundRobin,
    /// Of two drawn at random, the one with fewer requests in flight.
    LeastRequest,
}

impl Method {
    /// ingress-nginx's words.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ewma" => Self::Ewma,
            "round_robin" => Self::RoundRobin,
            _ => return None,
        })
    }

    /// Our own: the same, and `least-request`.
    pub(crate) fn parse_own(text: &str) -> Option<Self> {
        match text {
            "least-request" => Some(Self::LeastRequest),
            _ => Self::parse(text),
        }
    }
}

/// Whether the second of two has less waiting ahead.
pub(super) fn is_second_better(method: Method, first: &Endpoint, second: &Endpoint, now_us: u64) -> bool {
    let (waiting, other) = (first.in_flight() + 1, second.in_flight() + 1);
    if method != Method::Ewma {
        return other < waiting;
    }
    let (latency, others) = (first.latency.estimate_us(now_us), second.latency.estimate_us(now_us));
    // One that never answered is taken for as fast as the other: it gets its share of what is in flight, and is neither
    // flooded nor left out.
    let (latency, others) = match (latency, others) {
        (Some(latency), Some(others)) => (latency, others),
        _ => (1.0, 1.0),
    };
    others * (other as f32) < latency * (waiting as f32)
}
