//! The plan: what to write into the maps so that they say what the API says. No I/O.
//!
//! ```text
//! Service + EndpointSlices ─▶ desired()    ─┬▶ Books::plan(service) ─▶ [Step] ─▶ maps
//! Pod with host ports      ─▶ host_ports() ─┘    ▲ adopt(maps) on start
//! ```
//! [`Books`] is what the maps hold, as the agent believes. A plan looks at one service and costs what that service
//! costs, however many there are. Every plan moves the books on as if it had been carried out; when a write fails the
//! books are thrown away and made again from the maps.

mod batch;
mod books;
pub mod desired;
mod health_check;
pub mod host_ports;
mod ids;
mod limits;
pub mod maglev;
mod marks;
pub mod model;
mod outcome;
mod regions;
mod source_ranges;
mod step;
mod topology;

pub use batch::Batch;
pub use books::{Adopted, AdoptedBackend, Books, GRACE_MS};
pub use health_check::{HealthCheck, health_check};
pub use limits::{Limits, Usage};
pub use model::PortName;
pub use outcome::{Plan, Problem};
pub use step::Step;
pub(crate) use step::any_port;

#[cfg(test)]
mod tests;
