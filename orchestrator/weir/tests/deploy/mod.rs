//! What `deploy/` ships, and machines that give agent and ingress just that.

pub(crate) mod agent;
mod ingress;
pub(crate) mod manifest;
pub(crate) mod proxy;
mod systemd;
mod unit;
