//! Kubernetes quantities (`500m`, `64Mi`, `2e3`) as numbers.
//!
//! The kubelet needs them as plain numbers in three places: cgroup bounds, `resourceFieldRef` and tmpfs sizes. Called
//! from [`crate::pods`] and [`crate::env`].

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths: exact for every quantity the API accepts here (CPU is counted in `m`).
/// None if the text is no quantity; the apiserver lets none through, so callers may treat that as absent.
pub(crate) fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (factor, divisor): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
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
        _ => exponent(suffix)?,
    };
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // Nine decimals are the finest quantity there is; more would be rounded up by the API anyway.
    let fraction = &fraction[..fraction.len().min(9)];
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let scale = 10_i128.pow(fraction.len() as u32);
    let parts: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let numerator = whole.checked_mul(scale)?.checked_add(parts)?.checked_mul(factor)?.checked_mul(1000)?;
    let value =
        numerator.div_euclid(scale * divisor) + i128::from(numerator.rem_euclid(scale * divisor) != 0);
    Some(if negative { -value } else { value })
}

/// The value in whole units, rounded up as Kubernetes does, at most `i64::MAX`.
pub(crate) fn units(quantity: &Quantity) -> Option<i64> {
    let milli = milli(quantity)?;
    let units = milli.div_euclid(1000) + i128::from(milli.rem_euclid(1000) != 0);
    Some(units.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
}

/// `e3`, `E-2`: the decimal exponent form.
fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let factor = 10_i128.pow(power.unsigned_abs().min(18));
    Some(if power < 0 { (1, factor) } else { (factor, 1) })
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
