//! Writing two pieces that lie apart.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// One call for what is there of both.
pub(crate) fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    first: &[u8],
    second: &[u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    match (first.is_empty(), second.is_empty()) {
        (_, true) => stream.poll_write(cx, first),
        (true, false) => stream.poll_write(cx, second),
        (false, false) => stream.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)]),
    }
}
