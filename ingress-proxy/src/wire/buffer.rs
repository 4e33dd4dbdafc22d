//! Where bytes that were read wait to be understood and sent on.
//!
//! A connection that waits for its next request holds none: buffers come from the thread's spare ones and go back
//! there, so that ten thousand idle connections cost no more than the busy ones among them.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a buffer, unless a head needs more: a page of 16 KiB with its head comes in one read.
const BYTES: usize = 32 * 1024;
/// Spare buffers that a thread keeps.
const MAX_SPARE: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not used yet. Without memory until something is to be read.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What was read and not used.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether nothing more can be read before something is used.
    pub(crate) fn is_full(&self) -> bool {
        !self.bytes.is_empty() && self.len() == self.bytes.len()
    }

    /// Uses up the first bytes. The memory of an empty buffer goes back.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len(), "only what is there is used up");
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the memory back when nothing is in it.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() {
            give_back(std::mem::take(&mut self.bytes));
            (self.start, self.end) = (0, 0);
        }
    }

    /// Twice the room, for a head that is longer than usual.
    pub(crate) fn grow(&mut self) {
        let mut larger = vec![0; self.bytes.len() * 2].into_boxed_slice();
        larger[..self.len()].copy_from_slice(self.filled());
        (self.start, self.end) = (0, self.len());
        self.bytes = larger;
    }

    /// Reads once; 0 is the end of the stream. The caller has made sure that it is not full.
    ///
    /// Cost: one `recv`, no allocation but for a thread's first buffers.
    pub(crate) fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.is_empty() {
            self.bytes = take();
        } else if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        let mut space = ReadBuf::new(&mut self.bytes[self.end..]);
        let result = Pin::new(stream).poll_read(cx, &mut space);
        let read = space.filled().len();
        if result.is_pending() {
            self.rest();
        }
        ready!(result)?;
        self.end += read;
        Poll::Ready(Ok(read))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.bytes));
    }
}

fn take() -> Box<[u8]> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| vec![0; BYTES].into_boxed_slice())
}

fn give_back(bytes: Box<[u8]>) {
    if bytes.len() != BYTES {
        return;
    }
    // A buffer that is dropped with its thread finds the spare ones gone.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < MAX_SPARE {
            spare.push(bytes);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fill(buffer: &mut Buffer, mut from: &[u8]) -> usize {
        std::future::poll_fn(|cx| buffer.poll_fill(&mut from, cx)).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_left_moves_to_the_front_when_the_end_is_reached() {
        let mut buffer = Buffer::default();
        let page: Vec<u8> = (0..BYTES).map(|at| at as u8).collect();
        assert_eq!(fill(&mut buffer, &page).await, BYTES);
        assert!(buffer.is_full());
        buffer.consume(BYTES - 3);
        assert_eq!(fill(&mut buffer, b"more").await, 4);
        assert_eq!(buffer.filled(), [253, 254, 255, b'm', b'o', b'r', b'e']);
    }

    #[tokio::test]
    async fn a_larger_buffer_holds_what_was_there() {
        let mut buffer = Buffer::default();
        fill(&mut buffer, &vec![7; BYTES]).await;
        buffer.grow();
        assert!(!buffer.is_full());
        assert_eq!(fill(&mut buffer, b"x").await, 1);
        assert_eq!((buffer.len(), buffer.filled()[BYTES]), (BYTES + 1, b'x'));
    }

    #[tokio::test]
    async fn an_empty_buffer_rests_without_memory() {
        let mut buffer = Buffer::default();
        fill(&mut buffer, b"request").await;
        buffer.rest();
        assert_eq!(buffer.filled(), b"request", "nothing is lost");
        buffer.consume(7);
        buffer.rest();
        assert!(buffer.bytes.is_empty());
    }
}
