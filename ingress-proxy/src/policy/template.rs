//! Text in which a closed list of variables stands for parts of the request.
//!
//! This is no language: there is nothing to call and nothing to nest, and what is not on the list is refused when
//! the annotation is read. The names are nginx's, so that manifests move unchanged.

use std::hash::{DefaultHasher, Hash, Hasher};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::auth::user;
use super::head::{cookie, origin_form};
use super::{Client, RequestHead};

/// Longest text, in bytes.
pub(crate) const MAX_LEN: usize = 1_024;
/// What does not stand for itself in a part of a URL (RFC 3986 §2.3).
pub(super) const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A parsed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(pub(super) Box<[Part]>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(Box<str>),
    Variable(Variable),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variable {
    Scheme,
    Host,
    /// The host as the client wrote it, with its port.
    Authority,
    /// Path and query.
    RequestUri,
    /// The same, to stand in a query.
    EscapedRequestUri,
    /// The path.
    Uri,
    Args,
    Method,
    Address,
    /// Of basic authentication, right or not.
    User,
    Field(Box<str>),
    Cookie(Box<str>),
    Arg(Box<str>),
}

impl Variable {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "scheme" | "pass_access_scheme" => Self::Scheme,
            "host" => Self::Host,
            "http_host" | "best_http_host" => Self::Authority,
            "request_uri" => Self::RequestUri,
            "escaped_request_uri" => Self::EscapedRequestUri,
            "uri" | "document_uri" => Self::Uri,
            "args" | "query_string" => Self::Args,
            "request_method" => Self::Method,
            "remote_user" => Self::User,
            "remote_addr" | "binary_remote_addr" | "the_real_ip" => Self::Address,
            _ => {
                if let Some(field) = name.strip_prefix("http_").filter(|rest| !rest.is_empty()) {
                    Self::Field(field.replace('_', "-").to_ascii_lowercase().into())
                } else if let Some(cookie) = name.strip_prefix("cookie_").filter(|rest| !rest.is_empty()) {
                    Self::Cookie(cookie.into())
                } else {
                    Self::Arg(name.strip_prefix("arg_").filter(|rest| !rest.is_empty())?.into())
                }
            }
        })
    }

    /// Whether the client cannot choose its value freely: what may stand in an answer to that client.
    fn is_of_the_target(&self) -> bool {
        matches!(
            self,
            Self::Scheme
                | Self::Host
                | Self::Authority
                | Self::RequestUri
                | Self::EscapedRequestUri
                | Self::Uri
                | Self::Args
        )
    }

    pub(super) fn push(&self, out: &mut Vec<u8>, head: &impl RequestHead, client: &Client) {
        match self {
            Self::Scheme => out.extend(if client.https { &b"https"[..] } else { b"http" }),
            Self::Host => out.extend(head.host().as_bytes()),
            Self::Authority => out.extend(head.authority().as_bytes()),
            Self::RequestUri => out.extend(origin_form(head).into_bytes()),
            Self::EscapedRequestUri => {
                let text = origin_form(head);
                out.extend(utf8_percent_encode(&text, COMPONENT).flat_map(str::bytes));
            }
            Self::Uri => out.extend(head.path().as_bytes()),
            Self::Args => out.extend(head.query().unwrap_or_default().as_bytes()),
            Self::Method => out.extend(head.method().as_bytes()),
            Self::Address => out.extend(client.address.to_string().into_bytes()),
            Self::User => out.extend(user(head).unwrap_or_default().into_bytes()),
            Self::Field(name) => out.extend(head.field(name).unwrap_or_default()),
            Self::Cookie(name) => out.extend(cookie(head, name).unwrap_or_default()),
            Self::Arg(name) => {
                let mut args = head.query().unwrap_or_default().split('&');
                let found = args.find_map(|pair| pair.strip_prefix(&**name)?.strip_prefix('='));
                out.extend(found.unwrap_or_default().as_bytes());
            }
        }
    }
}

impl Template {
    /// `None` for a text that is too long, is empty, or has a variable that is not on the list.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > MAX_LEN {
            return None;
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            if dollar > 0 {
                parts.push(Part::Text(rest[..dollar].into()));
            }
            let after = &rest[dollar + 1..];
            let name;
            (name, rest) = if let Some(braced) = after.strip_prefix('{') {
                braced.split_once('}')?
            } else {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len()))
            };
            parts.push(Part::Variable(Variable::parse(name)?));
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Some(Self(parts.into()))
    }

    /// The same for a text that goes back to the client: only variables of the request's target may stand in it.
    pub(crate) fn parse_location(text: &str) -> Option<Self> {
        let template = Self::parse(text)?;
        let begins = match &template.0[0] {
            Part::Text(text) => ["http://", "https://", "/"].iter().any(|scheme| text.starts_with(scheme)),
            Part::Variable(variable) => matches!(variable, Variable::Scheme),
        };
        let fits = |part: &Part| match part {
            Part::Text(text) => text.bytes().all(|byte| byte.is_ascii_graphic()),
            Part::Variable(variable) => variable.is_of_the_target(),
        };
        (begins && template.0.iter().all(fits)).then_some(template)
    }

    /// The text for one request.
    pub(super) fn expand(&self, head: &impl RequestHead, client: &Client) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend(text.as_bytes()),
                Part::Variable(variable) => variable.push(&mut out, head, client),
            }
        }
        out
    }

    /// A number that is the same for the same text, on every replica.
    pub(super) fn hash(&self, head: &impl RequestHead, client: &Client) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.expand(head, client).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    fn expanded(text: &str) -> Option<String> {
        let fields = [
            ("x-tenant", "blue"),
            ("cookie", "sid=7"),
            ("host", "shop.example:81"),
            ("authorization", "Basic YW5uOng="),
        ];
        let head = get("http://shop.example/a/b?k=v&n=1", &fields);
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: true, now_us: 0, dice: 0 };
        Some(String::from_utf8(Template::parse(text)?.expand(&head, &client)).unwrap())
    }

    #[test]
    fn variables_stand_for_parts_of_the_request() {
        for (text, expected) in [
            ("plain", Some("plain")),
            ("$request_uri", Some("/a/b?k=v&n=1")),
            ("${uri}-$args", Some("/a/b-k=v&n=1")),
            ("$scheme://$host", Some("https://shop.example")),
            ("$remote_addr $request_method", Some("192.0.2.1 GET")),
            ("$http_x_tenant/$cookie_sid/$arg_n/$arg_none", Some("blue/7/1/")),
            ("$http_host$escaped_request_uri", Some("shop.example:81%2Fa%2Fb%3Fk%3Dv%26n%3D1")),
            ("$remote_user", Some("ann")),
            ("$unknown", None),
            ("${uri", None),
            ("$", None),
            ("$http_", None),
            ("", None),
        ] {
            assert_eq!(expanded(text).as_deref(), expected, "{text}");
        }
        assert_eq!(expanded(&"x".repeat(MAX_LEN + 1)), None);
    }

    #[test]
    fn an_answer_holds_nothing_that_the_client_wrote_freely() {
        for (text, fine) in [
            ("https://other.example$request_uri", true),
            ("$scheme://www.$host$uri", true),
            ("/login", true),
            ("https://x/$http_referer", false),
            ("https://x/$arg_to", false),
            ("javascript:alert(1)", false),
            ("//x", true),
            ("https://a b", false),
            ("$host/x", false),
        ] {
            assert_eq!(Template::parse_location(text).is_some(), fine, "{text}");
        }
    }
}
