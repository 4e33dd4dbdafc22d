//! What the churn goes on between.

pub(crate) mod backend;
pub(crate) mod clients;
pub(crate) mod pair;
