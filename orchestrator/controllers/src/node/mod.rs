//! What controllers do about nodes: address ranges, health, and the pods of nodes that are not well.

pub(crate) mod eviction;
mod health;
pub(crate) mod ipam;
pub(crate) mod lifecycle;
