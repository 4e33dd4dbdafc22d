//! What is known of endpoints at the moment, for people. Asking changes nothing: no turn is taken, and nothing counts as in
//! flight.

use std::net::SocketAddr;
use std::time::Duration;

use super::balance::{Balance, Method};
use super::choice::Choice;
use super::health::CheckFailure;
use super::pool::Pool;
use crate::clock::now_us;

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointState {
    pub(crate) address: SocketAddr,
    /// Requests that were sent to it and are not over.
    pub(crate) in_flight: u32,
    /// What an answer is expected to take; `None` before the first one.
    pub(crate) latency: Option<Duration>,
    /// For how long it gets no requests, after failures.
    pub(crate) ejected: Option<Duration>,
    /// Why health checks took it out, if they did.
    pub(crate) unhealthy: Option<CheckFailure>,
    /// Connections to it that are kept; by HTTP/2 also those in use.
    pub(crate) connections: usize,
}

impl Pool {
    /// Its endpoints, by address.
    pub(crate) fn state(&self) -> Vec<EndpointState> {
        let now_us = now_us();
        let list = self.list.load();
        let state = list.endpoints.iter().map(|endpoint| EndpointState {
            address: endpoint.address(),
            in_flight: endpoint.in_flight(),
            latency: endpoint.latency.estimate_us(now_us).map(|us| Duration::from_micros(us as u64)),
            ejected: endpoint.ejection.left_us(now_us).map(Duration::from_micros),
            unhealthy: endpoint.unhealthy(),
            connections: endpoint.idle().len() + endpoint.connections().len(),
        });
        state.collect()
    }

    /// The endpoint that requests with this key go to.
    pub(crate) fn ranked(&self, key: u64) -> Option<SocketAddr> {
        let list = self.list.load();
        let choice =
            Choice { all: &list.endpoints, failed: &[], now_us: now_us(), balance: Balance::default() };
        choice.endpoint(Some(key), || 0).map(|endpoint| endpoint.address())
    }
}

impl Method {
    /// As annotations name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ewma => "ewma",
            Self::RoundRobin => "round_robin",
            Self::LeastRequest => "least-request",
        }
    }
}
