//! A figure, as benches write it and `cargo xtask bench` prints it.

use serde::{Deserialize, Serialize};

/// One figure, beside its peer's of the same run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// What it is counted in.
    pub unit: String,
    /// The least sample.
    pub min: f64,
    /// The greatest sample.
    pub max: f64,
    /// How many samples there are.
    pub runs: usize,
    /// What it is compared with, if anything.
    pub peer: Option<String>,
    /// `value` over the peer's, if not said otherwise where the row is made.
    pub ratio: Option<f64>,
    /// What the figure is to be, in words.
    pub goal: Option<String>,
    /// Whether it is.
    pub met: Option<bool>,
    /// What else a reader must know to judge it.
    pub note: Option<String>,
}

/// A bound that a figure is to keep.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// In the figure's unit.
    AtMost(f64),
    /// In the figure's unit.
    AtLeast(f64),
    /// Times the peer's.
    AtMostTimesPeer(f64),
    /// Times the peer's.
    AtLeastTimesPeer(f64),
}

impl Row {
    /// Samples of one figure.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(name: impl Into<String>, unit: &str, samples: &[f64]) -> Self {
        let (value, min, max) = spread(samples.iter().copied());
        Self {
            name: name.into(),
            value,
            unit: unit.to_owned(),
            min,
            max,
            runs: samples.len(),
            peer: None,
            ratio: None,
            goal: None,
            met: None,
            note: None,
        }
    }

    /// The same, where what ninety-nine of a hundred samples stay below is the figure.
    ///
    /// # Panics
    /// If there are none.
    pub fn high(name: impl Into<String>, unit: &str, samples: &[f64]) -> Self {
        Self { value: percentile(samples, 99.0), ..Self::of(name, unit, samples) }
    }

    /// What is compared sample by sample with a peer's, from pairs (own, peer's) that were taken side by side: the ratio is
    /// the median pair's.
    ///
    /// # Panics
    /// If there are none.
    pub fn pairs(name: impl Into<String>, unit: &str, pairs: &[(f64, f64)], peer: &str) -> Self {
        let own: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        let (theirs, ..) = spread(pairs.iter().map(|pair| pair.1));
        let (ratio, ..) = spread(pairs.iter().map(|pair| pair.0 / pair.1));
        let peer = format!("{peer}, {theirs:.2} {unit}");
        Self { peer: Some(peer), ratio: Some(ratio), ..Self::of(name, unit, &own) }
    }

    /// Sets the figure beside another.
    #[must_use]
    pub fn beside(mut self, peer: &Self) -> Self {
        self.peer = Some(peer.name.clone());
        self.ratio = Some(self.value / peer.value);
        self
    }

    /// Measures the figure by its goal.
    ///
    /// # Panics
    /// If the goal is a peer's figure and there is no peer.
    #[must_use]
    pub fn goal(mut self, goal: Goal) -> Self {
        let unit = &self.unit;
        let ratio = || self.ratio.expect("it stands beside a peer");
        let (words, met) = match goal {
            Goal::AtMost(bound) => (format!("≤ {bound} {unit}"), self.value <= bound),
            Goal::AtLeast(bound) => (format!("≥ {bound} {unit}"), self.value >= bound),
            Goal::AtMostTimesPeer(times) => (format!("≤ {times} × peer"), ratio() <= times),
            Goal::AtLeastTimesPeer(times) => (format!("≥ {times} × peer"), ratio() >= times),
        };
        (self.goal, self.met) = (Some(words), Some(met));
        self
    }
}

/// What so many of a hundred samples stay below: the nearest rank, never between two.
///
/// # Panics
/// If there are none.
pub fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Median, least and greatest.
fn spread(samples: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut samples: Vec<f64> = samples.collect();
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[0], samples[samples.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_kept_up_to_their_bound() {
        let row = || Row::pairs("figure", "ms", &[(2.0, 4.0), (3.0, 3.0), (1.0, 8.0)], "peer");
        assert_eq!((row().value, row().min, row().max, row().ratio), (2.0, 1.0, 3.0, Some(0.5)));
        for (goal, words, met) in [
            (Goal::AtMost(2.0), "≤ 2 ms", true),
            (Goal::AtMost(1.9), "≤ 1.9 ms", false),
            (Goal::AtLeast(2.0), "≥ 2 ms", true),
            (Goal::AtLeast(2.1), "≥ 2.1 ms", false),
            (Goal::AtMostTimesPeer(0.5), "≤ 0.5 × peer", true),
            (Goal::AtMostTimesPeer(0.4), "≤ 0.4 × peer", false),
            (Goal::AtLeastTimesPeer(0.5), "≥ 0.5 × peer", true),
            (Goal::AtLeastTimesPeer(1.0), "≥ 1 × peer", false),
        ] {
            let row = row().goal(goal);
            assert_eq!((row.goal.as_deref(), row.met), (Some(words), Some(met)));
        }
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "a percentile is one of the samples, not something close to one")]
    fn percentiles_are_ranks() {
        let samples: Vec<f64> = (1..=1_000).rev().map(f64::from).collect();
        for (percent, expected) in [(0.0, 1.0), (50.0, 500.0), (99.0, 990.0), (99.9, 999.0), (100.0, 1_000.0)]
        {
            assert_eq!(percentile(&samples, percent), expected, "{percent}");
        }
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
        assert_eq!(Row::high("figure", "ms", &samples[..200]).value, 998.0);
    }
}
