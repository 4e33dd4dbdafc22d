//! Annotations about active checks of endpoints: `health-check` and `health-check-*`.

use std::num::NonZeroU16;
use std::time::Duration;

use super::reader::Reader;
use super::{path, vhost};
use crate::compile::{CheckKind, HealthCheck};
use crate::upstream::ProxyProtocol;

/// Between two checks of an endpoint.
const INTERVAL: Duration = Duration::from_secs(5);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_hours(1);
/// For all of one.
const TIMEOUT: Duration = Duration::from_secs(1);
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
const MAX_TIMEOUT: Duration = Duration::from_mins(1);
/// As in `HAProxy`.
const RISE: u32 = 2;
const FALL: u32 = 3;
/// In a row.
const MAX_RESULTS: u32 = 100;
/// A longer path would make a head that few servers take.
const MAX_PATH_BYTES: usize = 4_096;
/// Likewise of the name of a gRPC service, which is the call's message.
const MAX_SERVICE_BYTES: usize = 4_096;

/// Those that say how, and to which checks that is of interest.
const HOW: [(&str, &[Word]); 8] = [
    ("health-check-path", &[Word::Http]),
    ("health-check-grpc-service", &[Word::Grpc]),
    ("health-check-host", &[Word::Http, Word::Grpc]),
    ("health-check-port", ALL),
    ("health-check-interval", ALL),
    ("health-check-timeout", ALL),
    ("health-check-rise", ALL),
    ("health-check-fall", ALL),
];

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Http,
    Grpc,
    Tcp,
}

const ALL: &[Word] = &[Word::Http, Word::Grpc, Word::Tcp];

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// The check that is asked for. `proxy_protocol` is what connections to the endpoints begin with.
pub(super) fn check(r: &mut Reader<'_>, proxy_protocol: Option<ProxyProtocol>) -> Option<HealthCheck> {
    let word = r.read("health-check", "\"http\", \"grpc\", \"tcp\" or \"off\"", |text| match text {
        "off" | "false" | "" => Some(None),
        _ => ALL.iter().copied().find(|word| word.text() == text).map(Some),
    });
    let Some(Some(word)) = word else {
        let is_forgotten = r.text("health-check").is_none();
        for (name, _) in HOW.iter().filter(|_| is_forgotten) {
            if r.text(name).is_some() {
                r.unserved(name, "has no effect without health-check: add health-check: http, grpc or tcp");
            }
        }
        return None;
    };
    let way = r.read("health-check-path", "a path of at most 4096 bytes", |text| {
        path(text).filter(|path| path.len() <= MAX_PATH_BYTES && !path.contains('#'))
    });
    let host = r.read("health-check-host", "a host, maybe with a port", |text| vhost(text).map(|_| text));
    let service = r.read("health-check-grpc-service", "a name of at most 4096 bytes", |text| {
        (text.len() <= MAX_SERVICE_BYTES && !text.contains(char::is_control)).then_some(text)
    });
    let port = r.number("health-check-port", 0..=u32::from(u16::MAX));
    let interval = wait(r, "health-check-interval", "a time from 100ms to 1h", MIN_INTERVAL, MAX_INTERVAL);
    let interval = interval.unwrap_or(INTERVAL);
    let timeout = wait(r, "health-check-timeout", "a time from 10ms to 1m", MIN_TIMEOUT, MAX_TIMEOUT);
    if timeout.is_some_and(|timeout| timeout > interval) {
        r.fault(
            "health-check-timeout",
            "is longer than health-check-interval: it is cut to that; raise the interval, or lower it",
        );
    }
    let rise = r.number("health-check-rise", 1..=MAX_RESULTS).unwrap_or(RISE);
    let fall = r.number("health-check-fall", 1..=MAX_RESULTS).unwrap_or(FALL);
    for (name, _) in HOW.iter().filter(|(_, words)| !words.contains(&word)) {
        if r.text(name).is_some() {
            r.unserved(name, &format!("has no effect with health-check: {}", word.text()));
        }
    }
    let host = host.map(str::to_owned);
    let kind = match word {
        Word::Http => CheckKind::Http { path: way.unwrap_or("/").to_owned(), host },
        Word::Grpc => CheckKind::Grpc { service: service.unwrap_or_default().to_owned(), host },
        Word::Tcp => CheckKind::Tcp,
    };
    Some(HealthCheck {
        kind,
        port: port.and_then(|port| NonZeroU16::new(port as u16)),
        interval,
        timeout: timeout.unwrap_or(TIMEOUT).min(interval),
        rise: rise as u8,
        fall: fall as u8,
        proxy_protocol,
    })
}

/// Seconds, or a number with a unit.
fn wait(r: &mut Reader<'_>, name: &str, range: &str, least: Duration, most: Duration) -> Option<Duration> {
    let expected = format!("{range}: write seconds, such as \"5\", or \"500ms\", \"2s\"");
    r.read(name, &expected, |text| {
        let seconds = text.parse().ok().map(Duration::from_secs);
        let wait = seconds.or_else(|| crate::config::parse_duration(text).ok())?;
        (least..=most).contains(&wait).then_some(wait)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Annotations;
    use super::*;
    use crate::compile::ObjectKey;

    fn read(pairs: &[(&str, &str)]) -> (Option<HealthCheck>, Vec<String>) {
        let pairs = pairs.iter().map(|(name, value)| (format!("weir.dev/{name}"), (*value).to_owned()));
        let read = Annotations::read(&ObjectKey::new("n", "i"), &pairs.collect());
        (read.health.as_deref().cloned(), read.problems.into_iter().map(|(_, text)| text).collect())
    }

    fn fine(pairs: &[(&str, &str)]) -> Option<HealthCheck> {
        let (check, faults) = read(pairs);
        assert_eq!(faults, [""; 0], "{pairs:?}");
        check
    }

    /// The one fault.
    fn fault(pairs: &[(&str, &str)]) -> String {
        let (_, mut faults) = read(pairs);
        assert_eq!(faults.len(), 1, "{pairs:?}: {faults:?}");
        faults.remove(0)
    }

    #[test]
    fn a_check_has_defaults() {
        let expected = HealthCheck {
            kind: CheckKind::Http { path: "/".to_owned(), host: None },
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            proxy_protocol: None,
        };
        assert_eq!(fine(&[("health-check", "http")]), Some(expected.clone()));
        let tcp = HealthCheck { kind: CheckKind::Tcp, ..expected.clone() };
        assert_eq!(fine(&[("health-check", "tcp")]), Some(tcp));
        let kind = CheckKind::Grpc { service: String::new(), host: None };
        assert_eq!(fine(&[("health-check", "grpc")]), Some(HealthCheck { kind, ..expected }));
        for off in ["off", "false", ""] {
            assert_eq!(fine(&[("health-check", off), ("health-check-path", "/up")]), None);
        }
        assert_eq!(fine(&[]), None);
    }

    #[test]
    fn everything_can_be_said() {
        let check = fine(&[
            ("health-check", "http"),
            ("health-check-path", "/up?deep=1"),
            ("health-check-host", "up.example:8080"),
            ("health-check-port", "9090"),
            ("health-check-interval", "500ms"),
            ("health-check-timeout", "200ms"),
            ("health-check-rise", "1"),
            ("health-check-fall", "100"),
            ("proxy-protocol", "v2"),
        ]);
        let kind =
            CheckKind::Http { path: "/up?deep=1".to_owned(), host: Some("up.example:8080".to_owned()) };
        let expected = HealthCheck {
            kind,
            port: NonZeroU16::new(9090),
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(200),
            rise: 1,
            fall: 100,
            proxy_protocol: Some(ProxyProtocol::V2),
        };
        assert_eq!(check, Some(expected));
        let check = fine(&[
            ("health-check", "grpc"),
            ("health-check-grpc-service", "shop.v1.Shop"),
            ("health-check-host", "up.example"),
        ]);
        let kind =
            CheckKind::Grpc { service: "shop.v1.Shop".to_owned(), host: Some("up.example".to_owned()) };
        assert_eq!(check.unwrap().kind, kind);
        let same_port = fine(&[("health-check", "tcp"), ("health-check-port", "0")]).unwrap().port;
        assert_eq!(same_port, None);
    }

    #[test]
    fn a_check_never_lasts_longer_than_its_interval() {
        let timeout = |pairs: &[(&str, &str)]| {
            let pairs = [&[("health-check", "tcp")], pairs].concat();
            read(&pairs).0.unwrap().timeout
        };
        assert_eq!(timeout(&[("health-check-interval", "300ms")]), Duration::from_millis(300));
        let longer = [("health-check-interval", "2s"), ("health-check-timeout", "3s")];
        assert_eq!(timeout(&longer), Duration::from_secs(2));
        let said = fault(&[("health-check", "tcp"), longer[0], longer[1]]);
        assert!(said.contains("weir.dev/health-check-timeout: \"3s\" is longer than"), "{said}");
    }

    #[test]
    fn what_cannot_be_read_is_ignored_and_told() {
        for (name, bad) in [
            ("health-check-path", "up"),
            ("health-check-path", "/a b"),
            ("health-check-path", "/a#b"),
            ("health-check-host", "a/b"),
            ("health-check-host", ""),
            ("health-check-port", "65536"),
            ("health-check-interval", "99ms"),
            ("health-check-interval", "2h"),
            ("health-check-timeout", "0"),
            ("health-check-timeout", "61s"),
            ("health-check-rise", "0"),
            ("health-check-fall", "101"),
        ] {
            let said = fault(&[("health-check", "http"), (name, bad)]);
            assert!(said.starts_with(&format!("annotation weir.dev/{name}: {bad:?} is not ")), "{said}");
        }
        let said = fault(&[("health-check", "udp"), ("health-check-path", "/up")]);
        assert_eq!(
            said,
            "annotation weir.dev/health-check: \"udp\" is not \"http\", \"grpc\", \"tcp\" or \"off\": it is ignored"
        );
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let said = fault(&[("health-check-path", "/up")]);
        assert!(
            said.ends_with("has no effect without health-check: add health-check: http, grpc or tcp"),
            "{said}"
        );
        for (word, name, value) in [
            ("tcp", "health-check-host", "a.example"),
            ("tcp", "health-check-path", "/up"),
            ("grpc", "health-check-path", "/up"),
            ("http", "health-check-grpc-service", "shop.v1.Shop"),
        ] {
            let said = fault(&[("health-check", word), (name, value)]);
            assert!(said.ends_with(&format!("has no effect with health-check: {word}")), "{said}");
        }
    }
}
