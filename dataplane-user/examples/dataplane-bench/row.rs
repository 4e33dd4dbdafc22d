//! Rows whose peer is the empty program.

use weir_tests::Row;

/// What a test run's figures are compared with.
const EMPTY: &str = "empty program";

/// What programs cost beyond the empty one, from pairs of (raw, empty) times that were taken side by side. The ratio is
/// that of the raw times, while the value is their difference.
pub(crate) fn net(name: &str, pairs: &[(f64, f64)]) -> Row {
    let difference: Vec<f64> = pairs.iter().map(|(raw, empty)| raw - empty).collect();
    let median = |of: fn(&(f64, f64)) -> f64| {
        let samples: Vec<f64> = pairs.iter().map(of).collect();
        Row::of("", "", &samples).value
    };
    let ratio = median(|pair| pair.0) / median(|pair| pair.1);
    Row {
        peer: Some(EMPTY.into()),
        ratio: Some(ratio),
        ..Row::of(format!("{name} (net of the empty program)"), "ns", &difference)
    }
}

/// A count that is the same in every run.
pub(crate) fn count(name: String, unit: &str, value: u32, empty: u32) -> Row {
    Row {
        peer: Some(EMPTY.into()),
        ratio: Some(f64::from(value) / f64::from(empty)),
        ..Row::of(name, unit, &[f64::from(value)])
    }
}
