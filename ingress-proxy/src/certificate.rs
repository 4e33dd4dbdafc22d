//! What a certificate says of itself: for whom it is, and when.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::table::HostPattern;

/// Names, and the time in which it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// DNS names and addresses; the subject's common name is none, as for every browser.
    pub(crate) names: Vec<String>,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// Why one is of no use to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    NotYet,
    Over,
    /// It is valid for at most so long.
    Soon,
    OtherNames,
}

impl Certificate {
    /// Of the first certificate of a chain, which is the host's own.
    pub(crate) fn of(pair: &CertifiedKey) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(pair.cert.first()?).ok()?;
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let names = alternatives.iter().flat_map(|names| &names.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        Some(Self {
            names: names.collect(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// What is wrong with it for a host, at a time in seconds since 1970; `soon_s` before its end that is near.
    pub(crate) fn fault(&self, host: &HostPattern, now: i64, soon_s: i64) -> Option<Fault> {
        let faults = [
            (now > self.not_after, Fault::Over),
            (now < self.not_before, Fault::NotYet),
            (!self.covers(host), Fault::OtherNames),
            (now + soon_s > self.not_after, Fault::Soon),
        ];
        faults.into_iter().find_map(|(is_so, fault)| is_so.then_some(fault))
    }

    /// Whether a client that asks for the host takes it for the host's (RFC 9525 §6.3: a wildcard is one label).
    pub(crate) fn covers(&self, host: &HostPattern) -> bool {
        let is = |name: &str| self.names.iter().any(|own| own == name);
        match host {
            HostPattern::Any => true,
            HostPattern::Wildcard(parent) => is(&format!("*.{parent}")),
            HostPattern::Exact(name) => {
                is(name.trim_matches(['[', ']']))
                    || name.split_once('.').is_some_and(|(_, parent)| is(&format!("*.{parent}")))
            }
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// RFC 3339.
pub(crate) fn date(seconds: i64) -> impl fmt::Display {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pair for these names, valid between these days of 2030.
    pub(crate) fn pair(names: &[&str], from: u8, to: u8) -> CertifiedKey {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2030, 1, from);
        parameters.not_after = rcgen::date_time_ymd(2030, 1, to);
        let certificate = parameters.self_signed(&key).unwrap();
        crate::tls::read_pair(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    /// Seconds of a day of January 2030.
    pub(crate) fn day(day: i64) -> i64 {
        1_893_456_000 + (day - 1) * 86_400
    }

    #[test]
    fn names_and_times_are_read() {
        let read = Certificate::of(&pair(&["A.com", "*.b.com", "192.0.2.1"], 2, 20)).unwrap();
        assert_eq!(read.names, ["a.com", "*.b.com", "192.0.2.1"]);
        assert_eq!((read.not_before, read.not_after), (day(2), day(20)));
        assert_eq!(date(read.not_after).to_string(), "2030-01-20T00:00:00Z");
        for (host, covered) in [
            ("a.com", true),
            ("x.b.com", true),
            ("*.b.com", true),
            ("192.0.2.1", true),
            ("", true),
            ("b.com", false),
            ("x.y.b.com", false),
            ("*.a.com", false),
        ] {
            assert_eq!(read.covers(&HostPattern::parse(host).unwrap()), covered, "{host}");
        }
    }

    #[test]
    fn the_worst_fault_is_said() {
        let read = Certificate::of(&pair(&["a.com"], 2, 20)).unwrap();
        let two_days = 2 * 86_400;
        for (host, now, fault) in [
            ("a.com", day(1), Some(Fault::NotYet)),
            ("a.com", day(2), None),
            ("a.com", day(18), None),
            ("a.com", day(18) + 1, Some(Fault::Soon)),
            ("b.com", day(19), Some(Fault::OtherNames)),
            ("b.com", day(21), Some(Fault::Over)),
        ] {
            assert_eq!(read.fault(&HostPattern::parse(host).unwrap(), now, two_days), fault, "{host} {now}");
        }
    }
}
