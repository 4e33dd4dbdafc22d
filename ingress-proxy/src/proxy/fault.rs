//! What is refused before it is routed.
//!
//! Two readers of one byte stream that disagree about where a request ends are how requests are smuggled. So what another
//! parser might read differently gets 400 and a closed connection.

use crate::table::{HostError, PathError};
use crate::wire::MAX_HEAD_BYTES;

/// Why a request is refused; the text goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the request head is larger than {MAX_HEAD_BYTES} bytes")]
    TooLarge,
    #[error("the request head has too many fields")]
    TooManyFields,
    #[error("the request head is malformed")]
    Malformed,
    #[error("a line of the request head ends in a bare line feed")]
    BareLineFeed,
    #[error("the request has both Content-Length and Transfer-Encoding")]
    TwoLengths,
    #[error("the Content-Length is not exactly one number")]
    Length,
    #[error("the Transfer-Encoding is not exactly one \"chunked\"")]
    TransferEncoding,
    #[error("the request has no Host")]
    NoHost,
    #[error("the request has more than one Host")]
    TwoHosts,
    #[error("the request's target and its Host differ")]
    HostsDiffer,
    #[error("the method TRACE is not served")]
    Trace,
    #[error("the method CONNECT is not served")]
    Connect,
    #[error("the request target cannot be brought into normal form")]
    Rewrite,
    #[error("{0}")]
    Host(#[from] HostError),
    #[error("{0}")]
    Path(#[from] PathError),
}

impl Fault {
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::TooLarge | Self::TooManyFields => 431,
            Self::Trace | Self::Connect => 405,
            _ => 400,
        }
    }
}
