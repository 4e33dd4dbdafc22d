//! Requests and responses as policies see them, whichever protocol they came by.
//!
//! Each request path implements these for its own types, so that a policy is written once and knows none of them.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Identity;

/// A request as routing and policies see it.
pub(crate) trait RequestHead {
    fn method(&self) -> &str;
    /// In normal form, without query.
    fn path(&self) -> &str;
    fn query(&self) -> Option<&str>;
    /// In normal form; empty when the request has none.
    fn host(&self) -> &str;
    /// The host as the client wrote it, with its port.
    fn authority(&self) -> &str;
    /// The first field of this name (lower case), as it came.
    fn field(&self, name: &str) -> Option<&[u8]>;
    /// All fields of this name.
    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a;
    /// What the client showed of itself, where its connection asked it to.
    fn identity(&self) -> Option<&Identity>;
    /// Every field, as it came.
    fn every_field(&self) -> impl Iterator<Item = (&str, &[u8])>;
}

/// A response head that can be edited.
pub(crate) trait ResponseHead {
    fn has(&self, name: &HeaderName) -> bool;
    /// Every value of this field.
    fn values(&self, name: &HeaderName) -> Vec<HeaderValue>;
    /// Replaces every field of this name.
    fn set(&mut self, name: HeaderName, value: HeaderValue);
    fn append(&mut self, name: HeaderName, value: HeaderValue);
}

impl ResponseHead for HeaderMap {
    fn has(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }

    fn values(&self, name: &HeaderName) -> Vec<HeaderValue> {
        self.get_all(name).iter().cloned().collect()
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.insert(name, value);
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        HeaderMap::append(self, name, value);
    }
}

/// The value of a cookie, as it came. The first one counts, as in RFC 6265 §5.4.
pub(super) fn cookie<'a>(head: &'a impl RequestHead, name: &'a str) -> Option<&'a [u8]> {
    head.fields("cookie").flat_map(|field| field.split(|&byte| byte == b';')).find_map(|pair| {
        let (found, value) = pair.trim_ascii().split_at_checked(name.len())?;
        let value = value.strip_prefix(b"=")?;
        (found == name.as_bytes()).then_some(value)
    })
}

/// Path and query as the request line has them.
pub(crate) fn origin_form(head: &impl RequestHead) -> String {
    let mut text = head.path().to_owned();
    if let Some(query) = head.query() {
        text.push('?');
        text.push_str(query);
    }
    text
}

#[cfg(test)]
pub(super) mod fake {
    use std::sync::Arc;

    use super::{Identity, RequestHead};

    /// A request written in a test.
    #[derive(Debug, Clone)]
    pub(crate) struct Head {
        pub(crate) method: &'static str,
        pub(crate) host: String,
        pub(crate) path: String,
        pub(crate) query: Option<String>,
        pub(crate) fields: Vec<(String, Vec<u8>)>,
        pub(crate) identity: Option<Arc<Identity>>,
    }

    /// `GET http://shop.example/a/b?q`, with these fields.
    pub(crate) fn get(target: &str, fields: &[(&str, &str)]) -> Head {
        let rest = target.strip_prefix("http://").unwrap();
        let (host, rest) = rest.split_at(rest.find('/').unwrap());
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (rest, None),
        };
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        Head {
            method: "GET",
            host: host.to_owned(),
            path: path.to_owned(),
            query,
            fields: fields.collect(),
            identity: None,
        }
    }

    impl RequestHead for Head {
        fn method(&self) -> &str {
            self.method
        }

        fn path(&self) -> &str {
            &self.path
        }

        fn query(&self) -> Option<&str> {
            self.query.as_deref()
        }

        fn host(&self) -> &str {
            &self.host
        }

        fn authority(&self) -> &str {
            self.field("host").map_or(&self.host, |host| std::str::from_utf8(host).unwrap())
        }

        fn field(&self, name: &str) -> Option<&[u8]> {
            self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
        }

        fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
            self.fields.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_slice())
        }

        fn identity(&self) -> Option<&Identity> {
            self.identity.as_deref()
        }

        fn every_field(&self) -> impl Iterator<Item = (&str, &[u8])> {
            self.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::get;
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let head = get("http://a/", &[("cookie", "xid=1; id=2;flag"), ("cookie", "id=3; late=a=b")]);
        for (name, expected) in [
            ("id", Some(&b"2"[..])),
            ("xid", Some(b"1")),
            ("late", Some(b"a=b")),
            ("flag", None),
            ("i", None),
            ("no", None),
        ] {
            assert_eq!(cookie(&head, name), expected, "{name}");
        }
    }
}
