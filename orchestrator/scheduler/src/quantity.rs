//! Kubernetes quantities ("250m", "64Mi", "1e3") as whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use weir_api::quantity::Quantity as Amount;

/// The quantity in whole units, rounded up: bytes, or a count.
pub(crate) fn units(quantity: &Quantity) -> i64 {
    amount(quantity).map_or(0, Amount::units)
}

/// The quantity in thousandths, rounded up: milli-CPUs.
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    let milli = amount(quantity).map_or(0, Amount::milli);
    i64::try_from(milli).unwrap_or(if milli > 0 { i64::MAX } else { i64::MIN })
}

/// Quantities were validated by the API server. One that does not parse all the same counts as zero, so
/// that a single bad object cannot stop scheduling.
fn amount(quantity: &Quantity) -> Option<Amount> {
    Amount::parse(quantity.0.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_manifests_use() {
        let table = [
            ("1", 1, 1000),
            ("250m", 1, 250),
            ("0.1", 1, 100),
            ("1.5", 2, 1500),
            (".5", 1, 500),
            ("2k", 2000, 2_000_000),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("1.5Gi", 3 << 29, (3 << 29) * 1000),
            ("1e3", 1000, 1_000_000),
            ("5E-1", 1, 500),
            ("100n", 1, 1),
            ("-2", -2, -2000),
            ("0", 0, 0),
        ];
        for (text, whole, thousandths) in table {
            let quantity = Quantity(text.to_owned());
            assert_eq!((units(&quantity), milli(&quantity)), (whole, thousandths), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_counts_as_zero() {
        for text in ["", "x", "1Q", "1.2.3", "Mi", "1e", "--1"] {
            assert_eq!(units(&Quantity(text.to_owned())), 0, "{text}");
        }
    }
}
