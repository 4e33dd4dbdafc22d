//! Ages: `5m10s`, `3d4h`.

use jiff::Timestamp;
use serde_json::Value;

use crate::object;

/// The object's age.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    Value::from(since(object, &["metadata", "creationTimestamp"], now))
}

/// How long ago the time at `path` was; `<unknown>` when there is none.
pub(super) fn since(object: &Value, path: &[&str], now: Timestamp) -> String {
    match object::str_at(object, path).parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// A duration with the two units that matter, as upstream's `duration.HumanDuration`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, 'd', hours % 24, 'h'),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => two(years, 'y', days % 365, 'd'),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_two_units_at_most() {
        let (minute, hour, day, year) = (60, 3600, 86_400, 365 * 86_400);
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (2 * minute, "2m"),
            (2 * minute + 1, "2m1s"),
            (10 * minute + 5, "10m"),
            (2 * hour + 59 * minute, "179m"),
            (3 * hour, "3h"),
            (3 * hour + 5 * minute, "3h5m"),
            (9 * hour + 5 * minute, "9h"),
            (47 * hour, "47h"),
            (2 * day, "2d"),
            (2 * day + 3 * hour, "2d3h"),
            (8 * day + hour, "8d"),
            (year + day, "366d"),
            (2 * year, "2y"),
            (3 * year + 5 * day, "3y5d"),
            (9 * year + 5 * day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
