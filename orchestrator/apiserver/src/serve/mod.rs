//! Connections: the listener, TLS, and what bounds each of them.

mod listener;
mod tls;

pub(crate) use listener::{Listener, serve};
pub(crate) use tls::Certificates;
pub use tls::TlsError;
