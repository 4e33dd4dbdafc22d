//! A figure, in the shape that `cargo xtask bench` reads.

use serde::Serialize;

/// One figure, beside its peer's of the same run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    /// The median.
    value: f64,
    unit: &'static str,
    min: f64,
    max: f64,
    runs: usize,
    peer: Option<String>,
    /// For times by test runs, raw over the peer's, while `value` is the difference; for the rest, `value` over the peer's.
    ratio: Option<f64>,
    /// What the figure is to be, in words, and whether it is.
    goal: Option<String>,
    met: Option<bool>,
}

/// A bound that a figure is to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// In the figure's unit.
    AtMost(f64),
    AtLeast(f64),
    /// Times the peer's.
    TimesPeer(f64),
}

/// What a test run's figures are compared with.
const EMPTY: &str = "empty program";

impl Row {
    /// Samples of one figure.
    pub(crate) fn of(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let (value, min, max) = spread(samples.iter().copied());
        Self {
            name: name.into(),
            value,
            unit,
            min,
            max,
            runs: samples.len(),
            peer: None,
            ratio: None,
            goal: None,
            met: None,
        }
    }

    /// The same, where what ninety-nine of a hundred samples stay below is the figure.
    pub(crate) fn high(name: impl Into<String>, unit: &'static str, samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { value: sorted[(sorted.len() * 99).div_ceil(100) - 1], ..Self::of(name, unit, samples) }
    }

    /// What programs cost beyond the empty one, from pairs of (raw, empty) times that were taken side by side.
    pub(crate) fn net(name: &str, pairs: &[(f64, f64)]) -> Self {
        let net: Vec<f64> = pairs.iter().map(|(raw, empty)| raw - empty).collect();
        let (raw, ..) = spread(pairs.iter().map(|pair| pair.0));
        let (empty, ..) = spread(pairs.iter().map(|pair| pair.1));
        let mut row = Self::of(format!("{name} (net of the empty program)"), "ns", &net);
        (row.peer, row.ratio) = (Some(EMPTY.into()), Some(raw / empty));
        row
    }

    /// What is compared sample by sample with a peer's, from pairs (own, peer's) that were taken side by side: the ratio is
    /// the median pair's.
    pub(crate) fn pairs(
        name: impl Into<String>,
        unit: &'static str,
        pairs: &[(f64, f64)],
        peer: &str,
    ) -> Self {
        let own: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        let (theirs, ..) = spread(pairs.iter().map(|pair| pair.1));
        let (ratio, ..) = spread(pairs.iter().map(|pair| pair.0 / pair.1));
        let peer = format!("{peer}, {theirs:.2} {unit}");
        Self { peer: Some(peer), ratio: Some(ratio), ..Self::of(name, unit, &own) }
    }

    /// A count that is the same in every run.
    pub(crate) fn count(name: String, unit: &'static str, value: u32, empty: u32) -> Self {
        let mut row = Self::of(name, unit, &[f64::from(value)]);
        (row.peer, row.ratio) = (Some(EMPTY.into()), Some(f64::from(value) / f64::from(empty)));
        row
    }

    /// Sets the figure beside another.
    pub(crate) fn beside(mut self, peer: &Self) -> Self {
        self.peer = Some(peer.name.clone());
        self.ratio = Some(self.value / peer.value);
        self
    }

    /// Measures the figure by its goal.
    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        let unit = self.unit;
        let (words, met) = match goal {
            Goal::AtMost(bound) => (format!("≤ {bound} {unit}"), self.value <= bound),
            Goal::AtLeast(bound) => (format!("≥ {bound} {unit}"), self.value >= bound),
            Goal::TimesPeer(times) => {
                (format!("≥ {times:.1} × peer"), self.ratio.expect("it stands beside a peer") >= times)
            }
        };
        (self.goal, self.met) = (Some(words), Some(met));
        self
    }
}

/// Median, least and greatest.
fn spread(samples: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[0], samples[samples.len() - 1])
}
