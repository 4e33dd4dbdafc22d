//! Amounts of resources: `500m`, `1Gi`, `2e3`.
//!
//! Upstream's `resource.Quantity`: parsed into billionths, printed canonically, so that two ways to write one
//! amount are stored as one and `kubectl diff` sees no difference where there is none.

use std::{cmp::Ordering, fmt};

/// Billionths in one.
const NANO: i128 = 1_000_000_000;

/// The largest amount, in whole units; larger ones are cut down to it, as upstream does.
const MAX_UNITS: i128 = i64::MAX as i128;

/// Upstream's message for what is no quantity at all.
const PATTERN: &str =
    r"quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not look like one.
    #[error("{PATTERN}")]
    Format,
    /// Its suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes that an amount was written with, and is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalExponent,
    BinarySi,
    DecimalSi,
}

/// An amount.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

impl Quantity {
    /// Parses a quantity; amounts finer than a billionth are rounded up.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Format);
        }
        let (format, scale) = parse_suffix(suffix)?;
        let nano = match scale {
            Scale::Decimal(exponent) => decimal(whole, fraction, exponent),
            Scale::Binary(shift) => binary(whole, fraction, shift),
        };
        let nano = nano.min(MAX_UNITS * NANO);
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }

    /// Whole units, rounded up.
    pub fn units(self) -> i64 {
        self.rounded_up(NANO) as i64
    }

    /// Thousandths, rounded up: what CPU is counted in.
    pub fn milli(self) -> i128 {
        self.rounded_up(NANO / 1000)
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// Away from zero, as upstream rounds.
    fn rounded_up(self, unit: i128) -> i128 {
        let quotient = self.nano / unit;
        if self.nano % unit == 0 { quotient } else { quotient + self.nano.signum() }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        // Small binary amounts are printed decimally, which avoids rounding.
        let small = self.nano.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if !small => {
                let (mut units, mut shift) = (self.rounded_up(NANO), 0);
                while units % 1024 == 0 && shift < BINARY.len() {
                    units /= 1024;
                    shift += 1;
                }
                let suffix = shift.checked_sub(1).map_or("", |index| BINARY[index]);
                write!(f, "{units}{suffix}")
            }
            Format::DecimalExponent => match self.decimal() {
                (number, 0) => write!(f, "{number}"),
                (number, exponent) => write!(f, "{number}e{exponent}"),
            },
            Format::BinarySi | Format::DecimalSi => {
                let (number, exponent) = self.decimal();
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(suffix, _)| suffix);
                write!(f, "{number}{suffix}")
            }
        }
    }
}

impl Quantity {
    /// The shortest number with an exponent that is a multiple of three.
    fn decimal(self) -> (i128, i32) {
        let (mut number, mut exponent) = (self.nano, -9);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        (number, exponent)
    }
}

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

enum Scale {
    Decimal(i32),
    Binary(usize),
}

fn parse_suffix(suffix: &str) -> Result<(Format, Scale), QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::DecimalSi, Scale::Decimal(*exponent)));
    }
    if let Some(index) = BINARY.iter().position(|name| *name == suffix) {
        return Ok((Format::BinarySi, Scale::Binary(10 * (index + 1))));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
        let exponent = exponent.parse().map_err(|_| QuantityError::Suffix)?;
        return Ok((Format::DecimalExponent, Scale::Decimal(exponent)));
    }
    let known = |c: char| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit();
    Err(if suffix.chars().all(known) { QuantityError::Suffix } else { QuantityError::Format })
}

/// Digits beyond this many places are only looked at for rounding; 2^63 units have 19.
const DIGITS_MAX: usize = 36;

/// `whole.fraction × 10^exponent` in billionths, rounded up, capped.
fn decimal(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let digits: String = format!("{whole}{fraction}");
    // Where the decimal point lies within the digits once the value counts billionths.
    let point = whole.len() as i64 + i64::from(exponent) + 9;
    let significant = digits.trim_start_matches('0');
    let point = point - (digits.len() - significant.len()) as i64;
    if significant.is_empty() {
        return 0;
    }
    if point > DIGITS_MAX as i64 {
        return MAX_UNITS * NANO;
    }
    let point = usize::try_from(point).unwrap_or(0);
    let below_one = significant.len() as i64 > point as i64;
    let (kept, rest) = if below_one { significant.split_at(point) } else { (significant, "") };
    let mut value: i128 = if kept.is_empty() { 0 } else { kept.parse().unwrap_or(MAX_UNITS * NANO) };
    for _ in kept.len()..point {
        value = value.saturating_mul(10);
    }
    if rest.bytes().any(|digit| digit != b'0') { value.saturating_add(1) } else { value }
}

/// `whole.fraction × 2^shift` in billionths, rounded up, capped.
fn binary(whole: &str, fraction: &str, shift: usize) -> i128 {
    let multiplier = 1i128 << shift;
    let base = decimal(whole, "", 0).saturating_mul(multiplier);
    // Eighteen places of the fraction are exact enough: one unit of Ei is 2^60.
    let places = &fraction[..fraction.len().min(18)];
    let numerator: i128 = places.parse().unwrap_or(0);
    let denominator = 10i128.pow(places.len() as u32);
    let scaled = numerator * multiplier;
    let whole_part = (scaled / denominator) * NANO;
    let remainder = (scaled % denominator) * NANO;
    let fraction_part = remainder / denominator + i128::from(remainder % denominator != 0);
    base.saturating_add(whole_part).saturating_add(fraction_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_canonically() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("128Mi", "128Mi"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("1e2", "100"),
            ("2M", "2M"),
            ("-1", "-1"),
            ("+3", "3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("100000000000000000000000", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("000123", "123"),
        ] {
            assert_eq!(Quantity::parse(text).expect(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in ["", "-", ".", "1.2.3", "abc", "1 Gi", "one"] {
            assert_eq!(Quantity::parse(text), Err(QuantityError::Format), "{text}");
        }
        for text in ["1ki", "1Kii", "1mm", "1e"] {
            assert_eq!(Quantity::parse(text), Err(QuantityError::Suffix), "{text}");
        }
    }

    #[test]
    fn compares_by_amount() {
        let parse = |text| Quantity::parse(text).expect(text);
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1000m"), parse("1"));
        assert!(parse("-1").is_negative() && !parse("0").is_negative());
        assert_eq!((parse("1.1").units(), parse("0.0001").milli()), (2, 1));
        assert!(parse("2k").is_whole() && !parse("1m").is_whole());
    }
}
