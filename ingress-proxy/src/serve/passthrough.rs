//! TLS that is the endpoints' affair: bytes in both directions, and nothing else is known of them.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;

use crate::clock;
use crate::config::Timeouts;
use crate::live::Target;
use crate::metrics::Metrics;
use crate::proxy::{Ends, MAX_ATTEMPTS};
use crate::rewound::Rewound;
use crate::upstream::{Balance, Chosen, Unchosen, connect_tcp};
use crate::wire::Deadline;

/// Relays a connection to one of the target's endpoints. Ends when both sides have ended, or when neither has sent anything
/// for as long as an endpoint of HTTP may be silent.
///
/// **Cost.** Two buffers of 8 KiB, and a copy through them in either direction.
pub(super) async fn relay(
    client: Rewound<TcpStream>,
    ends: Ends,
    target: &Target,
    timeouts: &Timeouts,
    metrics: &Metrics,
) {
    let upstream = target.policy.as_ref().map(|policy| &policy.settings.upstream);
    let own = upstream.map(|upstream| upstream.over(timeouts));
    let timeouts = own.as_ref().unwrap_or(timeouts);
    let header = upstream.and_then(|upstream| upstream.proxy_protocol).map(|version| version.header(ends));
    let balance = upstream.map_or_else(Balance::default, |upstream| upstream.balance);
    let connected = connect(target, balance, header.as_deref().unwrap_or_default(), timeouts, metrics).await;
    let Some((_chosen, mut endpoint)) = connected else { return metrics.passthrough_unserved() };
    let _open = metrics.passthrough_opened();
    let moves = AtomicU64::new(0);
    let mut client = Counted { stream: client, moves: &moves };
    let mut both = pin!(copy_bidirectional(&mut client, &mut endpoint));
    let (mut deadline, mut seen) = (Deadline::new(clock::now() + timeouts.read), 0);
    std::future::poll_fn(|cx| {
        if both.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let now = moves.load(Ordering::Relaxed);
        if now != seen {
            seen = now;
            deadline.set(clock::now(), timeouts.read);
        }
        if deadline.has_passed(cx) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// A connection to an endpoint that takes one; it counts as a request in flight there.
async fn connect(
    target: &Target,
    balance: Balance,
    header: &[u8],
    timeouts: &Timeouts,
    metrics: &Metrics,
) -> Option<(Chosen, TcpStream)> {
    let pool = target.backend.as_ref().ok()?;
    let mut failed = Vec::new();
    for _ in 0..MAX_ATTEMPTS {
        let chosen = match pool.choose(balance, None, &failed) {
            Ok(chosen) => chosen,
            Err(why) => {
                if why == Unchosen::Full {
                    metrics.endpoints_full.inc();
                }
                return None;
            }
        };
        match connect_tcp(chosen.address(), timeouts.connect, header).await {
            Ok(stream) => return Some((chosen, stream)),
            Err(failure) => {
                metrics.upstream_failure(failure);
                pool.failed(&chosen, metrics);
                failed.push(chosen.address());
            }
        }
    }
    None
}

/// A stream that counts what moves.
struct Counted<'c, S> {
    stream: S,
    moves: &'c AtomicU64,
}

impl<S> Counted<'_, S> {
    fn count<T>(&self, result: Poll<T>) -> Poll<T> {
        if result.is_ready() {
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.count(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
