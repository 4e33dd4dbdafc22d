//! Endpoints of a backend, and the choice among them.
//!
//! A [`Pool`] holds a backend's endpoints, and a [`Balance`], which is the rule's, says how one of them is chosen: two
//! Ingresses may share a pool and want different things of it. What becomes of a request is told to the pool, which learns
//! from it how fast an endpoint is ([`latency`]) and whether it is worth asking ([`ejection`]); where that is asked for, it also
//! asks endpoints by itself ([`health`]). How often requests are tried again has a bound for each backend ([`budget`]).
//!
//! **Cost** of a choice and what is told of it: no allocation and no lock; the time ([`crate::clock`]) twice, and two random numbers;
//! for each of the two candidates three relaxed loads, and an exponential where its latency is above a millisecond; one load
//! of the budget; four atomic writes, which are the counts of requests in flight and of references, up and down again, one
//! that settles the choice, and at most one in a millisecond for the latency.

mod balance;
mod budget;
mod choice;
mod connect;
mod ejection;
mod endpoint;
mod health;
mod latency;
mod pool;
mod proxy_protocol;
mod random;
mod slow_start;
mod state;
mod tls;

pub(crate) use balance::{Balance, Method};
pub(crate) use connect::{connect, connect_tcp, take};
pub(crate) use ejection::is_failure;
pub(crate) use endpoint::{Chosen, Endpoint};
pub(crate) use health::{CheckMetrics, Checks};
pub(crate) use pool::{Pool, Unchosen};
pub(crate) use proxy_protocol::ProxyProtocol;
pub(crate) use random::random;
pub(crate) use state::EndpointState;
#[cfg(test)]
pub(crate) use tls::AnyCertificate;
pub(crate) use tls::{TlsError, read_authorities};
