//! The request's way to the endpoint.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite as _;

use crate::proxy::Trouble;
use crate::stream::Stream;
use crate::subrequest::Tee;
use crate::wire::{Body, Buffer, Part, write};

/// A request on its way.
pub(super) struct ToEndpoint<'c> {
    /// Its head, made anew.
    head: &'c [u8],
    head_sent: usize,
    /// What was read of the client: the body begins at its front, and stays there as long as it can be sent once more.
    input: &'c mut Buffer,
    body: Body,
    /// Bytes at the front of `input` that belong to the body, and how many of them were sent.
    read: usize,
    sent: usize,
    /// Bytes of the body that are not in `input` any more.
    forgotten: u64,
    /// Data of the body that may still come.
    room: u64,
    /// The endpoint takes no more. It may have answered before.
    deaf: bool,
    /// Where the body is copied to, and bytes of data that were read of it.
    tee: Option<&'c mut Tee>,
    data: u64,
    /// Reads and writes that moved something.
    pub(super) moves: u64,
}

impl<'c> ToEndpoint<'c> {
    /// Of a body with at most `limit` bytes of data.
    pub(super) fn new(head: &'c [u8], input: &'c mut Buffer, body: Body, limit: Option<u64>) -> Self {
        let room = limit.unwrap_or(u64::MAX);
        Self {
            head,
            head_sent: 0,
            input,
            body,
            read: 0,
            sent: 0,
            forgotten: 0,
            room,
            deaf: false,
            tee: None,
            data: 0,
            moves: 0,
        }
    }

    /// The body is for somebody else, too.
    pub(super) fn copy_to(&mut self, tee: Option<&'c mut Tee>) {
        self.tee = tee;
    }

    /// Whether all of the body was read from the client.
    pub(super) fn is_read(&self) -> bool {
        self.body.is_done()
    }

    /// Whether all of it was sent.
    pub(super) fn is_sent(&self) -> bool {
        self.is_read() && !self.waits_for_endpoint() && !self.deaf
    }

    /// Whether the endpoint is to take bytes.
    pub(super) fn waits_for_endpoint(&self) -> bool {
        !self.deaf && (self.head_sent < self.head.len() || self.sent < self.read)
    }

    /// Whether the client is to send bytes, and nothing else is waited for.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.deaf && !self.is_read() && !self.is_tunnel()
    }

    pub(super) fn is_tunnel(&self) -> bool {
        self.body == Body::Tunnel
    }

    /// From now on the client's bytes are of another protocol.
    pub(super) fn open_tunnel(&mut self) {
        self.body = Body::Tunnel;
        self.tee = None;
    }

    /// Whether all of the body that was read is at hand.
    pub(super) fn is_at_hand(&self) -> bool {
        self.forgotten == 0
    }

    /// Bytes of the body that were taken from the client.
    pub(super) fn bytes(&self) -> u64 {
        self.forgotten + self.read as u64
    }

    /// The body was of use; what is behind it is the next request.
    pub(super) fn finish(&mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        self.input.consume(self.read);
        self.forgotten += self.read as u64;
        (self.read, self.sent) = (0, 0);
    }

    /// Moves it on until it is sent or something must be waited for. `is_answered`: it will not be sent again.
    pub(super) fn poll(
        &mut self,
        client: &mut Stream,
        endpoint: &mut Stream,
        is_answered: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Trouble>> {
        loop {
            // What came of the body with the head goes on with it.
            let unread = &self.input.filled()[self.read..];
            if !self.is_read() && !unread.is_empty() {
                let piece = match &mut self.tee {
                    None => self.body.read(unread),
                    Some(tee) => {
                        let at = &mut self.data;
                        self.body.read_parts(unread, |part| {
                            if let Part::Data(data) = part {
                                tee.take(*at, data);
                                *at += data.len() as u64;
                            }
                        })
                    }
                };
                let piece = piece.map_err(|_| Trouble::BadRequest)?;
                if !self.is_tunnel() {
                    self.room = self.room.checked_sub(piece.data as u64).ok_or(Trouble::BodyTooLarge)?;
                }
                self.read += piece.bytes;
                if let Some(tee) = self.tee.as_mut().filter(|_| self.body.is_done()) {
                    tee.end();
                }
            }
            let (head, body) = (&self.head[self.head_sent..], &self.input.filled()[self.sent..self.read]);
            if self.deaf {
                // What is sent in vain is still read, so that the client gets to reading the answer.
                self.sent = self.read;
            } else if !head.is_empty() || !body.is_empty() {
                match write(endpoint, head, body, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0) | Err(_)) => self.deaf = true,
                    Poll::Ready(Ok(count)) => {
                        let of_head = count.min(head.len());
                        self.moves += 1;
                        self.head_sent += of_head;
                        self.sent += count - of_head;
                    }
                }
                continue;
            }
            // TLS may hold some of it back.
            if !self.deaf {
                match Pin::new(&mut *endpoint).poll_flush(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => self.deaf = true,
                }
            }
            if self.is_read() {
                return Poll::Ready(Ok(()));
            }
            if self.input.is_full() || is_answered {
                self.forget();
            }
            match self.input.poll_fill(client, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(1..)) => self.moves += 1,
                Poll::Ready(Ok(0) | Err(_)) if self.is_tunnel() => {
                    // The other direction may go on.
                    let _ = Pin::new(&mut *endpoint).poll_shutdown(cx);
                    self.body = Body::Done;
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Trouble::ClientGone)),
            }
        }
    }
}
