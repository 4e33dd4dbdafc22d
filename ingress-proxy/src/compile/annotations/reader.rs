//! Annotations by name, and what is wrong with them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::known::{Known, known, nearest};
use crate::compile::Reason;
use crate::config::Network;
use crate::policy::MAX_NETWORKS;

/// Prefixes, the stronger one last.
const PREFIXES: [&str; 2] = ["nginx.ingress.kubernetes.io/", OWN_PREFIX];
const OWN_PREFIX: &str = "weir.dev/";

/// What a value says in place of nothing.
const NOTHING: [&str; 4] = ["", "false", "off", "no"];

/// Longest time that an annotation can ask to wait: a day.
const MAX_WAIT: Duration = Duration::from_hours(24);

/// Whether an annotation of this key is for us.
pub(crate) fn is_ours(key: &str) -> bool {
    PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Reads the annotations of one Ingress; each method notes what it could not read.
pub(super) struct Reader<'a> {
    /// Name without prefix; key and value as written.
    values: BTreeMap<&'a str, (&'a str, &'a str)>,
    pub(super) problems: Vec<(Reason, String)>,
    /// Why the Ingress's paths must stay closed.
    pub(super) closed: Option<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        let mut values = BTreeMap::new();
        for prefix in PREFIXES {
            for (key, value) in annotations {
                if let Some(name) = key.strip_prefix(prefix) {
                    values.insert(name, (key.as_str(), value.trim()));
                }
            }
        }
        let mut reader = Self { values, problems: Vec::new(), closed: None };
        reader.note_what_is_not_served();
        reader
    }

    fn note_what_is_not_served(&mut self) {
        for (&name, &(key, value)) in &self.values {
            let asks = !NOTHING.contains(&value);
            let (reason, text) = match known(name) {
                Some(Known::Served) => continue,
                None => {
                    let remedy =
                        nearest(name).map_or("remove it".to_owned(), |near| format!("is it {near}?"));
                    (Reason::UnknownAnnotation, format!("is not known: {remedy}"))
                }
                Some(Known::Refused(why)) => (Reason::RefusedAnnotation, format!("is refused: {why}")),
                Some(_) if !asks => continue,
                Some(Known::Idle(why)) => (Reason::UnservedAnnotation, format!("has no effect: {why}")),
                Some(Known::NotYet) => (
                    Reason::UnservedAnnotation,
                    "is not served yet: requests are served without it".to_owned(),
                ),
            };
            self.problems.push((reason, format!("annotation {key} {text}")));
        }
    }

    /// The value as written.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        debug_assert_eq!(known(name), Some(Known::Served), "{name}");
        self.values.get(name).map(|(_, value)| *value)
    }

    /// Whether the value is the one below our own prefix.
    pub(super) fn is_own(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|(key, _)| key.starts_with(OWN_PREFIX))
    }

    /// The value, as `parse` reads it. `expected` says what it should be.
    pub(super) fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        let parsed = parse(self.text(name)?);
        if parsed.is_none() {
            self.malformed(name, expected, "it is ignored");
        }
        parsed
    }

    /// The same for what keeps requests out: if it cannot be read, all are kept out.
    pub(super) fn guard<T>(
        &mut self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        let parsed = parse(self.text(name)?);
        if parsed.is_none() {
            self.close(name, &format!("is not {expected}"));
        }
        parsed
    }

    /// Closes the Ingress's paths because of this annotation.
    pub(super) fn close(&mut self, name: &str, fault: &str) {
        let (key, value) = self.values.get(name).copied().unwrap_or((name, ""));
        self.closed.get_or_insert(format!("annotation {key} {fault}"));
        let text = format!("annotation {key}: {value:?} {fault}{CLOSED}");
        self.problems.push((Reason::BadAnnotation, text));
    }

    fn malformed(&mut self, name: &str, expected: &str, consequence: &str) {
        let (key, value) = self.values[name];
        let text = format!("annotation {key}: {value:?} is not {expected}: {consequence}");
        self.problems.push((Reason::BadAnnotation, text));
    }

    /// Notes a fault that reading the value alone does not show.
    pub(super) fn fault(&mut self, name: &str, fault: &str) {
        let (key, value) = self.values.get(name).copied().unwrap_or((name, ""));
        self.problems.push((Reason::BadAnnotation, format!("annotation {key}: {value:?} {fault}")));
    }

    /// Notes that something is asked for that is not served.
    pub(super) fn unserved(&mut self, name: &str, text: &str) {
        let (key, value) = self.values.get(name).copied().unwrap_or((name, ""));
        self.problems.push((Reason::UnservedAnnotation, format!("annotation {key}: {value:?} {text}")));
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        self.read(name, "\"true\" or \"false\"", flag)
    }

    pub(super) fn is_on(&mut self, name: &str) -> bool {
        self.flag(name).unwrap_or(false)
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(name, &expected, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    /// A time: seconds, as in ingress-nginx, or a number with a unit.
    pub(super) fn wait(&mut self, name: &str) -> Option<Duration> {
        self.read(
            name,
            "a time from 1 second to a day: write seconds, such as \"60\", or \"90s\", \"5m\"",
            |text| {
                let seconds = text.parse().ok().map(Duration::from_secs);
                let wait = seconds.or_else(|| crate::config::parse_duration(text).ok())?;
                (!wait.is_zero() && wait <= MAX_WAIT).then_some(wait)
            },
        )
    }
}

/// Every word that Go takes for a truth value, because ingress-nginx does.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The parts of a list with commas; `None` if one is empty.
pub(super) fn list(text: &str) -> Option<Vec<&str>> {
    text.split(',').map(|part| Some(part.trim()).filter(|part| !part.is_empty())).collect()
}

/// What [`networks`] reads.
pub(super) const NETWORKS: &str =
    "a list of networks: write 10.0.0.0/8, 2001:db8::/32 or addresses, with commas between";

pub(super) fn networks(text: &str) -> Option<Box<[Network]>> {
    let parts = list(text).filter(|parts| parts.len() <= MAX_NETWORKS)?;
    parts.into_iter().map(|part| part.parse().ok()).collect()
}

const CLOSED: &str = ": the paths of this Ingress answer 503 until it is corrected or removed";

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn our_own_prefix_wins() {
        let both = annotations(&[
            ("nginx.ingress.kubernetes.io/ssl-redirect", "true"),
            ("weir.dev/ssl-redirect", "false"),
            ("other.io/ssl-redirect", "x"),
        ]);
        let mut reader = Reader::new(&both);
        assert_eq!(reader.flag("ssl-redirect"), Some(false));
        assert_eq!(reader.problems, []);
        assert!(is_ours("weir.dev/x") && !is_ours("kubernetes.io/ingress.class"));
    }

    #[test]
    fn what_is_not_served_is_said() {
        use Reason::{RefusedAnnotation, UnknownAnnotation, UnservedAnnotation};
        let told = annotations(&[
            ("nginx.ingress.kubernetes.io/configuration-snippet", "deny all;"),
            ("nginx.ingress.kubernetes.io/ssl-redirekt", "true"),
            ("nginx.ingress.kubernetes.io/custom-headers", "n/m"),
            ("nginx.ingress.kubernetes.io/proxy-buffering", "on"),
            ("nginx.ingress.kubernetes.io/enable-modsecurity", "false"),
            ("nginx.ingress.kubernetes.io/proxy-request-buffering", "off"),
        ]);
        let reader = Reader::new(&told);
        let reasons: Vec<Reason> = reader.problems.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, [RefusedAnnotation, UnservedAnnotation, UnservedAnnotation, UnknownAnnotation]);
        assert_eq!(reader.closed, None);
    }

    #[test]
    fn malformed_values_name_key_value_and_remedy() {
        let bad = annotations(&[
            ("weir.dev/limit-rps", "many"),
            ("weir.dev/whitelist-source-range", "10.0.0.0/8,,"),
            ("weir.dev/proxy-read-timeout", "2d"),
        ]);
        let mut reader = Reader::new(&bad);
        assert_eq!(reader.number("limit-rps", 1..=9), None);
        assert!(reader.guard("whitelist-source-range", NETWORKS, networks).is_none());
        assert_eq!(reader.wait("proxy-read-timeout"), None);
        let text = &reader.problems[0].1;
        assert_eq!(
            text,
            "annotation weir.dev/limit-rps: \"many\" is not a whole number from 1 to 9: it is ignored"
        );
        assert!(
            reader.closed.unwrap().starts_with("annotation weir.dev/whitelist-source-range is not a list")
        );
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        for (text, expected) in
            [("60", Some(60)), ("5m", Some(300)), ("0", None), ("86401", None), ("-1", None)]
        {
            let one = annotations(&[("weir.dev/proxy-read-timeout", text)]);
            let read = Reader::new(&one).wait("proxy-read-timeout");
            assert_eq!(read, expected.map(Duration::from_secs), "{text}");
        }
    }
}
