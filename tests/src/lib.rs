//! A machine for whole-cluster tests and benches: namespaces, a node in one of them, clients in another. Other crates'
//! tests make theirs of the same parts.
//!
//! A [`Cluster`] is one `weir up` in a network namespace that has no route to the world, in a cgroup of its own, with
//! its files in a temporary directory. The client's namespace is on the other side of the node's uplink, as any
//! machine outside would be. Everything is removed on drop, also when a test panics.

mod ask;
mod authority;
mod cgroup;
mod cluster;
mod eventually;
mod http;
mod leftovers;
mod load;
mod namespace;
mod roles;
mod routed;
mod row;
pub mod rules;

pub use ask::{ask_tcp, ask_udp};
pub use authority::{Authority, Pair};
pub use cgroup::{Cgroup, Entered};
pub use cluster::{CLIENT_ADDRESS, Cluster, NODE_ADDRESS, NODE_NAME, Options};
pub use eventually::eventually;
pub use http::{Response, get};
pub use leftovers::Leftovers;
pub use load::{Load, Outcome, ask_steadily};
pub use namespace::{Link, Namespace};
pub use routed::Routed;
pub use row::{Goal, Row, percentile};
