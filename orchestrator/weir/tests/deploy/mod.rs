//! What `deploy/` ships, and a machine that gives the agent just that.

pub(crate) mod agent;
pub(crate) mod manifest;
pub(crate) mod proxy;
