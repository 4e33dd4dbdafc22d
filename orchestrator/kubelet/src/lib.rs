//! Runs the pods of one node.
//!
//! A client of the apiserver like any other: it watches the pods bound to its node, makes the machine agree with them,
//! and writes back what is. One worker for each pod does the work ([`pods`]); containers are a [`runtime`]'s; what only
//! this crate knows about is files: volumes, logs, and the processes' surroundings.
//!
//! Pods do not depend on this process. Containers are owned by their shims, so a kubelet may be killed at any time: the
//! next one adopts what runs, and restarts nothing. Only [`cleanup()`] ends what runs.

mod cleanup;
mod config;
mod env;
mod error;
mod events;
pub mod image;
mod kubelet;
mod logs;
mod metrics;
mod node;
mod objects;
mod pods;
mod probes;
mod quantity;
pub mod runtime;
mod server;
mod services;
pub mod shim;
mod volumes;

pub use self::{
    cleanup::cleanup,
    config::Config,
    error::{Error, Refused, Result},
    kubelet::Kubelet,
    node::pressure::Thresholds,
};
