//! Endpoints of a backend, and the choice among them.
//!
//! A [`Pool`] holds a backend's endpoints, and a [`Balance`], which is the rule's, says how one of them is chosen: two
//! Ingresses may share a pool and want different things of it. What becomes of a request is told to the pool, which learns
//! from it how fast an endpoint is ([`latency`]) and whether it is worth asking ([`ejection`]);
//! how often is asked again has a bound for each backend ([`budget`]).
//!
//! **Cost** of a choice and what is told of it: no allocation and no lock; two reads of the clock, two random numbers, two
//! relaxed loads and maybe an exponential for each of the two candidates, and two counters, of requests in flight and of
//! references, up and down again.

mod balance;
mod budget;
mod choice;
mod clock;
mod connect;
mod ejection;
mod endpoint;
mod latency;
mod pool;
mod random;
mod slow_start;

pub(crate) use balance::{Balance, Method};
pub(crate) use connect::connect;
pub(crate) use endpoint::Chosen;
pub(crate) use pool::Pool;
pub(crate) use random::random;
