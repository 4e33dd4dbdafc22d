//! What stands between a client's socket and the HTTP parser.
//!
//! pingora's parser waits up to a minute for *each read* of a request head and buffers up to a megabyte of it.
//! A client that sends one byte every few seconds would hold its connection forever. The [`Guard`] gives the
//! head as a whole a deadline and a size, and where one is passed it answers for itself (408, 431), because
//! the parser would only hang up. While a body or a response flows it only passes bytes through.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::metrics::{Metrics, Refusal};
use crate::stream::ClientStream;

/// A request head, from request line to empty line.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// After a refusal, this much more is read and thrown away: closing with unread bytes would make the kernel
/// reset the connection, and the client would see that instead of the answer.
pub(crate) const LINGER_BYTES: usize = 1024 * 1024;
/// And this long.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

const TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\
    content-type: text/plain\r\ncontent-length: 42\r\nconnection: close\r\n\r\n\
    431: the request head is larger than 64 KB";
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
    content-type: text/plain\r\ncontent-length: 49\r\nconnection: close\r\n\r\n\
    408: the request head did not arrive fast enough.";

/// A head is expected, and nothing of it was read yet.
const IDLE: u8 = 0;
/// In a head.
const HEAD: u8 = 1;
/// Past it.
const PASS: u8 = 2;

/// A client's stream with a bound on its request heads.
#[derive(Debug)]
pub(crate) struct Guard {
    inner: ClientStream,
    /// Whose address pingora need not ask the kernel for.
    socket: Arc<SocketDigest>,
    /// Bytes that were read before, to be read again.
    replay: Bytes,
    /// Set by whoever drives the connection, through a shared reference.
    phase: AtomicU8,
    seen: usize,
    deadline: Option<Pin<Box<Sleep>>>,
    header_timeout: Duration,
    refusal: Option<Refusing>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Refusing {
    answer: &'static [u8],
    shut: bool,
    lingered: usize,
    until: Pin<Box<Sleep>>,
}

impl Guard {
    /// Wraps a fresh connection whose first head must be complete at `deadline`.
    pub(crate) fn new(
        inner: ClientStream,
        peer: SocketAddr,
        replay: Bytes,
        deadline: Instant,
        header_timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        let socket = SocketDigest::from_raw_fd(inner.tcp().as_raw_fd());
        let _ = socket.peer_addr.set(Some(peer.into()));
        Self {
            inner,
            socket: Arc::new(socket),
            replay,
            phase: AtomicU8::new(HEAD),
            seen: 0,
            deadline: Some(Box::pin(tokio::time::sleep_until(deadline))),
            header_timeout,
            refusal: None,
            metrics,
        }
    }

    /// The guard of a stream, if it has one.
    pub(crate) fn of(stream: &Stream) -> Option<&Self> {
        stream.as_ref().as_any().downcast_ref()
    }

    /// The next bytes begin a request head.
    pub(crate) fn expect_head(&self) {
        self.phase.store(IDLE, Ordering::Relaxed);
    }

    /// The head is complete.
    pub(crate) fn head_is_complete(&self) {
        self.phase.store(PASS, Ordering::Relaxed);
    }

    fn refuse(&mut self, reason: Refusal) {
        // Nothing said yet: hang up without a word.
        let answer: &[u8] = match reason {
            _ if self.seen == 0 => b"",
            Refusal::HeaderTooLarge => TOO_LARGE,
            _ => TOO_SLOW,
        };
        self.metrics.refused(reason);
        let until = Box::pin(tokio::time::sleep(LINGER));
        self.refusal = Some(Refusing { answer, shut: false, lingered: 0, until });
    }

    /// Answers, says goodbye, and waits for the client to do so; then the parser sees the end of the stream.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(refusal) = &mut self.refusal else { return Poll::Ready(Ok(())) };
        if refusal.until.as_mut().poll_deadline(cx) {
            return Poll::Ready(Ok(()));
        }
        while !refusal.answer.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, refusal.answer))?;
            refusal.answer = &refusal.answer[written..];
        }
        if !refusal.shut {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            refusal.shut = true;
        }
        let mut space = [0; 4096];
        while refusal.lingered < LINGER_BYTES {
            let mut buf = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                break;
            }
            refusal.lingered += buf.filled().len();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let take = self.replay.len().min(buf.remaining());
        buf.put_slice(&self.replay[..take]);
        self.replay.advance(take);
        Poll::Ready(Ok(()))
    }
}

trait PollDeadline {
    fn poll_deadline(self, cx: &mut Context<'_>) -> bool;
}

impl PollDeadline for Pin<&mut Sleep> {
    fn poll_deadline(self, cx: &mut Context<'_>) -> bool {
        use std::future::Future as _;
        self.poll(cx).is_ready()
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refusal.is_some() {
            return this.poll_refusal(cx);
        }
        let phase = this.phase.load(Ordering::Relaxed);
        if phase == PASS {
            return this.poll_fill(cx, buf);
        }
        if phase == IDLE {
            this.phase.store(HEAD, Ordering::Relaxed);
            this.seen = 0;
            this.deadline = None;
        }
        if this.seen >= MAX_HEAD_BYTES {
            this.refuse(Refusal::HeaderTooLarge);
            return this.poll_refusal(cx);
        }
        let before = buf.filled().len();
        match this.poll_fill(cx, buf) {
            Poll::Ready(result) => {
                this.seen += buf.filled().len() - before;
                if this.deadline.is_none() && this.seen > 0 {
                    this.deadline = Some(Box::pin(tokio::time::sleep(this.header_timeout)));
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let late = this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll_deadline(cx));
                if late {
                    this.refuse(Refusal::HeaderTimeout);
                    return this.poll_refusal(cx);
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Guard {
    async fn shutdown(&mut self) {
        let _ = self.inner.shutdown().await;
    }
}

impl UniqueID for Guard {
    fn id(&self) -> UniqueIDType {
        self.inner.tcp().as_raw_fd()
    }
}

impl Ssl for Guard {
    /// Tells only that there is TLS: nothing here asks for more.
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.is_tls().then(|| Arc::new(SslDigest::new("", "", None, None, Vec::new())))
    }
}

impl GetTimingDigest for Guard {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Guard {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Guard {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}

impl Peek for Guard {}
