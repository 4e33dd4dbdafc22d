//! Sending copies of requests to mirrors.
//!
//! The client's request never waits for its copy. A body is copied piece by piece as it passes; what the mirror has not taken
//! waits in bounded memory, and beyond that the copy is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::Clients;
use super::in_flight::InFlight;
use super::metrics::MirrorOutcome;
use super::{COPIES, COPIES_OF_ONE, SubrequestMetrics, Subrequests, read_rest};
use crate::config::Timeouts;
use crate::policy::Duplicate;
use crate::wire::Body;

/// The whole of a copy and its answer take at most this long.
const LONGEST: Duration = Duration::from_mins(1);
/// Bytes of one body that wait for the mirror to take them.
const WAITING_BYTES: usize = 256 * 1024;
/// What a piece takes besides its bytes.
const PIECE_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct Mirrors {
    clients: Clients<CopiedBody>,
    in_flight: Arc<InFlight>,
    metrics: SubrequestMetrics,
}

/// Where a body is copied to while it passes. Dropped before its end, the copy is given up.
#[derive(Debug)]
pub(crate) struct Tee {
    /// Nothing when the copy was given up.
    pieces: Option<UnboundedSender<Piece>>,
    waiting: Arc<AtomicUsize>,
    /// Cancelled when the copy is given up: a mirror that takes nothing never asks for the piece that says so.
    lost: CancellationToken,
    /// Bytes of the body that were copied.
    seen: u64,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    End,
}

/// The body of a copy.
#[derive(Debug)]
struct CopiedBody {
    /// Nothing when there is none, or it is over.
    pieces: Option<UnboundedReceiver<Piece>>,
    waiting: Arc<AtomicUsize>,
    length: Option<u64>,
}

/// The body of a copy is not the client's body to its end.
#[derive(Debug, thiserror::Error)]
#[error("the body was not copied to its end")]
struct Lost;

impl Mirrors {
    pub(super) fn new(metrics: &SubrequestMetrics, timeouts: &Timeouts) -> Self {
        Self {
            clients: Clients::new(timeouts.connect),
            in_flight: Arc::new(InFlight::new(COPIES, COPIES_OF_ONE, metrics.copies.clone())),
            metrics: metrics.clone(),
        }
    }

    async fn send(&self, request: Request<CopiedBody>, lost: CancellationToken) -> MirrorOutcome {
        let exchange = async {
            let answered = tokio::select! {
                biased;
                () = lost.cancelled() => return MirrorOutcome::BodyLost,
                answered = self.clients.send(request) => answered,
            };
            let Ok(response) = answered else { return MirrorOutcome::Failed };
            read_rest(response.into_body()).await;
            MirrorOutcome::Answered
        };
        timeout(LONGEST, exchange).await.unwrap_or(MirrorOutcome::Late)
    }
}

impl Subrequests {
    /// Begins to send a copy, in a task of its own. Returns where its body goes, if it is to have one. `fields` are those that
    /// the endpoint gets besides the client's.
    pub(crate) fn mirror<'f>(
        &self,
        duplicate: Duplicate,
        id: &str,
        fields: impl Iterator<Item = (&'f HeaderName, &'f HeaderValue)>,
        body: Body,
    ) -> Option<Tee> {
        let Duplicate { request, mirror } = duplicate;
        let mirrors = Arc::clone(&self.mirrors);
        let Some(request) = request else {
            mirrors.metrics.mirrored(MirrorOutcome::NoUrl);
            return None;
        };
        let Some(place) = mirrors.in_flight.take(&mirror.group) else {
            mirrors.metrics.mirrored(MirrorOutcome::Busy);
            return None;
        };
        let length = match body {
            Body::Length(length) => Some(length),
            _ => None,
        };
        let (tee, copied, lost) = copy(length, mirror.with_body && !body.is_done());
        let mut request = request.map(|()| copied);
        for (name, value) in fields {
            request.headers_mut().append(name, value.clone());
        }
        if let Ok(id) = HeaderValue::from_str(id) {
            request.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
        }
        tokio::spawn(async move {
            let outcome = mirrors.send(request, lost).await;
            drop(place);
            mirrors.metrics.mirrored(outcome);
        });
        tee
    }
}

/// Both ends of a copied body, or of none, and what is cancelled when it is given up.
fn copy(length: Option<u64>, is_wanted: bool) -> (Option<Tee>, CopiedBody, CancellationToken) {
    let (waiting, lost) = <(Arc<AtomicUsize>, CancellationToken)>::default();
    if !is_wanted {
        return (None, CopiedBody { pieces: None, waiting, length: Some(0) }, lost);
    }
    // What is in it is bounded by `waiting`.
    let (sender, receiver) = mpsc::unbounded_channel();
    let tee = Tee { pieces: Some(sender), waiting: Arc::clone(&waiting), lost: lost.clone(), seen: 0 };
    (Some(tee), CopiedBody { pieces: Some(receiver), waiting, length }, lost)
}

impl Tee {
    /// Copies data that begins at this place of the body, unless that was copied before: a body may be read again.
    pub(crate) fn take(&mut self, start: u64, data: &[u8]) {
        let known = usize::try_from(self.seen.saturating_sub(start)).unwrap_or(usize::MAX);
        if let Some(data) = data.get(known..).filter(|data| !data.is_empty()) {
            self.push(Bytes::copy_from_slice(data));
        }
    }

    /// Takes the next piece, without copying.
    pub(crate) fn push(&mut self, data: Bytes) {
        self.seen += data.len() as u64;
        let cost = data.len() + PIECE_BYTES;
        let fits = self.waiting.fetch_add(cost, Ordering::Relaxed) + cost <= WAITING_BYTES;
        if !fits {
            self.give_up();
        } else if self.pieces.as_ref().is_some_and(|pieces| pieces.send(Piece::Data(data)).is_err()) {
            self.pieces = None; // the mirror has answered or failed
        }
    }

    /// No more of the body is copied.
    fn give_up(&mut self) {
        if self.pieces.is_some() {
            // Before the body breaks off, which would look like the mirror's failure.
            self.lost.cancel();
            self.pieces = None;
        }
    }

    /// The body was copied to its end.
    pub(crate) fn end(&mut self) {
        if let Some(pieces) = self.pieces.take() {
            let _ = pieces.send(Piece::End); // nobody listens if the mirror does not
        }
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl HttpBody for CopiedBody {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        match ready!(pieces.poll_recv(cx)) {
            Some(Piece::Data(data)) => {
                self.waiting.fetch_sub(data.len() + PIECE_BYTES, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Piece::End) => {
                self.pieces = None;
                Poll::Ready(None)
            }
            None => {
                self.pieces = None;
                Poll::Ready(Some(Err(Lost)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_body_is_copied_once_and_to_its_end() {
        let (tee, body, lost) = copy(None, true);
        let mut tee = tee.unwrap();
        tee.take(0, b"hel");
        tee.take(0, b"hello");
        tee.take(3, b"lo");
        tee.push(Bytes::from_static(b" world"));
        tee.end();
        drop(tee);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello world");
        assert!(!lost.is_cancelled());
        let (none, body, _) = copy(Some(5), false);
        assert!(none.is_none() && body.is_end_stream() && body.size_hint().exact() == Some(0));
    }

    #[tokio::test]
    async fn a_copy_that_is_not_whole_is_no_copy() {
        for data in [1, WAITING_BYTES] {
            let (tee, body, lost) = copy(None, true);
            let mut tee = tee.unwrap();
            tee.take(0, &vec![0; data]);
            if data == 1 {
                drop(tee); // the client is gone
            } else {
                tee.end(); // it is too late
            }
            assert!(lost.is_cancelled());
            assert!(body.collect().await.is_err());
        }
    }
}
