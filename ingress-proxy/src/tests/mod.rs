//! The whole proxy in one process: real listeners, real backends, no cluster.
//!
//! Facts are put into a snapshot by hand, compiled and installed as the watching side would, and requests are
//! sent over loopback, raw where the bytes matter.

mod backend;
mod cluster;
mod doors;
mod exchange;
mod frames;
mod grpc;
mod handover;
mod hostile;
mod malformed;
mod pages;
mod policies;
mod protocols;
mod recorder;
mod role;
mod routing;
mod script;
mod smuggling;
mod staying_up;
mod streams;
mod tls;
mod tls_to_endpoints;
mod to_http2;
mod traces;
