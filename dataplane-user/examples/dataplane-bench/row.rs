//! A figure, in the shape that `cargo xtask bench` reads.

use serde::Serialize;

/// One figure, beside its peer's of the same run.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    /// The median.
    value: f64,
    unit: &'static str,
    min: f64,
    max: f64,
    runs: usize,
    peer: Option<&'static str>,
    /// For times, raw over the peer's, while `value` is the difference; for counts, `value` over the peer's.
    ratio: Option<f64>,
}

/// What every figure is compared with.
const PEER: &str = "empty program";

impl Row {
    /// What programs cost beyond the empty one, from pairs of (raw, empty) times that were taken side by side.
    pub(crate) fn net(name: &str, pairs: &[(f64, f64)]) -> Self {
        let (median, min, max) = spread(pairs.iter().map(|(raw, empty)| raw - empty));
        let (raw, ..) = spread(pairs.iter().map(|pair| pair.0));
        let (empty, ..) = spread(pairs.iter().map(|pair| pair.1));
        Self {
            name: format!("{name} (net of the empty program)"),
            value: median,
            unit: "ns",
            min,
            max,
            runs: pairs.len(),
            peer: Some(PEER),
            ratio: Some(raw / empty),
        }
    }

    /// A count that is the same in every run.
    pub(crate) fn count(name: String, unit: &'static str, value: u32, empty: u32) -> Self {
        let value = f64::from(value);
        let ratio = Some(value / f64::from(empty));
        Self { name, value, unit, min: value, max: value, runs: 1, peer: Some(PEER), ratio }
    }
}

/// Median, least and greatest.
fn spread(samples: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[0], samples[samples.len() - 1])
}
