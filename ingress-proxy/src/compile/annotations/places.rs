//! What is replaced in responses: `proxy-redirect-from`, `proxy-redirect-to`, `proxy-cookie-domain`, `proxy-cookie-path`.

use super::reader::Reader;
use crate::policy::{Exchange, Places};

const PAIR: &str = "two texts with a space between, without patterns and variables";
const URL: &str = "the start of a URL, without patterns and variables";
/// The value that asks for nothing, as in nginx.
const OFF: &str = "off";

pub(super) fn places(r: &mut Reader<'_>) -> Places {
    let mut pair =
        |name| r.read(name, PAIR, |text| if text == OFF { Some(None) } else { pair(text).map(Some) });
    let (cookie_domain, cookie_path) =
        (pair("proxy-cookie-domain").flatten(), pair("proxy-cookie-path").flatten());
    let mut url = |name| r.read(name, URL, plain).filter(|text| *text != OFF).map(Box::from);
    let (from, to) = (url("proxy-redirect-from"), url("proxy-redirect-to"));
    let redirect = from.zip(to).map(|(from, to)| Exchange { from, to });
    if redirect.is_none() && r.text("proxy-redirect-to").is_some_and(|text| text != OFF) {
        r.unserved("proxy-redirect-to", "needs proxy-redirect-from beside it");
    }
    Places { redirect, cookie_domain, cookie_path }
}

fn pair(text: &str) -> Option<Exchange> {
    let (from, to) = text.split_once(' ')?;
    Some(Exchange { from: plain(from)?.into(), to: plain(to.trim_start())?.into() })
}

/// What can stand for itself in a field: nginx would take the rest for a pattern or a variable, or end the attribute there.
fn plain(text: &str) -> Option<&str> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'$' | b';' | b',');
    (!text.is_empty() && !text.starts_with('~') && text.bytes().all(fits)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Places, usize) {
        let annotations = pairs
            .iter()
            .map(|(name, value)| (format!("nginx.ingress.kubernetes.io/{name}"), (*value).to_owned()))
            .collect();
        let mut reader = Reader::new(&annotations);
        (places(&mut reader), reader.problems.len())
    }

    #[test]
    fn pairs_and_starts_are_read() {
        let exchange = |from: &str, to: &str| Some(Exchange { from: from.into(), to: to.into() });
        let (all, problems) = read(&[
            ("proxy-cookie-domain", "app  shop.example"),
            ("proxy-cookie-path", "/app/ /"),
            ("proxy-redirect-from", "http://app/"),
            ("proxy-redirect-to", "/"),
        ]);
        let expected = Places {
            redirect: exchange("http://app/", "/"),
            cookie_domain: exchange("app", "shop.example"),
            cookie_path: exchange("/app/", "/"),
        };
        assert_eq!((all, problems), (expected, 0));
        for (pairs, faults) in [
            (&[][..], 0),
            (
                &[
                    ("proxy-cookie-domain", "off"),
                    ("proxy-redirect-from", "off"),
                    ("proxy-redirect-to", "off"),
                ],
                0,
            ),
            (&[("proxy-cookie-path", "/app/")], 1),
            (&[("proxy-cookie-path", "~^/app /")], 1),
            (&[("proxy-cookie-domain", "app x;secure")], 1),
            (&[("proxy-redirect-from", "http://$host/"), ("proxy-redirect-to", "/")], 2),
            (&[("proxy-redirect-to", "/")], 1),
        ] {
            assert_eq!(read(pairs), (Places::default(), faults), "{pairs:?}");
        }
    }
}
