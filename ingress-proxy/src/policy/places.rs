//! Places that an endpoint names in its response, as the client knows them: `proxy-redirect-*`, `proxy-cookie-*`.
//!
//! An endpoint behind a rewritten path or another name answers with its own: a redirect to `http://app:8080/login`, a cookie
//! for `/app`. What is replaced is plain text at fixed places; nothing else of a field is touched.
//!
//! Cost for a rule that has none: one branch.

use http::{HeaderName, HeaderValue, header};

use super::ResponseHead;

/// What is replaced by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) from: Box<str>,
    pub(crate) to: Box<str>,
}

/// All that is replaced in a response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// At the start of `Location`, and of the URL in `Refresh`.
    pub(crate) redirect: Option<Exchange>,
    /// The whole of a cookie's `Domain`, a dot in front of it aside.
    pub(crate) cookie_domain: Option<Exchange>,
    /// At the start of a cookie's `Path`.
    pub(crate) cookie_path: Option<Exchange>,
}

impl Places {
    /// Edits an endpoint's response.
    pub(super) fn replace(&self, response: &mut impl ResponseHead) {
        if let Some(redirect) = &self.redirect {
            edit(response, &header::LOCATION, |location| redirect.at_the_start(location));
            edit(response, &header::REFRESH, |refresh| {
                let url = refresh.to_ascii_lowercase().find("url=")? + "url=".len();
                Some(format!("{}{}", &refresh[..url], redirect.at_the_start(&refresh[url..])?))
            });
        }
        if self.cookie_domain.is_some() || self.cookie_path.is_some() {
            edit(response, &header::SET_COOKIE, |cookie| self.cookie(cookie));
        }
    }

    fn cookie(&self, cookie: &str) -> Option<String> {
        let mut changed = false;
        let parts = cookie.split(';').enumerate().map(|(at, part)| {
            let attribute = part.split_once('=').filter(|_| at > 0);
            let new = attribute.and_then(|(name, value)| {
                let exchanged = match name.trim().to_ascii_lowercase().as_str() {
                    "domain" => self.cookie_domain.as_ref()?.as_a_whole(value.trim()),
                    "path" => self.cookie_path.as_ref()?.at_the_start(value.trim()),
                    _ => None,
                };
                Some(format!("{name}={}", exchanged?))
            });
            changed |= new.is_some();
            new.unwrap_or_else(|| part.to_owned())
        });
        let parts: Vec<String> = parts.collect();
        changed.then(|| parts.join(";"))
    }
}

impl Exchange {
    fn at_the_start(&self, text: &str) -> Option<String> {
        text.strip_prefix(&*self.from).map(|rest| format!("{}{rest}", self.to))
    }

    fn as_a_whole(&self, text: &str) -> Option<String> {
        let same = text.trim_start_matches('.').eq_ignore_ascii_case(self.from.trim_start_matches('.'));
        same.then(|| self.to.to_string())
    }
}

/// Replaces the values of a field that `change` has something else for. A value that is no text, or would become none, stays.
fn edit(response: &mut impl ResponseHead, name: &HeaderName, change: impl Fn(&str) -> Option<String>) {
    let old = response.values(name);
    let new = |value: &HeaderValue| HeaderValue::try_from(change(value.to_str().ok()?)?).ok();
    let changed: Vec<Option<HeaderValue>> = old.iter().map(new).collect();
    if changed.iter().all(Option::is_none) {
        return;
    }
    for (at, (old, new)) in old.into_iter().zip(changed).enumerate() {
        let value = new.unwrap_or(old);
        if at == 0 { response.set(name.clone(), value) } else { response.append(name.clone(), value) }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn exchange(from: &str, to: &str) -> Exchange {
        Exchange { from: from.into(), to: to.into() }
    }

    fn replaced(places: &Places, name: HeaderName, values: &[&str]) -> Vec<String> {
        let mut response = HeaderMap::new();
        for value in values {
            response.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        places.replace(&mut response);
        response.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn redirects_lead_to_where_clients_are() {
        let places = Places {
            redirect: Some(exchange("http://app:8080/", "https://shop.example/")),
            ..Places::default()
        };
        for (given, expected) in [
            ("http://app:8080/login?to=http://app:8080/", "https://shop.example/login?to=http://app:8080/"),
            ("http://other/", "http://other/"),
            ("/login", "/login"),
        ] {
            assert_eq!(replaced(&places, header::LOCATION, &[given]), [expected]);
        }
        assert_eq!(
            replaced(&places, header::REFRESH, &["5; URL=http://app:8080/x"]),
            ["5; URL=https://shop.example/x"]
        );
        assert_eq!(replaced(&places, header::REFRESH, &["5"]), ["5"]);
    }

    #[test]
    fn cookies_are_for_where_clients_are() {
        let places = Places {
            cookie_domain: Some(exchange("app.local", "shop.example")),
            cookie_path: Some(exchange("/app/", "/")),
            ..Places::default()
        };
        let given = [
            "a=1; Domain=.APP.local; Path=/app/cart; Secure",
            "b=domain=app.local; path=/other",
            "Path=/app/; HttpOnly",
        ];
        assert_eq!(
            replaced(&places, header::SET_COOKIE, &given),
            [
                "a=1; Domain=shop.example; Path=/cart; Secure",
                "b=domain=app.local; path=/other",
                "Path=/app/; HttpOnly"
            ],
            "only attributes, never a cookie's own name and value"
        );
    }
}
