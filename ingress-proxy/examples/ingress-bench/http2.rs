//! HTTP/2 over TLS: h2load's load, which is lighter than any client of this process would be.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::{backend::Body, certificate::HOST, load::Count, process, proxies::Proxy};

const CONNECTIONS: u32 = 16;
/// Side by side on each connection.
const STREAMS: u32 = 32;
/// Of a run.
const REQUESTS: u32 = 40_000;
/// A run that takes longer hangs.
const LONGEST: Duration = Duration::from_mins(1);

/// A run to its end. The connections' opening is in it: sixteen among all those requests.
pub(crate) async fn closed_loop(proxy: &Proxy, body: Body) -> Result<Count> {
    let before = process::cpu_time(&proxy.pids)?;
    let text = run(proxy.https, body).await?;
    let cpu = process::cpu_time(&proxy.pids)?.saturating_sub(before);
    let elapsed = check(&text, body).with_context(|| format!("h2load says:\n{text}"))?;
    Ok(Count { requests: u64::from(REQUESTS), elapsed, cpu })
}

async fn run(address: SocketAddr, body: Body) -> Result<String> {
    let mut command = Command::new("h2load");
    command
        .arg(format!("--requests={REQUESTS}"))
        .arg(format!("--clients={CONNECTIONS}"))
        .arg(format!("--max-concurrent-streams={STREAMS}"))
        .arg(format!("--connect-to={address}"))
        .arg(format!("https://{HOST}{}", body.path))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LONGEST, command.output());
    let output = output.await.context("h2load hangs")?.context("starting h2load (nghttp2-client)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "h2load: {}: {errors}", output.status);
    String::from_utf8(output.stdout).context("reading what h2load wrote")
}

/// That all of it was HTTP/2, every response a 200 and every body whole; how long it took.
///
/// `finished in 1.91s, 41904.75 req/s, 7.67MB/s` is too rough in its seconds, so that the time is the rate's.
fn check(text: &str, body: Body) -> Result<Duration> {
    let line = |start: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(start));
        found.with_context(|| format!("no line {start:?}"))
    };
    let protocol = line("Application protocol: ")?;
    ensure!(protocol == "h2", "the protocol is {protocol}");
    let requests = line("requests: ")?;
    ensure!(
        requests.contains(&format!(" {REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout")),
        "{requests}"
    );
    let statuses = line("status codes: ")?;
    ensure!(statuses.starts_with(&format!("{REQUESTS} 2xx,")), "{statuses}");
    let traffic = line("traffic: ")?;
    let bytes = u64::from(REQUESTS) * body.length as u64;
    ensure!(traffic.ends_with(&format!("({bytes}) data")), "bodies of {bytes} bytes: {traffic}");
    let finished = line("finished in ")?;
    let rate = finished.split(", ").find_map(|part| part.strip_suffix(" req/s"));
    let rate: f64 = rate.and_then(|number| number.parse().ok()).context("no rate")?;
    Ok(Duration::from_secs_f64(f64::from(REQUESTS) / rate))
}
