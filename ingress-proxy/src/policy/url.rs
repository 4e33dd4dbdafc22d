//! Where requests of the proxy's own go: URLs with variables.
//!
//! Whose server is asked must not be the client's choice, or it would choose one that lets it in. So the host of a URL is
//! written out, or is the host that the rule is for; everything else of it may come from the request.

use http::Uri;
use http::uri::Authority;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use super::template::{COMPONENT, Part, Template, Variable};
use super::{Client, RequestHead};

/// What cannot stand in a URL. A percent sign can: what it escapes was escaped before.
const FOREIGN: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A URL of another server, for each request anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    parts: Box<[Part]>,
    /// The server's name is the request's own host.
    at_own_host: bool,
}

impl Url {
    /// What [`Url::parse`] reads.
    pub(crate) const EXPECTED: &'static str = "a URL with http:// or https:// and a host, which is written out or is \
        $host, and in the rest of which variables such as $request_uri, $escaped_request_uri, $scheme, $request_method, \
        $http_NAME or $cookie_NAME may stand";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = Template::parse(text)?.0;
        let fits = |part: &Part| match part {
            Part::Text(text) => text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'),
            Part::Variable(_) => true,
        };
        if !parts.iter().all(fits) {
            return None;
        }
        let at_own_host = check_server(&mut parts)?;
        Some(Self { parts, at_own_host })
    }

    /// Whether the request says which server it is.
    pub(crate) fn is_at_own_host(&self) -> bool {
        self.at_own_host
    }

    /// The URL for one request; none when it has no host where one is wanted.
    ///
    /// Fields and cookies are what a client writes freely: they are escaped, so that each stays one value.
    pub(super) fn expand(&self, head: &impl RequestHead, client: &Client) -> Option<Uri> {
        let (mut out, mut value) = (String::new(), Vec::new());
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(variable) => {
                    value.clear();
                    variable.push(&mut value, head, client);
                    let free = matches!(variable, Variable::Field(_) | Variable::Cookie(_) | Variable::User);
                    out.extend(percent_encode(&value, if free { COMPONENT } else { FOREIGN }));
                }
            }
        }
        let uri: Uri = out.parse().ok()?;
        uri.host().filter(|host| !host.is_empty())?;
        Some(uri)
    }
}

/// Whether scheme and server are what they may be, and if so, whether the server is the request's host.
fn check_server(parts: &mut [Part]) -> Option<bool> {
    let (mut authority, mut at_own_host) = (String::new(), false);
    let (first, rest) = parts.split_first_mut()?;
    let rest = match first {
        Part::Text(text) => {
            let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
            authority.push_str(text);
            rest
        }
        Part::Variable(Variable::Scheme) => {
            let (Part::Text(text), rest) = rest.split_first_mut()? else { return None };
            authority.push_str(text.strip_prefix("://")?);
            rest
        }
        Part::Variable(_) => return None,
    };
    for part in rest {
        if authority.contains(['/', '?']) {
            break;
        }
        match part {
            Part::Text(text) => authority.push_str(text),
            Part::Variable(Variable::RequestUri | Variable::Uri) => break,
            Part::Variable(variable @ (Variable::Host | Variable::Authority)) => {
                // Not the port that the client likes to name.
                *variable = Variable::Host;
                authority.push_str("host");
                at_own_host = true;
            }
            Part::Variable(_) => return None,
        }
    }
    let authority = authority.split(['/', '?']).next()?;
    let parsed: Authority = authority.parse().ok()?;
    let has_port = parsed.host().len() < authority.len();
    let fits =
        !authority.contains('@') && !parsed.host().is_empty() && (!has_port || parsed.port_u16().is_some());
    fits.then_some(at_own_host)
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    fn expanded(text: &str) -> Option<String> {
        let fields = [("host", "Shop.example:81"), ("x-a", "b&c d/../e"), ("cookie", "sid=7")];
        let head = get("http://shop.example/a/\"b?k=v", &fields);
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: true, now_us: 0, dice: 0 };
        Some(Url::parse(text)?.expand(&head, &client)?.to_string())
    }

    #[test]
    fn the_client_does_not_choose_the_server() {
        for (text, expected) in [
            ("http://auth", Some("http://auth/")),
            ("https://auth.ns.svc:8443/verify", Some("https://auth.ns.svc:8443/verify")),
            ("http://[::1]:80/", Some("http://[::1]:80/")),
            ("https://$host/verify", Some("https://shop.example/verify")),
            ("$scheme://auth.$http_host:8080/v", Some("https://auth.shop.example:8080/v")),
            ("http://auth$request_uri", Some("http://auth/a/%22b?k=v")),
            ("http://auth?u=$escaped_request_uri", Some("http://auth/?u=%2Fa%2F%22b%3Fk%3Dv")),
            (
                "http://auth/$request_method/$http_x_a?$cookie_sid$arg_k",
                Some("http://auth/GET/b%26c%20d%2F..%2Fe?7v"),
            ),
            ("http://$http_x_a/", None),
            ("http://auth$arg_k/", None),
            ("http://user@auth/", None),
            ("http://", None),
            ("http:///path", None),
            ("http://a b/", None),
            ("http://auth/#top", None),
            ("http://auth:port/", None),
            ("ftp://auth/", None),
            ("$host/verify", None),
            ("/verify", None),
            ("auth.example/verify", None),
        ] {
            assert_eq!(expanded(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_request_without_host_has_no_url_at_its_host() {
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: true, now_us: 0, dice: 0 };
        let url = Url::parse("https://$host/verify").unwrap();
        assert!(url.is_at_own_host() && !Url::parse("https://auth/$host").unwrap().is_at_own_host());
        assert_eq!(url.expand(&get("http:///x", &[]), &client), None);
    }
}
