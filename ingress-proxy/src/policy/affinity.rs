//! Sessions: a cookie that keeps a client at its endpoint.
//!
//! The cookie holds a random name and nothing else. Which endpoint that is, is found by hashing the name with each
//! endpoint's address (rendezvous hashing), so that every replica agrees without sharing anything, the cookie tells
//! nobody a pod's address, and when endpoints come or go only those sessions move that have to. A cookie that another
//! proxy set is as good a name as any.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::HeaderValue;

use super::head::cookie;
use super::{Client, RequestHead};

/// Longer values are not ours, and are replaced.
const MAX_VALUE: usize = 256;

/// `affinity: cookie` and `session-cookie-*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Affinity {
    /// The cookie's name.
    pub(crate) name: Box<str>,
    /// What follows the value, but for `Secure`: `; Path=/; HttpOnly`.
    pub(crate) attributes: Box<str>,
    /// `Secure` also over plain HTTP.
    pub(crate) secure: bool,
    /// Whether the session decides about the canary too (`affinity-canary-behavior: sticky`).
    pub(crate) with_canary: bool,
}

/// A client's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    /// What endpoints are ranked by.
    pub(super) key: u64,
    /// The `Set-Cookie` for a client that has none.
    pub(super) set: Option<HeaderValue>,
}

impl Affinity {
    pub(super) fn session(&self, head: &impl RequestHead, client: &Client) -> Session {
        if let Some(name) = cookie(head, &self.name).filter(|name| (1..=MAX_VALUE).contains(&name.len())) {
            return Session { key: key(name), set: None };
        }
        let name = format!("{:016x}", client.dice);
        let secure = if self.secure || client.https { "; Secure" } else { "" };
        let set = format!("{}={name}{}{secure}", self.name, self.attributes);
        Session { key: key(name.as_bytes()), set: HeaderValue::try_from(set).ok() }
    }
}

impl Affinity {
    /// What it says of a client for `weir explain http`.
    pub(super) fn says(&self, session: &Session) -> String {
        match session.set {
            None => format!("cookie {} keeps the client at its endpoint", self.name),
            Some(_) => format!("the client has no session yet and is given one in cookie {}", self.name),
        }
    }
}

fn key(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new(); // the same in every process of one build
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    #[test]
    fn a_client_keeps_the_name_it_was_given() {
        let affinity = Affinity {
            name: "route".into(),
            attributes: "; Path=/; HttpOnly".into(),
            secure: false,
            with_canary: true,
        };
        let mut client =
            Client { address: "192.0.2.1".parse().unwrap(), https: false, now_us: 0, dice: 0xabc };
        let fresh = affinity.session(&get("http://a/", &[]), &client);
        assert_eq!(fresh.set.as_ref().unwrap(), "route=0000000000000abc; Path=/; HttpOnly");
        let back = affinity.session(&get("http://a/", &[("cookie", "route=0000000000000abc")]), &client);
        assert_eq!(back, Session { key: fresh.key, set: None });

        client.https = true;
        let long = format!("route={}", "x".repeat(MAX_VALUE + 1));
        for bad in ["route=", long.as_str()] {
            let set = affinity.session(&get("http://a/", &[("cookie", bad)]), &client).set;
            assert_eq!(set.unwrap(), "route=0000000000000abc; Path=/; HttpOnly; Secure");
        }
    }
}
