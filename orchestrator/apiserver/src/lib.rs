//! The API server: the only part of Weir that opens the store, and the one that all others are clients of.
//!
//! ```text
//! connection ─▶ TLS (serve) ─▶ who (authn) ─▶ may they (authz) ─▶ verb (verbs, subresource) ─┬▶ cache: reads, watches
//!                                                                                            └▶ storage: transactions
//!                                                                              cache ◀─ watch ─ store
//! ```
//!
//! What objects are (names, defaults, rules, columns) is `weir-api`'s; how revisions, transactions and watches work is
//! `weir-store`'s. This crate is what lies between: HTTP, identity, concurrency, and the cache.
//!
//! Three things hold throughout:
//! - **A write is answered when it is durable, and a read that follows it sees it.** Reads wait until the cache has
//!   reached the store's head.
//! - **Reads never touch the disk**, and lists and watches are sent from the cache's own bytes.
//! - **Everything is bounded**: connections, requests in flight, bodies, kept events, waits. What happens at a bound is
//!   written beside it and counted.

#![expect(
    clippy::result_large_err,
    reason = "a Status is made once for a refused request, and then it is its answer"
)]

mod allocate;
mod authn;
mod authz;
mod bootstrap;
mod cache;
mod config;
mod error;
mod keys;
mod kubelet;
mod metrics;
mod paths;
pub mod pki;
mod request;
mod response;
mod reviews;
mod run;
mod serve;
mod server;
mod storage;
mod subresource;
mod verbs;

pub use allocate::{PortRange, RangeError, ServiceRange};
pub use authn::{KeyError, TokenFileError};
pub use config::Config;
pub use error::Error;
pub use run::Apiserver;
pub use serve::TlsError;
