//! Rounds: all proxies are started, each takes each load, all are weighed and ended.
//!
//! What else runs on the machine comes and goes; so the proxies take a load one right after the other, and a figure is
//! compared within its round, or within its window where a load has several. They do so in every order there is: who comes
//! behind a proxy that left the core awake is better off.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;
use weir_tests::Row;

use crate::{
    Bench,
    backend::{LARGE, SMALL},
    figures::{
        CPU_CONNECTION, CPU_HTTP2, CPU_LARGE, CPU_SMALL, CPU_TLS, MEMORY, RATE_HTTP2, RATE_LARGE, RATE_SMALL,
        START, Samples,
    },
    http2, load, open_loop, process,
    proxies::{Kind, Proxy},
};

/// Samples of each figure.
const ROUNDS: usize = 10;
/// What one load leaves behind in the machine is over by then.
const PAUSE: Duration = Duration::from_millis(100);

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Small,
    Large,
    Tls,
    Connections,
    Http2,
    OpenLoop,
}

impl Load {
    /// Whether the backend alone can take it: it speaks HTTP/1.1 and no TLS.
    fn goes_directly(self) -> bool {
        matches!(self, Self::Small | Self::Large | Self::OpenLoop)
    }

    /// How often every proxy takes it in a round.
    fn windows(self) -> usize {
        match self {
            // All orders of four, twice.
            Self::OpenLoop => 48,
            Self::Small | Self::Large | Self::Tls | Self::Connections | Self::Http2 => 1,
        }
    }
}

/// The figures of these loads; of none, of starts alone.
pub(crate) async fn measure(bench: &Bench, loads: &[Load]) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    let direct = Proxy::start(Kind::Direct, bench).await?;
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        let mut proxies = Vec::new();
        for kind in in_order(&Kind::PROXIES, round) {
            let proxy = Proxy::start(*kind, bench).await?;
            samples.add(START, *kind, proxy.start.as_secs_f64() * 1e3);
            proxies.push(proxy);
        }
        for load in loads {
            let windows = load.windows();
            for window in 0..windows {
                for proxy in in_order(&proxies, window) {
                    take(*load, proxy, bench, &mut samples).await?;
                }
            }
            // Last, since the proxies' core falls asleep meanwhile.
            if load.goes_directly() {
                for _ in 0..windows {
                    take(*load, &direct, bench, &mut samples).await?;
                }
            }
        }
        for proxy in proxies.iter().filter(|_| !loads.is_empty()) {
            samples.add(MEMORY, proxy.kind, process::pss_bytes(&proxy.pids)? as f64 / 1e6);
        }
        samples.end_round();
    }
    Ok(samples.rows())
}

/// The items in one of the n! orders that they have. Orders with consecutive numbers, n! of them, are all, once.
fn in_order<T>(items: &[T], mut number: usize) -> Vec<&T> {
    let mut order: Vec<&T> = items.iter().collect();
    for end in (1..order.len()).rev() {
        order.swap(number % (end + 1), end);
        number /= end + 1;
    }
    order
}

/// Puts the load on the proxy, and lets it rest.
async fn take(load: Load, proxy: &Proxy, bench: &Bench, samples: &mut Samples) -> Result<()> {
    put(load, proxy, bench, samples)
        .await
        .with_context(|| format!("{load:?} through {}", proxy.kind.name()))?;
    // A window of an open loop begins with requests that do not count.
    if load != Load::OpenLoop {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Puts the load on the proxy and keeps what comes of it.
async fn put(load: Load, proxy: &Proxy, bench: &Bench, samples: &mut Samples) -> Result<()> {
    let kind = proxy.kind;
    let client = || bench.certificate.client();
    match load {
        Load::Small | Load::Large => {
            let (body, cpu, rate) = if load == Load::Small {
                (SMALL, CPU_SMALL, RATE_SMALL)
            } else {
                (LARGE, CPU_LARGE, RATE_LARGE)
            };
            let count = load::keepalive(proxy, None, body).await?;
            if kind == Kind::Direct {
                samples.add(rate, kind, count.per_second());
            } else {
                samples.add(cpu, kind, count.cpu_us_per_request());
                samples.add_rate(rate, kind, count.per_second(), count.busy());
            }
        }
        Load::Tls => {
            let count = load::keepalive(proxy, Some(client()), SMALL).await?;
            samples.add(CPU_TLS, kind, count.cpu_us_per_request());
        }
        Load::Connections => {
            let count = load::connections(proxy, &client(), SMALL).await?;
            samples.add(CPU_CONNECTION, kind, count.cpu_us_per_request());
        }
        Load::Http2 => {
            let count = http2::closed_loop(proxy, SMALL).await?;
            samples.add_rate(RATE_HTTP2, kind, count.per_second(), count.busy());
            samples.add(CPU_HTTP2, kind, count.cpu_us_per_request());
        }
        Load::OpenLoop => {
            samples.add_latencies(kind, &open_loop::latencies_us(proxy.http, SMALL).await?);
        }
    }
    Ok(())
}
