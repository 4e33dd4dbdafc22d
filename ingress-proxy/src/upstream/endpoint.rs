//! One endpoint, and what is known of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::ejection::Ejection;
use super::health::Health;
use super::latency::Latency;
use super::tls::EndpointTls;
use crate::clock::now_us;
use crate::config::Timeouts;
use crate::http2::Connections;
use crate::idle::Idle;

/// One address that takes requests.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    tls: Option<Arc<EndpointTls>>,
    /// Connections by HTTP/1.1 that wait for a request.
    idle: Idle,
    /// Connections by HTTP/2.
    connections: Connections,
    in_flight: AtomicU32,
    joined_us: AtomicU64,
    pub(super) latency: Latency,
    pub(super) ejection: Ejection,
    pub(super) health: Health,
}

impl Endpoint {
    /// One that came to its pool at this time; 0 if it was there from the start.
    pub(super) fn new(
        address: SocketAddr,
        tls: Option<Arc<EndpointTls>>,
        timeouts: &Timeouts,
        joined_us: u64,
    ) -> Self {
        Self {
            address,
            tls,
            idle: Idle::new(timeouts.upstream_idle),
            connections: Connections::new(timeouts.upstream_idle),
            in_flight: AtomicU32::new(0),
            joined_us: AtomicU64::new(joined_us),
            latency: Latency::default(),
            ejection: Ejection::default(),
            health: Health::default(),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How TLS is spoken with it, if it is.
    pub(super) fn tls(&self) -> Option<&EndpointTls> {
        self.tls.as_deref()
    }

    /// Its connections that wait for a request.
    pub(crate) fn idle(&self) -> &Idle {
        &self.idle
    }

    /// Its connections by HTTP/2.
    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Requests that were sent to it and are not over.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// For how long it has been in its pool.
    pub(super) fn age_us(&self, now_us: u64) -> u64 {
        match self.joined_us.load(Ordering::Relaxed) {
            0 => u64::MAX,
            joined_us => now_us.saturating_sub(joined_us),
        }
    }

    /// It is back after a time in which it got no requests.
    pub(super) fn joins_anew(&self) {
        self.joined_us.store(now_us(), Ordering::Relaxed);
    }

    /// Closes connections that waited too long. Returns how many are left.
    pub(super) fn sweep(&self) -> usize {
        self.idle.sweep() + self.connections.sweep()
    }
}

/// A chosen endpoint; counts as one request in flight until dropped.
#[derive(Debug)]
pub(crate) struct Chosen {
    endpoint: Arc<Endpoint>,
    since_us: u64,
    /// What came of it was told. An atomic, because who holds it shares it across waits.
    is_settled: AtomicBool,
}

impl Chosen {
    /// Nothing where `most` are in flight there already.
    pub(super) fn take(endpoint: &Arc<Endpoint>, now_us: u64, most: Option<u32>) -> Option<Self> {
        match most {
            None => drop(endpoint.in_flight.fetch_add(1, Ordering::Relaxed)),
            Some(most) => {
                let one_more = |number| (number < most).then_some(number + 1);
                endpoint.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
            }
        }
        Some(Self { endpoint: Arc::clone(endpoint), since_us: now_us, is_settled: AtomicBool::new(false) })
    }

    /// The endpoint answered a request that has a body or not: the head of its response is there.
    pub(crate) fn answered(&self, has_body: bool) {
        let now_us = now_us();
        let Some(took_us) = self.settle(now_us) else { return };
        if has_body {
            self.latency.answered_body(took_us, now_us);
        } else {
            self.latency.answered(took_us, now_us);
        }
        self.ejection.succeeded();
    }

    /// Settles what came of it; how long that took, the first time.
    pub(super) fn settle(&self, now_us: u64) -> Option<u64> {
        let is_first = !self.is_settled.swap(true, Ordering::Relaxed);
        is_first.then(|| now_us.saturating_sub(self.since_us))
    }
}

impl std::ops::Deref for Chosen {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
