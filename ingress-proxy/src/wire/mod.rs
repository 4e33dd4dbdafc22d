//! HTTP/1.1 as bytes: heads, bodies, the buffers they wait in, and the deadline of whoever waits for them.
//!
//! Clients speak it in [`crate::http1`]; endpoints speak it to clients of either version. It knows nothing of connections,
//! routes or policies.

mod buffer;
mod deadline;
mod forward;
mod framing;
mod head;
mod trailers;
mod write;

pub(crate) use buffer::Buffer;
pub(crate) use deadline::Deadline;
pub(crate) use forward::{
    After, add_fields, goes_on_to_client, redirect_request, write_request, write_response,
};
pub(crate) use framing::{Body, Part};
pub(crate) use head::{
    Connection, HeadEnd, Known, MAX_FIELDS, MAX_HEAD_BYTES, Normal, RequestHead, ResponseHead, Space,
    Version, read_length,
};
pub(crate) use trailers::{Trailers, write_trailers};
pub(crate) use write::write;
