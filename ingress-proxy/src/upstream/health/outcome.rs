//! What checks found, and what follows.

use std::fmt;
use std::sync::Mutex;

use super::super::endpoint::Endpoint;
use crate::compile::HealthCheck;
use crate::shared::lock;

/// Why a check failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckFailure {
    /// There was no connection, or no TLS on it; the text says why.
    NoConnection(&'static str),
    /// It was not over within its timeout.
    Late,
    /// The answer has this status.
    Status(u16),
    /// The connection ended before the answer did.
    Closed,
    /// The answer is none.
    Malformed,
    /// The answer to a call is none that speaks for it.
    Grpc(GrpcFailure),
    /// What asks gave up. A bug.
    Panicked,
}

/// What a gRPC server answers that is not healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GrpcFailure {
    /// The call failed with this status.
    Status(u32),
    /// It answered so.
    Says(&'static str),
}

/// By their numbers (gRPC, "Status codes and their use in gRPC").
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl fmt::Display for GrpcFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Says(status) => write!(f, "the endpoint says that it is {status}"),
            Self::Status(status) => {
                let name = GRPC_STATUSES.get(status as usize).unwrap_or(&"which is none");
                write!(f, "the endpoint answered with gRPC status {status}, {name}")
            }
        }
    }
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConnection(why) => f.write_str(why),
            Self::Late => f.write_str("the endpoint did not answer in time"),
            Self::Status(status) => write!(f, "the endpoint answered with status {status}"),
            Self::Closed => f.write_str("the endpoint closed the connection without a full response"),
            Self::Malformed => f.write_str("the endpoint's response is malformed"),
            Self::Grpc(failure) => failure.fmt(f),
            Self::Panicked => f.write_str("the check itself failed"),
        }
    }
}

/// What checks of one endpoint found. A lock, because pages read what the check writes; no request looks at it.
#[derive(Debug, Default)]
pub(in super::super) struct Health(Mutex<Row>);

#[derive(Debug, Default)]
struct Row {
    /// Outcomes in a row that speak against what the endpoint is taken for.
    contrary: u8,
    last_failure: Option<CheckFailure>,
}

impl Row {
    /// Whether an endpoint that is out or not is to be the other.
    fn observe(&mut self, outcome: Result<(), CheckFailure>, is_out: bool, check: &HealthCheck) -> bool {
        if let Err(failure) = outcome {
            self.last_failure = Some(failure);
        }
        if outcome.is_ok() != is_out {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        let turns = self.contrary >= if is_out { check.rise } else { check.fall };
        if turns {
            self.contrary = 0;
        }
        turns
    }
}

impl Endpoint {
    /// A check had this outcome. Says whether the endpoint is out now, if that is another than before.
    pub(super) fn observe(&self, outcome: Result<(), CheckFailure>, check: &HealthCheck) -> Option<bool> {
        let is_out = self.ejection.is_out();
        let turns = lock(&self.health.0).observe(outcome, is_out, check);
        if !turns {
            return None;
        }
        if is_out {
            // Its slow start begins before anybody can choose it.
            self.joins_anew();
        }
        self.ejection.take_out(!is_out);
        Some(!is_out)
    }

    /// Why checks took it out, if they did.
    pub(in super::super) fn unhealthy(&self) -> Option<CheckFailure> {
        let is_out = self.ejection.is_out();
        is_out.then(|| lock(&self.health.0).last_failure).flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::now_us;
    use crate::compile::CheckKind;
    use crate::config::Timeouts;

    fn check() -> HealthCheck {
        HealthCheck {
            kind: CheckKind::Tcp,
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            proxy_protocol: None,
        }
    }

    const FAILED: Result<(), CheckFailure> = Err(CheckFailure::Late);

    /// Whether it is out after each of these outcomes.
    fn after(outcomes: &[Result<(), CheckFailure>]) -> Vec<bool> {
        let check = check();
        let (mut row, mut is_out) = (Row::default(), false);
        let mut seen = Vec::new();
        for outcome in outcomes {
            is_out ^= row.observe(*outcome, is_out, &check);
            seen.push(is_out);
        }
        seen
    }

    #[test]
    fn failures_in_a_row_take_it_out_and_successes_in_a_row_put_it_back() {
        assert_eq!(after(&[FAILED, FAILED, FAILED, FAILED]), [false, false, true, true]);
        assert_eq!(after(&[FAILED, FAILED, Ok(()), FAILED, FAILED]), [false; 5]);
        let back = [FAILED, FAILED, FAILED, Ok(()), FAILED, Ok(()), Ok(()), FAILED];
        assert_eq!(after(&back), [false, false, true, true, true, true, false, false]);
        let again = [FAILED, FAILED, FAILED, Ok(()), Ok(()), FAILED, FAILED, FAILED];
        assert_eq!(after(&again)[3..], [true, false, false, false, true]);
    }

    #[test]
    fn who_is_back_starts_slowly() {
        let address = "10.0.0.1:80".parse().unwrap();
        let endpoint = Endpoint::new(address, None, &Timeouts::default(), 0);
        let turns = |outcome, times| {
            let all: Vec<_> = (0..times).map(|_| endpoint.observe(outcome, &check())).collect();
            *all.last().unwrap()
        };
        assert_eq!(turns(FAILED, 2), None);
        assert_eq!(turns(FAILED, 1), Some(true));
        assert_eq!((endpoint.unhealthy(), endpoint.age_us(now_us())), (Some(CheckFailure::Late), u64::MAX));
        assert_eq!((turns(Ok(()), 1), turns(Ok(()), 1)), (None, Some(false)));
        assert_eq!(endpoint.unhealthy(), None);
        let until_us = now_us();
        assert!(endpoint.age_us(until_us) <= until_us, "it was there from the start, and came now");
    }

    #[test]
    fn the_last_failure_is_kept() {
        let mut row = Row::default();
        let check = HealthCheck { rise: 1, fall: 1, ..check() };
        assert!(row.observe(Err(CheckFailure::Status(500)), false, &check));
        assert_eq!(row.last_failure.unwrap().to_string(), "the endpoint answered with status 500");
        assert!(!row.observe(Err(CheckFailure::Closed), true, &check));
        assert_eq!(row.last_failure, Some(CheckFailure::Closed));
    }
}
