//! Copies of requests for another server, whose answers nobody sees.

use std::sync::Arc;

use http::{HeaderValue, Request, header};

use super::own_request::{fields, set};
use super::url::Url;
use super::{Client, RequestHead};

/// `mirror-target` and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) url: Url,
    /// `mirror-host`, where it is not the URL's.
    pub(crate) host: Option<HeaderValue>,
    /// `mirror-request-body`.
    pub(crate) with_body: bool,
    /// Whose copies in flight are counted together.
    pub(crate) group: Arc<str>,
}

/// The copy of one request, without its body.
#[derive(Debug)]
pub(crate) struct Duplicate {
    /// Nothing when the request makes no URL.
    pub(crate) request: Option<Request<()>>,
    pub(crate) mirror: Arc<Mirror>,
}

impl Duplicate {
    /// `drops` says which fields of the client's no endpoint gets.
    pub(super) fn new(
        mirror: &Arc<Mirror>,
        head: &impl RequestHead,
        client: &Client,
        drops: impl Fn(&str) -> bool,
    ) -> Self {
        let request = mirror.url.expand(head, client).zip(head.method().parse().ok());
        let request = request.map(|(uri, method)| {
            let mut request = Request::new(());
            (*request.uri_mut(), *request.method_mut()) = (uri, method);
            *request.headers_mut() = fields(head, client, |name| !drops(name.as_str()));
            set(request.headers_mut(), "x-forwarded-proto", if client.https { "https" } else { "http" });
            if let Some(host) = &mirror.host {
                request.headers_mut().insert(header::HOST, host.clone());
            }
            request
        });
        Self { request, mirror: Arc::clone(mirror) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::get;
    use super::*;

    #[test]
    fn a_copy_is_the_same_request_elsewhere() {
        let url = Url::parse("https://test.example$request_uri").unwrap();
        let mirror =
            Mirror { url, host: Some("other".parse().unwrap()), with_body: true, group: "n/i".into() };
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: true, now_us: 0, dice: 0 };
        let head =
            get("http://x.com/p?q=1", &[("host", "x.com"), ("authorization", "secret"), ("accept", "a")]);
        let copy = Duplicate::new(&Arc::new(mirror), &head, &client, |name| name == "authorization");
        let request = copy.request.unwrap();
        assert_eq!(request.uri(), "https://test.example/p?q=1");
        for (name, expected) in [("host", "other"), ("accept", "a"), ("x-forwarded-proto", "https")] {
            assert_eq!(request.headers()[name], expected);
        }
        assert!(!request.headers().contains_key("authorization"));
    }
}
