//! What requests of the proxy's own take over from the client's: one to an authentication server, a copy to a mirror.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{Client, RequestHead};

/// Fields that are about the client's message or connection, or that are set here: what the client says in them is not
/// taken over.
const NOT_TAKEN: [&str; 26] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-auth-request-redirect",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-real-ip",
    "x-request-id",
    "x-scheme",
    "x-sent-from",
];

/// Whether a field is the proxy's to set, or the connection's, so that nobody else can have it set.
pub(crate) fn is_proxys(name: &HeaderName) -> bool {
    NOT_TAKEN.binary_search(&name.as_str()).is_ok()
}

/// The client's fields and who it is. `keep` says which of its fields.
pub(super) fn fields(
    head: &impl RequestHead,
    client: &Client,
    keep: impl Fn(&HeaderName) -> bool,
) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in head.every_field() {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
        else {
            continue;
        };
        if !is_proxys(&name) && keep(&name) && !is_nominated(head, &name) {
            fields.append(name, value);
        }
    }
    let address = client.address.to_string();
    set(&mut fields, "x-forwarded-for", &address);
    set(&mut fields, "x-real-ip", &address);
    set(&mut fields, "x-forwarded-host", head.authority());
    fields
}

/// What cannot stand in a field is left out.
pub(super) fn set(fields: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        fields.insert(HeaderName::from_static(name), value);
    }
}

/// Whether `Connection` names it (RFC 9110 §7.6.1).
fn is_nominated(head: &impl RequestHead, name: &HeaderName) -> bool {
    let tokens = head.fields(header::CONNECTION.as_str()).flat_map(|value| value.split(|&byte| byte == b','));
    tokens.map(<[u8]>::trim_ascii).any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    #[test]
    fn what_is_the_clients_own_goes_on() {
        assert!(NOT_TAKEN.is_sorted());
        let given = [
            ("host", "x.com:81"),
            ("accept", "a"),
            ("accept", "b"),
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("x-forwarded-for", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("x-original-url", "http://x.com/public"),
            ("if-none-match", "\"1\""),
        ];
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: true, now_us: 0, dice: 0 };
        let fields = fields(&get("http://x.com/", &given), &client, |name| name != header::IF_NONE_MATCH);
        let mut all: Vec<_> =
            fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        all.sort();
        assert_eq!(
            all,
            [
                "accept: a",
                "accept: b",
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-host: x.com:81",
                "x-real-ip: 192.0.2.1"
            ]
        );
    }
}
