//! What is measured of every proxy, what it is to be, and the samples of a bench.

use std::collections::BTreeMap;

use weir_tests::{Goal, Row, percentile};

use crate::{open_loop::RATE, proxies::Kind};

/// What Weir's goals are taken from.
const YARDSTICK: Kind = Kind::Nginx;
/// A proxy that uses less of its core in a closed loop waits for the load.
const SATURATED: f64 = 0.95;

/// One measured thing; the goal is Weir's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    name: &'static str,
    unit: &'static str,
    goal: Option<Goal>,
}

const fn figure(name: &'static str, unit: &'static str, goal: Option<Goal>) -> Figure {
    Figure { name, unit, goal }
}

pub(crate) const CPU_SMALL: Figure =
    figure("CPU per request, HTTP/1.1 keepalive, 128 B", "µs", Some(Goal::AtMostTimesPeer(1.0)));
pub(crate) const RATE_SMALL: Figure =
    figure("requests, HTTP/1.1 keepalive, 64 connections, 128 B", "1/s", Some(Goal::AtLeastTimesPeer(1.0)));
pub(crate) const CPU_LARGE: Figure =
    figure("CPU per request, HTTP/1.1 keepalive, 16 KiB", "µs", Some(Goal::AtMostTimesPeer(1.0)));
pub(crate) const RATE_LARGE: Figure =
    figure("requests, HTTP/1.1 keepalive, 64 connections, 16 KiB", "1/s", None);
pub(crate) const CPU_TLS: Figure =
    figure("CPU per request, TLS keepalive, 128 B", "µs", Some(Goal::AtMostTimesPeer(1.0)));
pub(crate) const CPU_CONNECTION: Figure =
    figure("CPU per new TLS connection, P-256, with a request", "µs", Some(Goal::AtMostTimesPeer(0.75)));
pub(crate) const RATE_HTTP2: Figure =
    figure("requests, HTTP/2 over TLS, 16 × 32 streams, 128 B", "1/s", Some(Goal::AtLeastTimesPeer(1.0)));
pub(crate) const CPU_HTTP2: Figure = figure("CPU per request, HTTP/2 over TLS, 128 B", "µs", None);
const _: () = assert!(RATE == 5_800, "which these names say");
const LATENCY_P50: Figure = figure("latency at 5,800 requests/s, p50 of 50 ms", "µs", None);
const LATENCY_P99: Figure =
    figure("latency at 5,800 requests/s, p99 of 50 ms", "µs", Some(Goal::AtMostTimesPeer(1.0)));
/// All windows of a round are as one, with all that the machine did meanwhile.
const ROUND_P99: Figure = figure("latency at 5,800 requests/s, p99 of a round", "µs", None);
const ROUND_P999: Figure = figure("latency at 5,800 requests/s, p99.9 of a round", "µs", None);
pub(crate) const MEMORY: Figure = figure("memory after the loads (PSS)", "MB", Some(Goal::AtMost(25.0)));
pub(crate) const START: Figure = figure("start to first 200", "ms", Some(Goal::AtMost(25.0)));

/// Samples of figures, one of each proxy for each round, or for each window of an open loop.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    figures: Vec<(Figure, BTreeMap<Kind, Vec<Sample>>)>,
    /// Microseconds of requests in the round's open loop so far.
    latencies: BTreeMap<Kind, Vec<f64>>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    value: f64,
    /// What part of its core the proxy used, where it is to use all.
    busy: Option<f64>,
}

impl Samples {
    pub(crate) fn add(&mut self, figure: Figure, kind: Kind, value: f64) {
        self.push(figure, kind, Sample { value, busy: None });
    }

    /// A figure of a closed loop, with what part of its core the proxy used.
    pub(crate) fn add_rate(&mut self, figure: Figure, kind: Kind, value: f64, busy: f64) {
        self.push(figure, kind, Sample { value, busy: Some(busy) });
    }

    /// Microseconds of the requests in a window of an open loop.
    pub(crate) fn add_latencies(&mut self, kind: Kind, microseconds: &[f64]) {
        self.add(LATENCY_P50, kind, percentile(microseconds, 50.0));
        self.add(LATENCY_P99, kind, percentile(microseconds, 99.0));
        self.latencies.entry(kind).or_default().extend(microseconds);
    }

    /// All proxies have taken all loads.
    pub(crate) fn end_round(&mut self) {
        for (kind, microseconds) in std::mem::take(&mut self.latencies) {
            self.add(ROUND_P99, kind, percentile(&microseconds, 99.0));
            self.add(ROUND_P999, kind, percentile(&microseconds, 99.9));
        }
    }

    fn push(&mut self, figure: Figure, kind: Kind, sample: Sample) {
        let known = self.figures.iter().position(|(known, _)| known.name == figure.name);
        let at = known.unwrap_or_else(|| {
            self.figures.push((figure, BTreeMap::new()));
            self.figures.len() - 1
        });
        self.figures[at].1.entry(kind).or_default().push(sample);
    }

    /// Figure by figure, Weir first, each beside the yardstick's samples of the same rounds.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let of_figure = |(figure, by_kind): &(Figure, BTreeMap<Kind, Vec<Sample>>)| {
            let rows =
                by_kind.iter().map(|(kind, samples)| row(*figure, *kind, samples, by_kind.get(&YARDSTICK)));
            rows.collect::<Vec<_>>()
        };
        self.figures.iter().flat_map(of_figure).collect()
    }
}

fn row(figure: Figure, kind: Kind, samples: &[Sample], yardstick: Option<&Vec<Sample>>) -> Row {
    let Figure { name, unit, goal } = figure;
    let name = format!("{name}: {}", kind.name());
    let mut row = match yardstick {
        Some(theirs) if kind != YARDSTICK => {
            let pairs = samples.iter().zip(theirs).map(|(own, theirs)| (own.value, theirs.value));
            Row::pairs(name, unit, &pairs.collect::<Vec<_>>(), YARDSTICK.name())
        }
        _ => Row::of(name, unit, &samples.iter().map(|sample| sample.value).collect::<Vec<_>>()),
    };
    let busy: Vec<f64> = samples.iter().filter_map(|sample| sample.busy).collect();
    if !busy.is_empty() {
        let busy = Row::of("", "", &busy).value;
        let percent = busy * 100.0;
        row.note = (busy < SATURATED)
            .then(|| format!("bounded by the load's core: {percent:.0} % of the proxy's used"));
    }
    match goal {
        Some(goal) if kind == Kind::Weir => row.goal(goal),
        _ => row,
    }
}
