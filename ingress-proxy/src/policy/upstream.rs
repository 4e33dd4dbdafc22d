//! How endpoints are asked: which of them, how long is waited, and when another one is tried.

use std::time::Duration;

use crate::config::Timeouts;
use crate::upstream::{Balance, ProxyProtocol};

/// The most attempts that `proxy-next-upstream-tries` can ask for.
pub(crate) const MAX_TRIES: u8 = 10;

/// `proxy-{connect,read,send}-timeout`, `proxy-next-upstream*`, `load-balance`, `slow-start` and `proxy-protocol`. What is
/// `None` is as configured for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    pub(crate) connect: Option<Duration>,
    pub(crate) read: Option<Duration>,
    pub(crate) send: Option<Duration>,
    pub(crate) retry: Retry,
    pub(crate) balance: Balance,
    /// Connections begin with whom they are for.
    pub(crate) proxy_protocol: Option<ProxyProtocol>,
}

/// When a request is tried on another endpoint. The default is what every rule has without annotations: after a
/// broken connection, if doing it twice is the same as once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of nginx's list")]
pub(crate) struct Retry {
    /// No connection came about, or it broke.
    pub(crate) error: bool,
    /// The endpoint was silent for too long.
    pub(crate) timeout: bool,
    /// The response was none.
    pub(crate) invalid_header: bool,
    /// The endpoint answered with one of these.
    pub(crate) statuses: Box<[u16]>,
    /// Also requests that may do something twice. Never those that were sent in part only.
    pub(crate) non_idempotent: bool,
    /// Attempts in all.
    pub(crate) tries: Option<u8>,
    /// No further attempt after so long.
    pub(crate) within: Option<Duration>,
}

impl Upstream {
    /// These timeouts where the rule has its own.
    pub(crate) fn over(&self, usual: &Timeouts) -> Timeouts {
        Timeouts {
            connect: self.connect.unwrap_or(usual.connect),
            read: self.read.unwrap_or(usual.read),
            write: self.send.unwrap_or(usual.write),
            ..usual.clone()
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            error: true,
            timeout: false,
            invalid_header: false,
            statuses: Box::default(),
            non_idempotent: false,
            tries: None,
            within: None,
        }
    }
}

impl Retry {
    /// `proxy-next-upstream: off`.
    pub(crate) fn never() -> Self {
        Self { error: false, ..Self::default() }
    }

    /// Reads nginx's list: `error timeout http_502`. `None` for a word that is not on it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut retry = Self::never();
        let mut statuses = Vec::new();
        for word in text.split_ascii_whitespace() {
            match word {
                "off" => return Some(Self::never()),
                "error" => retry.error = true,
                "timeout" => retry.timeout = true,
                "invalid_header" => retry.invalid_header = true,
                "non_idempotent" => retry.non_idempotent = true,
                "http_500" | "http_502" | "http_503" | "http_504" | "http_403" | "http_404" | "http_429" => {
                    statuses.push(word["http_".len()..].parse().ok()?);
                }
                _ => return None,
            }
        }
        retry.statuses = statuses.into();
        Some(retry)
    }

    /// Whether an attempt may follow after `attempts` that took so long.
    pub(crate) fn may_go_on(&self, attempts: u8, most: u8, took: Duration) -> bool {
        attempts < self.tries.unwrap_or(most) && self.within.is_none_or(|within| took < within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_words() {
        let parsed = Retry::parse("error timeout  http_502 http_429 non_idempotent").unwrap();
        assert!(parsed.error && parsed.timeout && parsed.non_idempotent && !parsed.invalid_header);
        assert_eq!(*parsed.statuses, [502, 429]);
        assert_eq!(Retry::parse("off"), Some(Retry::never()));
        assert_eq!(Retry::parse("http_418"), None);
        assert_eq!(Retry::parse("error,timeout"), None);
    }

    #[test]
    fn attempts_and_time_end() {
        let within = Duration::from_secs(5);
        let retry = Retry { tries: Some(2), within: Some(within), ..Retry::default() };
        assert!(retry.may_go_on(1, 3, Duration::ZERO));
        assert!(!retry.may_go_on(2, 3, Duration::ZERO));
        assert!(!retry.may_go_on(1, 3, within));
        assert!(Retry::default().may_go_on(2, 3, within) && !Retry::default().may_go_on(3, 3, within));
    }
}
