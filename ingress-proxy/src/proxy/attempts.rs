//! To which endpoints one request goes, one after the other, until one answers.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{MAX_ATTEMPTS, Record, Trouble};
use crate::config::Timeouts;
use crate::metrics::{Metrics, UpstreamFailure};
use crate::policy::{Passage, Retry};
use crate::upstream::{Balance, Chosen, Pool, Unchosen, is_failure};

/// What holds for rules that say nothing of retries.
static USUAL: LazyLock<Retry> = LazyLock::new(Retry::default);

/// An attempt that came to nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failed {
    /// There was no connection to the endpoint.
    Connect(UpstreamFailure),
    /// The exchange did not come to its end.
    Exchange {
        trouble: Trouble,
        /// The connection was one that was kept.
        is_reused: bool,
        /// Nothing of a response reached the client, and all of the request is at hand.
        can_repeat: bool,
        /// The status that the client was told, 0 if none.
        told: u16,
    },
}

/// Where one attempt goes, and how.
#[derive(Clone, Copy)]
pub(crate) struct To<'t> {
    pub(crate) attempts: &'t Attempts<'t>,
    pub(crate) chosen: &'t Chosen,
    pub(crate) passage: Option<&'t Passage>,
    pub(crate) timeouts: &'t Timeouts,
}

/// What follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next attempt.
    TryAgain,
    /// Nothing. A response that has begun cannot be taken back: the client sees it break off behind this status.
    BrokeOff(u16),
}

/// The endpoints that a request was sent to in vain, and when it may go to another.
pub(crate) struct Attempts<'r> {
    pool: &'r Pool,
    metrics: &'r Metrics,
    passage: Option<&'r Passage>,
    retry: &'r Retry,
    failed: Vec<SocketAddr>,
    /// Another endpoint is asked because of a response; that is paid. An atomic, because who is told of responses shares this
    /// across waits.
    goes_elsewhere: AtomicBool,
}

impl<'r> Attempts<'r> {
    pub(crate) fn new(pool: &'r Pool, passage: Option<&'r Passage>, metrics: &'r Metrics) -> Self {
        let retry = passage.map_or(&*USUAL, |passage| &passage.upstream().retry);
        Self { pool, metrics, passage, retry, failed: Vec::new(), goes_elsewhere: AtomicBool::new(false) }
    }

    /// The next endpoint to ask.
    pub(crate) fn next(&self, record: &mut Record) -> Result<Chosen, Trouble> {
        let rank_by = self.passage.and_then(Passage::rank_by);
        let balance = self.passage.map_or_else(Balance::default, |passage| passage.upstream().balance);
        let chosen = self.pool.choose(balance, rank_by, &self.failed).map_err(|why| match why {
            Unchosen::Full => {
                self.metrics.endpoints_full.inc();
                Trouble::Full
            }
            Unchosen::NoneLeft if self.failed.is_empty() => Trouble::NoneLeft,
            Unchosen::NoneLeft => Trouble::AllTried,
        })?;
        if record.attempts > 0 {
            self.metrics.retries.inc();
        } else {
            self.pool.earn_retries();
        }
        record.attempts += 1;
        record.endpoint = Some(chosen.address());
        Ok(chosen)
    }

    /// No connection came about, so nothing was sent: any request may be tried elsewhere. Says whether it is to be.
    fn refused(&mut self, record: &Record, chosen: &Chosen, failure: UpstreamFailure) -> bool {
        self.metrics.upstream_failure(failure);
        self.pool.failed(chosen, self.metrics);
        self.failed.push(chosen.address());
        self.retry.error && self.may_go_on(record)
    }

    /// The connection broke while it was in use.
    ///
    /// The endpoint may have seen the request: it is sent again only if that does no harm and `can_repeat`, since nothing of a
    /// response reached the client and all of the request is at hand. A kept connection mostly breaks because the endpoint
    /// had closed it, so the same endpoint may be asked again on a fresh one.
    fn broke(
        &mut self,
        record: &Record,
        chosen: &Chosen,
        failure: UpstreamFailure,
        is_reused: bool,
        can_repeat: bool,
    ) -> bool {
        self.metrics.upstream_failure(failure);
        let broke = failure == UpstreamFailure::Closed;
        if !(broke && is_reused) {
            self.pool.failed(chosen, self.metrics);
        }
        if broke && !is_reused {
            self.failed.push(chosen.address());
        }
        let is_covered = match failure {
            UpstreamFailure::ReadTimeout | UpstreamFailure::WriteTimeout => self.retry.timeout,
            UpstreamFailure::InvalidResponse => self.retry.invalid_header,
            _ => broke && self.retry.error,
        };
        is_covered && self.is_harmless(record, can_repeat) && self.may_go_on(record)
    }

    /// An attempt came to nothing. Says what follows.
    pub(crate) fn go_on(
        &mut self,
        record: &mut Record,
        chosen: &Chosen,
        failed: Failed,
    ) -> Result<Then, Trouble> {
        let (trouble, goes_on, told) = match failed {
            Failed::Connect(failure) => {
                (Trouble::Endpoint(failure), self.refused(record, chosen, failure), 0)
            }
            Failed::Exchange { trouble, is_reused, can_repeat, told } => {
                let goes_on = match trouble {
                    Trouble::Endpoint(failure) => self.broke(record, chosen, failure, is_reused, can_repeat),
                    Trouble::Unwanted { .. } => {
                        let goes_on = self.goes_elsewhere.swap(false, Ordering::Relaxed);
                        self.failed.extend(goes_on.then(|| chosen.address()));
                        goes_on
                    }
                    _ => false,
                };
                (trouble, goes_on, told)
            }
        };
        match told {
            _ if goes_on => Ok(Then::TryAgain),
            0 => Err(trouble),
            status => {
                record.reason = trouble.answer(record.target.as_deref()).map(|answer| answer.text);
                Ok(Then::BrokeOff(status))
            }
        }
    }

    /// An endpoint answered with this status. Says whether that is not what the client gets: another endpoint is asked, or an
    /// error page.
    pub(crate) fn is_unwanted(
        &self,
        record: &Record,
        chosen: &Chosen,
        status: u16,
        can_repeat: bool,
    ) -> bool {
        // Who makes error pages answers with the status that the page is for.
        if record.page.is_some() {
            chosen.answered(record.has_body);
            return false;
        }
        if is_failure(status) {
            self.pool.failed(chosen, self.metrics);
        } else {
            chosen.answered(record.has_body);
        }
        let goes_elsewhere = self.may_go_elsewhere(record, chosen, status, can_repeat);
        self.goes_elsewhere.store(goes_elsewhere, Ordering::Relaxed);
        goes_elsewhere || self.passage.is_some_and(|passage| passage.replaces(status))
    }

    /// Whether another endpoint is to be asked because of this response.
    fn may_go_elsewhere(&self, record: &Record, chosen: &Chosen, status: u16, can_repeat: bool) -> bool {
        self.retry.statuses.contains(&status)
            && self.is_harmless(record, can_repeat)
            && self.retry.may_go_on(record.attempts, MAX_ATTEMPTS, record.elapsed())
            && self.pool.has_other(&self.failed, Some(chosen.address()))
            && self.pool.spend_retry(self.metrics)
    }

    fn is_harmless(&self, record: &Record, can_repeat: bool) -> bool {
        can_repeat && (record.is_idempotent || self.retry.non_idempotent)
    }

    fn may_go_on(&self, record: &Record) -> bool {
        self.retry.may_go_on(record.attempts, MAX_ATTEMPTS, record.elapsed())
            && self.pool.has_other(&self.failed, None)
            && self.pool.spend_retry(self.metrics)
    }
}
