//! Cross-origin resource sharing: what a browser is told about who may read answers (Fetch standard, CORS protocol).

use http::{HeaderValue, header};

use super::{By, Reply, RequestHead, ResponseHead};

/// Origins on one list.
pub(crate) const MAX_ORIGINS: usize = 64;

/// `enable-cors` and `cors-*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cors {
    pub(crate) origins: Origins,
    pub(crate) methods: HeaderValue,
    pub(crate) headers: HeaderValue,
    pub(crate) expose: Option<HeaderValue>,
    pub(crate) credentials: bool,
    pub(crate) max_age: HeaderValue,
}

/// Who may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origins {
    Any,
    Listed(Box<[Origin]>),
}

/// One origin, or all of one label below a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The whole, or what stands in front of the label.
    before: Box<str>,
    /// What stands behind the label, if one may be anything.
    after: Option<Box<str>>,
}

impl Origin {
    /// `https://a.com`, `https://a.com:8443`, `https://*.a.com`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
        let (wildcard, host) = match rest.strip_prefix("*.") {
            Some(host) => (true, host),
            None => (false, rest),
        };
        let (name, port) = host.split_once(':').unwrap_or((host, "0"));
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        if !is_name || port.parse::<u16>().is_err() {
            return None;
        }
        Some(if wildcard {
            let scheme = &text[..text.len() - rest.len()];
            Self { before: scheme.into(), after: Some(format!(".{host}").into()) }
        } else {
            Self { before: text.into(), after: None }
        })
    }

    fn matches(&self, origin: &str) -> bool {
        let Some(after) = &self.after else { return origin.eq_ignore_ascii_case(&self.before) };
        let label = origin.len().checked_sub(self.before.len() + after.len());
        let Some(label) = label.filter(|label| *label > 0 && origin.is_ascii()) else { return false };
        let (before, rest) = origin.split_at(self.before.len());
        let (label, behind) = rest.split_at(label);
        before.eq_ignore_ascii_case(&self.before)
            && behind.eq_ignore_ascii_case(after)
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    }
}

impl Cors {
    /// What `Access-Control-Allow-Origin` says to this request; `None` when its origin may not read.
    pub(super) fn admit(&self, head: &impl RequestHead) -> Option<HeaderValue> {
        let origin = head.field("origin")?;
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Listed(list) => {
                let origin = std::str::from_utf8(origin).ok()?;
                let listed = list.iter().any(|pattern| pattern.matches(origin));
                listed.then(|| HeaderValue::from_str(origin).ok())?
            }
        }
    }

    /// The answer to a browser's question before the request proper; it comes without credentials, so that it
    /// must be answered before anyone asks for them.
    pub(super) fn preflight(&self, head: &impl RequestHead, allowed: &HeaderValue) -> Option<Reply> {
        let asks = head.method() == "OPTIONS" && head.field("access-control-request-method").is_some();
        if !asks {
            return None;
        }
        let mut reply = Reply::new(204, By::Cors, "a CORS preflight")
            .with(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone())
            .with(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone())
            .with(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        self.mark(allowed, &mut *reply.fields);
        Some(reply)
    }

    /// Marks an answer as readable. What the endpoint says itself is replaced, as ingress-nginx does.
    pub(super) fn mark(&self, allowed: &HeaderValue, response: &mut impl ResponseHead) {
        response.set(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed.clone());
        if self.credentials {
            response.set(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            response.set(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        self.vary(response);
    }

    /// Whatever the answer is: another origin would get another one.
    pub(super) fn vary(&self, response: &mut impl ResponseHead) {
        if matches!(self.origins, Origins::Listed(_)) {
            response.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::super::fake::get;
    use super::*;

    fn cors(origins: &[&str]) -> Cors {
        let origins = match origins {
            ["*"] => Origins::Any,
            list => Origins::Listed(list.iter().map(|text| Origin::parse(text).unwrap()).collect()),
        };
        Cors {
            origins,
            methods: HeaderValue::from_static("GET"),
            headers: HeaderValue::from_static("X-A"),
            expose: None,
            credentials: true,
            max_age: HeaderValue::from_static("600"),
        }
    }

    #[test]
    fn origins_are_compared_whole_and_wildcards_are_one_label() {
        let listed = cors(&["https://a.com", "https://*.b.com:8443", "http://*.c.com"]);
        for (origin, allowed) in [
            ("https://a.com", true),
            ("HTTPS://A.com", true),
            ("http://a.com", false),
            ("https://a.com.evil", false),
            ("https://xa.com", false),
            ("https://x.b.com:8443", true),
            ("https://x.b.com", false),
            ("https://x.y.b.com:8443", false),
            ("https://b.com:8443", false),
            ("https://.b.com:8443", false),
            ("http://x.c.com", true),
            ("http://evil/.c.com", false),
            ("null", false),
        ] {
            let head = get("http://x/", &[("origin", origin)]);
            assert_eq!(listed.admit(&head).is_some(), allowed, "{origin}");
        }
        assert_eq!(cors(&["*"]).admit(&get("http://x/", &[("origin", "null")])).unwrap(), "*");
        assert_eq!(cors(&["*"]).admit(&get("http://x/", &[])), None);
        for bad in ["a.com", "ftp://a.com", "https://", "https://a.com/x", "https://a.*.com", "https://a:x"] {
            assert_eq!(Origin::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_preflight_is_answered() {
        let cors = cors(&["https://a.com"]);
        let mut head = get("http://x/", &[("origin", "https://a.com")]);
        let allowed = cors.admit(&head).unwrap();
        assert_eq!(cors.preflight(&head, &allowed), None);
        head.method = "OPTIONS";
        assert_eq!(cors.preflight(&head, &allowed), None, "an endpoint may have its own OPTIONS");
        head.fields.push(("access-control-request-method".into(), b"PUT".to_vec()));
        let reply = cors.preflight(&head, &allowed).unwrap();
        assert_eq!(reply.status, 204);
        for (name, value) in [
            ("access-control-allow-origin", "https://a.com"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET"),
            ("access-control-allow-headers", "X-A"),
            ("access-control-max-age", "600"),
            ("vary", "origin"),
        ] {
            assert_eq!(reply.fields[name], value, "{name}");
        }
    }

    #[test]
    fn the_endpoints_own_word_is_replaced() {
        let mut response = HeaderMap::new();
        response.append("access-control-allow-origin", HeaderValue::from_static("*"));
        response.append("vary", HeaderValue::from_static("accept"));
        cors(&["https://a.com"]).mark(&HeaderValue::from_static("https://a.com"), &mut response);
        let all = |name| response.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("access-control-allow-origin"), ["https://a.com"]);
        assert_eq!(all("vary"), ["accept", "origin"]);
    }
}
