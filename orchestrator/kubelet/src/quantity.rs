//! Kubernetes quantities (`500m`, `64Mi`, `2e3`) as numbers.
//!
//! The kubelet needs them as plain numbers in three places: cgroup bounds, `resourceFieldRef` and tmpfs sizes. Called
//! from [`crate::pods`] and [`crate::env`].

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use weir_api::quantity::Quantity as Amount;

/// The value in thousandths, rounded up: exact for every quantity the API accepts here (CPU is counted in `m`).
/// None if the text is no quantity; the apiserver lets none through, so callers may treat that as absent.
pub(crate) fn milli(quantity: &Quantity) -> Option<i128> {
    amount(quantity).map(Amount::milli)
}

/// The value in whole units, rounded up as Kubernetes does, at most `i64::MAX`.
pub(crate) fn units(quantity: &Quantity) -> Option<i64> {
    amount(quantity).map(Amount::units)
}

fn amount(quantity: &Quantity) -> Option<Amount> {
    Amount::parse(quantity.0.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_the_api_accepts() {
        let cases: &[(&str, Option<i128>)] = &[
            ("1", Some(1000)),
            ("500m", Some(500)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("64Mi", Some(67_108_864_000)),
            ("2e3", Some(2_000_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("100u", Some(1)),
            ("-1", Some(-1000)),
            (".5", Some(500)),
            ("1x", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(milli(&Quantity((*text).to_owned())), *expected, "{text}");
        }
    }

    #[test]
    fn units_round_up() {
        assert_eq!(units(&Quantity("1500m".to_owned())), Some(2));
        assert_eq!(units(&Quantity("64Mi".to_owned())), Some(67_108_864));
    }
}
