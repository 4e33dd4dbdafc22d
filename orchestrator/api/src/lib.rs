//! The kinds that Weir serves: names, wire formats, defaults, validation, update rules, patches,
//! selectors, tables and discovery documents.
//!
//! Everything here is a function of its arguments: no I/O, no clock, no randomness, no threads. Objects
//! are [`serde_json::Value`]s, the very JSON that clients read back, so that the apiserver stores what it
//! serves. Kinds are rows of one registry ([`resource`]): a new kind is a new row and its rules.
//!
//! The life of a write, as the apiserver strings it together:
//!
//! ```text
//! body ─▶ codec (types, unknown fields) ─▶ patch ─▶ defaults ─▶ strategy (who may change what)
//!      ─▶ validation ─▶ store
//! ```

#![cfg_attr(
    test,
    allow(clippy::needless_pass_by_value, reason = "tables of values read better without references")
)]

pub mod codec;
pub mod defaults;
pub mod discovery;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod validation;

pub use resource::Resource;
pub use status::Status;
