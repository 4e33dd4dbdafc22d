//! What the ingress costs and carries, part by part, beside nginx, haproxy, a bare pingora proxy and the backend alone.
//! Prints rows as JSON; `cargo xtask bench ingress` runs it, as root.
//!
//! ```text
//!        one core                      the other
//!  load ─────────── 127.0.0.1 ──────▶ a proxy, one worker
//!  backend ◀─────── 198.18.0.1 ─────── │
//!  API server ◀──── lists, watches ─── │ (Weir alone)
//! ```
//! Everything is in a network namespace that has nothing but its loopback. [`rounds`] puts the same loads on all proxies, in
//! an order that changes, and on the backend behind them; [`routing`] and [`scale`] measure what only Weir has; [`changes`]
//! is whether anybody notices that everything changes.
//!
//! CPU time is the proxies' own, as the kernel counts it for each process: what the load and the backend cost on their core
//! is not in it, nor does it matter there whether that core is the narrow place. Where it is, rates say so in a note.
//! Figures are compared within a round, those of the open loop within a window, and a ratio is the median of the ratios: it
//! may say otherwise than the two medians do where the machine was not quiet. A response that is not a 200 of the right
//! length ends the bench.

mod backend;
mod bare;
mod certificate;
mod changes;
mod cluster;
mod figures;
mod http1;
mod http2;
mod load;
mod open_loop;
mod process;
mod proxies;
mod rounds;
mod routing;
mod scale;
mod ticker;
mod tidy;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use weir_tests::Row;

use certificate::Certificate;
use cluster::Cluster;
use process::Cores;
use rounds::Load;

/// Where the backend listens: an endpoint may be anything but loopback. From the range for measurements (RFC 2544).
const BACKEND: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Open files, on both sides of 512 streams of each proxy.
const FILES: u64 = 16_384;
/// Names the executable that is measured.
const WEIR: &str = "WEIR";

/// What can be measured alone.
#[derive(Clone, Copy)]
enum Part {
    /// Loads on every proxy; none is only their start.
    Rounds(&'static [Load]),
    Routing,
    Scale,
    Churn,
}

const PARTS: [(&str, Part); 8] = [
    ("http1", Part::Rounds(&[Load::Small, Load::Large])),
    ("tls", Part::Rounds(&[Load::Tls, Load::Connections])),
    ("http2", Part::Rounds(&[Load::Http2])),
    ("open-loop", Part::Rounds(&[Load::OpenLoop])),
    ("start", Part::Rounds(&[])),
    ("routing", Part::Routing),
    ("scale", Part::Scale),
    ("churn", Part::Churn),
];

/// What every proxy is started with, and what loads it.
pub(crate) struct Bench {
    /// The executable of Weir.
    weir: PathBuf,
    /// For files of proxies.
    directory: PathBuf,
    cores: Cores,
    backend: SocketAddr,
    certificate: Certificate,
    cluster: Cluster,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((word, rest)) if word == bare::WORD => bare::main(rest),
        Some((word, rest)) if word == tidy::WORD => measure(rest),
        _ => match parts(&words) {
            Ok(_) => return tidy::supervise(&words),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ingress-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The parts that are named, or all.
fn parts(words: &[String]) -> Result<Vec<Part>> {
    let named = |word: &String| {
        let found = PARTS.iter().find(|(name, _)| name == word);
        found.map(|(_, part)| *part).with_context(|| {
            let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
            format!("`{word}` is no part; these are: {}", names.join(", "))
        })
    };
    if words.is_empty() {
        return Ok(PARTS.iter().map(|(_, part)| *part).collect());
    }
    words.iter().map(named).collect()
}

/// Measures and prints rows.
fn measure(words: &[String]) -> Result<()> {
    let parts = parts(words)?;
    let mut rows = Vec::new();
    if parts.iter().any(|part| matches!(part, Part::Routing)) {
        rows.extend(routing::measure()?);
    }
    if parts.iter().any(|part| !matches!(part, Part::Routing)) {
        rows.extend(measure_proxies(&parts)?);
    }
    println!("{}", serde_json::to_string_pretty(&rows).context("writing rows")?);
    Ok(())
}

fn measure_proxies(parts: &[Part]) -> Result<Vec<Row>> {
    let Some(weir) = std::env::var_os(WEIR).map(PathBuf::from) else {
        bail!("{WEIR} does not name the executable to measure; `cargo xtask bench ingress` sets it")
    };
    let endpoints = changes::ENDPOINTS.map(|address| address.parse::<Ipv4Addr>().expect("an address"));
    let addresses: BTreeSet<Ipv4Addr> = [BACKEND].into_iter().chain(endpoints).collect();
    tidy::become_child(&addresses)?;
    raise_file_limit()?;
    let cores = Cores::choose()?;
    // Whatever is started from here on, threads and processes, is beside the load.
    process::pin(cores.load)?;
    let directory = tempfile::tempdir().context("making a directory for files of proxies")?;
    let mut rows = Vec::new();
    if parts.iter().any(|part| matches!(part, Part::Churn)) {
        rows.extend(changes::measure(&weir, cores, &directory.path().join("churn"))?);
    }
    if parts.iter().all(|part| matches!(part, Part::Churn | Part::Routing)) {
        return Ok(rows);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        backend::bind(BACKEND).context("binding the backend")?
    };
    let backend = listener.local_addr()?;
    let certificate = Certificate::make(directory.path())?;
    let cluster = Cluster::start(&directory.path().join("cluster"), backend, &certificate)?;
    let bench = Bench { weir, directory: directory.path().to_owned(), cores, backend, certificate, cluster };

    runtime.block_on(async {
        tokio::spawn(backend::serve(listener));
        let loads =
            parts.iter().filter_map(|part| if let Part::Rounds(loads) = part { Some(*loads) } else { None });
        let loads: Vec<&[Load]> = loads.collect();
        if !loads.is_empty() {
            rows.extend(rounds::measure(&bench, &loads.concat()).await?);
        }
        if parts.iter().any(|part| matches!(part, Part::Scale)) {
            rows.extend(scale::measure(&bench).await?);
        }
        Ok(rows)
    })
}

fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = FILES.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).context("raising the limit on open files")
}
