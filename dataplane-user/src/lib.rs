//! The dataplane in user space: loads the eBPF programs, reconciles Services into their maps, gives pods their links,
//! and says what it did and why.
//!
//! ```text
//! Services, EndpointSlices, Node, Pods ─watch─▶ Store ─▶ plan (pure) ─▶ maps ─▶ programs (dataplane-ebpf)
//! container runtime ─▶ cni ─▶ pod link + tc_pod          maps ─▶ cli: services, flows, explain
//! ```
//! Everything that serves is pinned below the run directory ([`paths`]): the agent may end, be killed, or be replaced
//! by a newer one, and packets go on. Speaks the Kubernetes API and the kernel's interfaces, and nothing of Weir's own.

mod agent;
pub mod check;
pub mod cidr;
mod cleanup;
pub mod cli;
pub mod cni;
mod config;
mod events;
pub mod filter;
pub mod flows;
pub mod health_checks;
pub mod kernel;
pub mod masquerade;
mod metrics;
pub mod names;
pub mod netlink;
pub mod node;
pub mod paths;
pub mod plan;
pub mod programs;
pub mod reasons;
pub mod reconcile;
pub mod sockets;
mod sysctl;
pub mod takeover;
pub mod traffic;
pub mod watch;

pub use agent::{Dataplane, Error};
pub use cleanup::{CleanupError, cleanup, detach};
pub use config::{Config, ForwardingMode, Masquerade, Uplinks};
pub use metrics::Metrics;
