//! Kubernetes quantities ("250m", "64Mi", "1e3") as whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Parts of one unit that are kept while parsing: what suffix `n` can say.
const NANO: i128 = 1_000_000_000;

/// The quantity in whole units, rounded up: bytes, or a count.
pub(crate) fn units(quantity: &Quantity) -> i64 {
    scaled(quantity, 1)
}

/// The quantity in thousandths, rounded up: milli-CPUs.
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    scaled(quantity, 1000)
}

/// Quantities were validated by the API server. One that does not parse all the same counts as zero, so
/// that a single bad object cannot stop scheduling.
fn scaled(quantity: &Quantity, parts: i128) -> i64 {
    let nano = parse_nano(&quantity.0).unwrap_or(0);
    let value = nano.saturating_mul(parts);
    // Towards positive infinity, as upstream's `Value()` and `MilliValue()`.
    let rounded = value.div_euclid(NANO) + i128::from(value.rem_euclid(NANO) != 0);
    i64::try_from(rounded).unwrap_or(if rounded > 0 { i64::MAX } else { i64::MIN })
}

fn parse_nano(text: &str) -> Option<i128> {
    let text = text.trim();
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator) = suffix_factor(suffix)?;

    let (sign, digits) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut nano: i128 = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()?.checked_mul(NANO)? };
    let mut place = NANO;
    for digit in fraction.chars() {
        place /= 10;
        nano += i128::from(digit.to_digit(10)?) * place;
    }
    let product = nano.checked_mul(numerator)?;
    let rounded = product / denominator + i128::from(product % denominator != 0);
    Some(sign * rounded)
}

fn suffix_factor(suffix: &str) -> Option<(i128, i128)> {
    let factor = match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs().min(18))?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    };
    Some(factor)
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
