//! Rounds: all proxies are started, each takes each load, all are weighed and ended.
//!
//! What else runs on the machine comes and goes; so the proxies take a load one right after the other, a figure is compared
//! within its round, and each round begins with another of them.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;
use weir_tests::{Row, percentile};

use crate::{
    Bench,
    backend::{LARGE, SMALL},
    figures::{
        CPU_CONNECTION, CPU_HTTP2, CPU_LARGE, CPU_SMALL, CPU_TLS, LATENCY_P50, LATENCY_P99, LATENCY_P999,
        MEMORY, RATE_HTTP2, RATE_LARGE, RATE_SMALL, START, Samples,
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
}

/// The figures of these loads; of none, of starts alone.
pub(crate) async fn measure(bench: &Bench, loads: &[Load]) -> Result<Vec<Row>> {
    let mut samples = Samples::default();
    for round in 0..ROUNDS {
        eprintln!("round {} of {ROUNDS}", round + 1);
        let mut order = Kind::ALL;
        order.rotate_left(round % Kind::ALL.len());
        let mut proxies = Vec::new();
        for kind in order {
            let proxy = Proxy::start(kind, bench).await?;
            if kind != Kind::Direct {
                samples.add(START, kind, proxy.start.as_secs_f64() * 1e3);
            }
            proxies.push(proxy);
        }
        for load in loads {
            for proxy in proxies.iter().filter(|proxy| proxy.kind != Kind::Direct || load.goes_directly()) {
                let taken = take(*load, proxy, bench, &mut samples).await;
                taken.with_context(|| format!("{load:?} through {}", proxy.kind.name()))?;
                sleep(PAUSE).await;
            }
        }
        for proxy in proxies.iter().filter(|proxy| proxy.kind != Kind::Direct && !loads.is_empty()) {
            samples.add(MEMORY, proxy.kind, process::pss_bytes(&proxy.pids)? as f64 / 1e6);
        }
    }
    Ok(samples.rows())
}

/// Puts the load on the proxy and keeps what comes of it.
async fn take(load: Load, proxy: &Proxy, bench: &Bench, samples: &mut Samples) -> Result<()> {
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
            let latencies = open_loop::latencies_ms(proxy.http, SMALL).await?;
            for (figure, percent) in [(LATENCY_P50, 50.0), (LATENCY_P99, 99.0), (LATENCY_P999, 99.9)] {
                samples.add(figure, kind, percentile(&latencies, percent));
            }
        }
    }
    Ok(())
}
