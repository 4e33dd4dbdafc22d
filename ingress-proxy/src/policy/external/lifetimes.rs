//! How long an answer of the authentication server is good for.

use std::time::Duration;

use http::{HeaderMap, header};

/// Longest time that an answer is remembered.
const LONGEST: Duration = Duration::from_hours(24);
/// nginx's, for times that name no status.
const USUAL_STATUSES: [u16; 3] = [200, 301, 302];

/// `auth-cache-duration`: statuses, and how long answers with them are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lifetimes(Box<[(u16, Duration)]>);

impl Default for Lifetimes {
    /// ingress-nginx's: `200 202 401 5m`.
    fn default() -> Self {
        Self([200, 202, 401].map(|status| (status, Duration::from_mins(5))).into())
    }
}

impl Lifetimes {
    /// What [`Lifetimes::parse`] reads.
    pub(crate) const EXPECTED: &'static str =
        "a list of statuses and a time each, such as \"200 202 401 5m, 403 30s\", with times up to a day";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lifetimes = Vec::new();
        for part in text.split(',') {
            let (mut statuses, mut time) = (Vec::new(), None::<Duration>);
            for word in part.split_ascii_whitespace() {
                match word.parse::<u16>() {
                    Ok(status) if time.is_none() && (100..600).contains(&status) => statuses.push(status),
                    _ => time = Some(time.unwrap_or_default() + parse_time(word)?),
                }
            }
            let time = time.filter(|time| !time.is_zero() && *time <= LONGEST)?;
            let statuses = if statuses.is_empty() { &USUAL_STATUSES[..] } else { &statuses };
            lifetimes.extend(statuses.iter().map(|status| (*status, time)));
        }
        Some(Self(lifetimes.into()))
    }

    /// How long this answer may be given again; nothing if it may not. What the server says of it goes before what the
    /// annotation says, as in nginx; a cookie is one client's and never another's.
    pub(crate) fn of(&self, status: u16, fields: &HeaderMap) -> Option<Duration> {
        let (_, usual) = self.0.iter().find(|(listed, _)| *listed == status)?;
        if fields.contains_key(header::SET_COOKIE) || !matches!(status, 200..300 | 401 | 403) {
            return None;
        }
        let mut lifetime = *usual;
        let said = fields.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        for word in said.flat_map(|value| value.split(',')).map(str::trim) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name.to_ascii_lowercase().as_str() {
                "no-store" | "no-cache" | "private" => return None,
                "max-age" | "s-maxage" => {
                    let seconds = value.trim_matches('"').parse().ok()?;
                    lifetime = Duration::from_secs(seconds).min(LONGEST);
                }
                _ => {}
            }
        }
        (!lifetime.is_zero()).then_some(lifetime)
    }
}

/// nginx's times: a number and a unit.
fn parse_time(word: &str) -> Option<Duration> {
    let end = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let number: u64 = word[..end].parse().ok()?;
    let unit_s = match &word[end..] {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(unit_s).map(Duration::from_secs).filter(|time| *time <= LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_times() {
        let of = |text: &str, status| {
            Lifetimes::parse(text).unwrap().of(status, &HeaderMap::new()).map(|time| time.as_secs())
        };
        let text = "200 202 1h 30m, 401 30s,10m";
        assert_eq!((of(text, 200), of(text, 202), of(text, 401)), (Some(5_400), Some(5_400), Some(30)));
        assert_eq!((of(text, 403), of("10m", 200), of("10m", 302)), (None, Some(600), None));
        for bad in [
            "",
            "200",
            "5m 200",
            "200 5",
            "200 0s",
            "200 2d",
            "99 5m",
            "200 5m,",
            "any 5m",
            "200 99999999999999h",
        ] {
            assert_eq!(Lifetimes::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_servers_word_goes_before_the_annotations() {
        let of = |name: &'static str, value: &str| {
            let fields =
                HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())]);
            Lifetimes::default().of(200, &fields).map(|time| time.as_secs())
        };
        assert_eq!(of("x", "y"), Some(300));
        assert_eq!(of("set-cookie", "a=b"), None);
        assert_eq!(of("cache-control", "public, max-age=7"), Some(7));
        for never in ["no-store", "No-Cache, public", "private", "max-age=0", "max-age=soon"] {
            assert_eq!(of("cache-control", never), None, "{never}");
        }
    }
}
