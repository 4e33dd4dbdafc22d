//! The query of `/containerLogs`, as the apiserver passes it on from `kubectl logs`.

use std::time::Duration;

use jiff::Timestamp;

use crate::logs::LogOptions;

/// Parses the query; the error names the parameter.
pub(super) fn log_options(query: &str) -> Result<LogOptions, String> {
    let mut options = LogOptions::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        let number = || value.parse::<u64>().map_err(|_| format!("{key}={value} is no number"));
        match key {
            "follow" => options.follow = flag(key, &value)?,
            "previous" => options.previous = flag(key, &value)?,
            "timestamps" => options.timestamps = flag(key, &value)?,
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?),
            "sinceSeconds" => {
                options.since = Timestamp::now().checked_sub(Duration::from_secs(number()?)).ok();
            }
            "sinceTime" => {
                let time = value.parse().map_err(|_| format!("sinceTime={value} is no RFC 3339 time"))?;
                options.since = Some(time);
            }
            // The apiserver has checked the others.
            _ => {}
        }
    }
    Ok(options)
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key}={value} is neither true nor false")),
    }
}

/// Undoes `%3A` and `+`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, hex.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_read() {
        let options = log_options(
            "follow=true&tailLines=10&timestamps=true&previous=false&limitBytes=5&sinceTime=2026-11-23T21%3A00%3A00Z",
        )
        .unwrap();
        assert_eq!(
            options,
            LogOptions {
                follow: true,
                previous: false,
                timestamps: true,
                tail_lines: Some(10),
                since: Some("2026-11-23T21:00:00Z".parse().unwrap()),
                limit_bytes: Some(5),
            }
        );
        assert_eq!(log_options("tailLines=x").unwrap_err(), "tailLines=x is no number");
        assert!(log_options("sinceTime=yesterday").unwrap_err().contains("RFC 3339"));
    }
}
