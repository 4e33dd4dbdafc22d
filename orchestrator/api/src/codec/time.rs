//! How Kubernetes writes times.

use jiff::Timestamp;

/// `2026-01-02T03:04:05Z`: a `Time`, as in `metadata.creationTimestamp`.
pub fn seconds_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-01-02T03:04:05.000006Z`: a `MicroTime`, as in leases and events.
pub fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_digits_that_clients_expect() {
        let time = "2026-01-02T03:04:05.000006789Z".parse().expect("a time");
        assert_eq!(seconds_time(time), "2026-01-02T03:04:05Z");
        assert_eq!(micro_time(time), "2026-01-02T03:04:05.000006Z");
    }
}
