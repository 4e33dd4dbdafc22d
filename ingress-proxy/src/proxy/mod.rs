//! What becomes of a request, whichever protocol it came by.
//!
//! Refuse what is ambiguous, look the route up, choose an endpoint, tell it who asks, and account for what happened.
//! HTTP/1.1 comes through [`crate::http1`], HTTP/2 through [`crate::http2`]; both ask [`Proxy`]. The table is read once per
//! request; a reload in between changes nothing for it.

mod attempts;
mod failure;
mod fault;
mod headers;
mod record;
mod respond;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::access_log::{AccessLog, Line};
use crate::config::{Network, Timeouts};
use crate::live::{Door, Live, Target};
use crate::metrics::{Metrics, TargetLabels, TargetMetrics};
use crate::policy::{self, Memory};
use crate::subrequest::Subrequests;
use crate::tls::Certificates;
use crate::trace::{Trace, Tracer};
use crate::upstream::Pool;
pub(crate) use attempts::{Attempts, Failed, Then, To};
pub(crate) use failure::{MAX_ATTEMPTS, Trouble, said_of};
pub(crate) use fault::Fault;
pub(crate) use headers::{Ends, Handshake, Peer, RequestId, forwarding};
pub(crate) use record::{PageRequest, Record};
pub(crate) use respond::Answer;

/// Why a request was not answered, for the access log.
pub(crate) const CLIENT_GONE: &str = "the client closed the connection";

/// What all requests share.
pub(crate) struct Proxy {
    pub(crate) live: Arc<ArcSwap<Live>>,
    certificates: Arc<ArcSwap<Certificates>>,
    pub(crate) metrics: Metrics,
    /// Counters for requests that no rule matched.
    unmatched: Arc<TargetMetrics>,
    reports: Reports,
    pub(crate) trusted: Box<[Network]>,
    /// What policies remember between requests.
    pub(crate) memory: Memory,
    /// Other servers that are asked, and told.
    pub(crate) subrequests: Subrequests,
    pub(crate) timeouts: Timeouts,
    ports: Ports,
}

/// Where it is said what became of requests.
pub(crate) struct Reports {
    pub(crate) log: AccessLog,
    /// If there is a collector.
    pub(crate) tracer: Option<Tracer>,
}

/// The ports of the two listeners, for `X-Forwarded-Port`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) plain: u16,
    pub(crate) tls: u16,
}

impl Proxy {
    pub(crate) fn new(
        live: Arc<ArcSwap<Live>>,
        certificates: Arc<ArcSwap<Certificates>>,
        metrics: Metrics,
        reports: Reports,
        trusted: &[Network],
        timeouts: Timeouts,
        ports: Ports,
    ) -> Self {
        let unmatched = metrics.target(&TargetLabels::none());
        let memory = Memory::new(&metrics.policies);
        let subrequests = Subrequests::new(&metrics.subrequests, &timeouts);
        let trusted = trusted.into();
        Self {
            live,
            certificates,
            metrics,
            unmatched,
            reports,
            trusted,
            memory,
            subrequests,
            timeouts,
            ports,
        }
    }

    /// What is known of a connection's other end.
    pub(crate) fn peer(&self, ends: Ends, tls: Option<Handshake>) -> Peer {
        let address = ends.source.ip().to_canonical();
        let port = if tls.is_some() { self.ports.tls } else { self.ports.plain };
        let trusted = policy::is_in(&self.trusted, address);
        Peer { address, ends, text: address.to_string(), trusted, tls, port: port.to_string() }
    }

    /// What is special about TLS connections for a name.
    pub(crate) fn door(&self, name: &str) -> Option<Door> {
        self.live.load().door(name)
    }

    /// Whether that is so of any name.
    pub(crate) fn has_doors(&self) -> bool {
        self.live.load().has_doors()
    }

    /// The target of a request whose host and path are in normal form.
    pub(crate) fn route(&self, host: &str, path: &str) -> Result<Arc<Target>, Answer> {
        let live = self.live.load();
        live.route(host, path).map(Arc::clone).ok_or_else(|| Answer::no_rule(host, path))
    }

    /// Closes connections to endpoints that waited too long.
    pub(crate) fn sweep(&self) {
        let swept = self.live.load().sweep();
        self.metrics.idle.set(swept.idle as i64);
        self.metrics.ejected.set(swept.ejected as i64);
        self.metrics.health.unhealthy.set(swept.unhealthy as i64);
    }

    /// Counts a request that is over; `status` is 0 when the client got no answer.
    pub(crate) fn count(&self, target: Option<&Target>, status: u16, took: Duration) {
        target.map_or(&self.unmatched, |target| &target.metrics).finished(status, took);
        target.map_or(&self.metrics.hosts.unmatched, |target| &target.host).finished(status);
    }

    /// Whether anybody reads what is said about a request.
    fn is_told(&self, trace: Option<&Trace>) -> bool {
        self.reports.log.is_on() || trace.is_some_and(|trace| trace.is_sampled)
    }

    /// Says what became of a request. `line.time_ms` is filled in here.
    fn tell(&self, took: Duration, to_log: bool, trace: Option<&Trace>, line: Line<'_>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line { time_ms: now.saturating_sub(took).as_millis(), ..line };
        if to_log {
            self.reports.log.write(&line);
        }
        if let Some((tracer, trace)) = self.reports.tracer.as_ref().zip(trace) {
            tracer.end(trace, &line);
        }
    }
}

impl Target {
    /// The endpoints that may serve a request, or why there are none.
    pub(crate) fn endpoints(&self) -> Result<&Arc<Pool>, Answer> {
        match &self.backend {
            Err(why) => Err(Answer::unavailable(why)),
            Ok(pool) if pool.is_empty() => Err(Answer::no_endpoints(self)),
            Ok(pool) => Ok(pool),
        }
    }
}
