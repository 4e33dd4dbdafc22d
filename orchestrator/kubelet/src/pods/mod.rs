//! The pods of this node: which there are, and a worker for each.
//!
//! ```text
//! watch of pods ─┐                        ┌─▶ plan (pure) ─▶ actions ─▶ runtime, volumes, apiserver
//! runtime events ┼▶ dispatcher ─▶ worker ─┤
//! objects, probes┘                        └─▶ status (pure) ─▶ patch, if it differs
//! ```

pub(crate) mod container_status;
pub(crate) mod dispatch;
pub(crate) mod execute;
pub(crate) mod plan;
pub(crate) mod spec;
pub(crate) mod status;
pub(crate) mod view;
pub(crate) mod worker;

#[cfg(test)]
mod tests;
