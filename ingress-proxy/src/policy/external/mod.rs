//! External authentication (nginx's `auth_request`): another server is asked whether a request may come in.
//!
//! Here is what it is asked, and what its answer means; who asks it is [`crate::subrequest`], by [`Asker`]. Whatever is no
//! clear yes keeps the request out.

mod lifetimes;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};

pub(crate) use lifetimes::Lifetimes;

use super::own_request::{fields, set};
use super::template::Template;
use super::url::Url;
use super::{By, Client, Reply, RequestHead};

/// Names in `auth-response-headers`.
pub(crate) const MAX_RESPONSE_FIELDS: usize = 64;

/// `auth-url` and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExternalAuth {
    pub(crate) url: Url,
    pub(crate) method: Method,
    /// Fields of its answer that the endpoint gets, and that no client can set: `auth-response-headers`.
    pub(crate) response_fields: Box<[HeaderName]>,
    /// Where who is not known is sent: `auth-signin`, with the way back.
    pub(crate) sign_in: Option<Template>,
    /// `auth-request-redirect`.
    pub(crate) redirect: Option<Template>,
    /// Its cookies go to the client whatever the endpoint answers.
    pub(crate) always_set_cookie: bool,
    pub(crate) caching: Option<Caching>,
    /// Whose requests in flight are counted together.
    pub(crate) group: Arc<str>,
}

/// `auth-cache-key` and `auth-cache-duration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caching {
    pub(crate) key: Template,
    pub(crate) lifetimes: Lifetimes,
    /// What is asked, so that another URL is another answer.
    pub(crate) asked: Box<str>,
}

/// Who asks the server.
pub(crate) trait Asker {
    /// Its answer, or why there is none; in bounded time.
    fn ask(&self, question: &Question) -> impl Future<Output = Heard> + Send;
}

/// What the server is asked about one request.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) request: Request<()>,
    /// What the answer is remembered by, if it may be.
    pub(crate) cache_key: Option<Vec<u8>>,
    /// Longest wait for the answer, if the rule has its own.
    pub(crate) wait: Option<Duration>,
    pub(crate) settings: Arc<ExternalAuth>,
    sign_in: Option<HeaderValue>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Heard {
    Answer(Arc<AuthAnswer>),
    /// Too many requests wait for such an answer.
    Busy,
    /// There was no answer: no connection, not in time, or none that can be read.
    Nothing(&'static str),
}

/// What is kept of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuthAnswer {
    pub(crate) status: u16,
    /// Those that the endpoint or the client may get.
    pub(crate) fields: HeaderMap,
}

impl AuthAnswer {
    /// Bytes that it takes, about.
    pub(crate) fn size(&self) -> usize {
        const EACH: usize = 64;
        self.fields.iter().map(|(name, value)| name.as_str().len() + value.len() + EACH).sum::<usize>() + EACH
    }
}

impl ExternalAuth {
    /// What is kept of an answer with this head.
    pub(crate) fn keep(&self, status: u16, all: &HeaderMap) -> AuthAnswer {
        let mut fields = HeaderMap::new();
        let of_the_client = [header::SET_COOKIE, header::WWW_AUTHENTICATE];
        for name in of_the_client.iter().chain(&self.response_fields) {
            if !fields.contains_key(name) {
                for value in all.get_all(name) {
                    fields.append(name, value.clone());
                }
            }
        }
        AuthAnswer { status, fields }
    }

    /// Whether a client's field could be taken for one of the server's. Those who read fields as variables of an
    /// environment (RFC 3875 §4.1.18) cannot tell `-` from `_`.
    pub(super) fn owns(&self, name: &str) -> bool {
        let same = |a: u8, b: u8| {
            a.eq_ignore_ascii_case(&b) || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'))
        };
        self.response_fields.iter().any(|own| {
            own.as_str().len() == name.len()
                && own.as_str().bytes().zip(name.bytes()).all(|(a, b)| same(a, b))
        })
    }
}

impl Question {
    /// `scope` names the rule, whose answers are no other's.
    pub(super) fn new(
        settings: &Arc<ExternalAuth>,
        head: &impl RequestHead,
        client: &Client,
        scope: &str,
        wait: Option<Duration>,
    ) -> Result<Self, Reply> {
        let uri = settings.url.expand(head, client).ok_or_else(|| {
            Reply::new(500, By::ExternalAuth, "the request makes no URL to ask for authentication")
        })?;
        let scheme = if client.https { "https" } else { "http" };
        let text = |template: &Template| String::from_utf8(template.expand(head, client)).unwrap_or_default();
        let mut request = Request::new(());
        *request.method_mut() = settings.method.clone();
        *request.uri_mut() = uri;
        let fields_of = request.headers_mut();
        // Whether the resource has changed is no question of who asks for it.
        *fields_of = fields(head, client, |name| !name.as_str().starts_with("if-") && *name != header::RANGE);
        let target = super::origin_form(head);
        set(fields_of, "x-original-url", &format!("{scheme}://{}{target}", head.authority()));
        set(fields_of, "x-original-method", head.method());
        set(fields_of, "x-original-uri", &target);
        set(fields_of, "x-scheme", scheme);
        set(fields_of, "x-sent-from", "nginx-ingress-controller");
        set(fields_of, "x-auth-request-redirect", &settings.redirect.as_ref().map_or(target, text));
        let cache_key = settings.caching.as_ref().map(|caching| {
            // No part holds a zero byte but the last one.
            let mut key = [scope.as_bytes(), caching.asked.as_bytes(), head.host().as_bytes()].join(&0);
            key.push(0);
            key.extend(caching.key.expand(head, client));
            key
        });
        let sign_in = settings.sign_in.as_ref().and_then(|place| HeaderValue::try_from(text(place)).ok());
        Ok(Self { request, cache_key, wait, settings: Arc::clone(settings), sign_in })
    }

    /// Whether the request may come in; if not, what the client hears.
    pub(super) fn judge(self, heard: Heard) -> Result<Arc<AuthAnswer>, Reply> {
        let answer = match heard {
            Heard::Answer(answer) => answer,
            Heard::Busy => {
                let text = "too many requests wait for their authentication, try again";
                return Err(Reply::new(503, By::ExternalAuth, text));
            }
            Heard::Nothing(why) => {
                return Err(Reply::new(500, By::ExternalAuth, format!("the authentication server {why}")));
            }
        };
        let mut reply = match (answer.status, self.sign_in) {
            (200..300, _) => return Ok(answer),
            (401, Some(place)) => {
                Reply::new(302, By::ExternalAuth, "sign in first").with(header::LOCATION, place)
            }
            (401, None) => Reply::new(401, By::ExternalAuth, "the authentication server does not know you"),
            (403, _) => Reply::new(403, By::ExternalAuth, "the authentication server does not let you in"),
            (status, _) => {
                let text = format!("the authentication server answered with status {status}");
                return Err(Reply::new(500, By::ExternalAuth, text));
            }
        };
        for cookie in answer.fields.get_all(header::SET_COOKIE) {
            reply = reply.with(header::SET_COOKIE, cookie.clone());
        }
        if reply.status != 302 {
            for challenge in answer.fields.get_all(header::WWW_AUTHENTICATE) {
                reply = reply.with(header::WWW_AUTHENTICATE, challenge.clone());
            }
        }
        Err(reply)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::fake::get;
    use super::*;

    pub(crate) fn at(url: &str) -> ExternalAuth {
        ExternalAuth {
            url: Url::parse(url).unwrap(),
            method: Method::GET,
            response_fields: [HeaderName::from_static("x-user")].into(),
            sign_in: None,
            redirect: None,
            always_set_cookie: false,
            caching: None,
            group: "n/i".into(),
        }
    }

    pub(crate) fn answer(status: u16, fields: &[(&'static str, &str)]) -> Heard {
        let mut all = HeaderMap::new();
        for (name, value) in fields {
            all.append(*name, value.parse().unwrap());
        }
        Heard::Answer(Arc::new(at("http://auth").keep(status, &all)))
    }

    fn question(settings: ExternalAuth) -> Question {
        let client = Client { address: "192.0.2.1".parse().unwrap(), https: true, now_us: 0, dice: 0 };
        let fields =
            [("host", "x.com:81"), ("cookie", "a=b"), ("if-none-match", "1"), ("x-original-url", "y")];
        Question::new(&Arc::new(settings), &get("http://x.com/p?q=1", &fields), &client, "rule", None)
            .unwrap()
    }

    #[test]
    fn what_the_server_is_asked() {
        let asked = question(at("http://auth/v?u=$escaped_request_uri")).request;
        assert_eq!(
            (asked.method().as_str(), asked.uri().to_string().as_str()),
            ("GET", "http://auth/v?u=%2Fp%3Fq%3D1")
        );
        for (name, expected) in [
            ("x-original-url", "https://x.com:81/p?q=1"),
            ("x-original-method", "GET"),
            ("x-auth-request-redirect", "/p?q=1"),
            ("x-forwarded-for", "192.0.2.1"),
            ("cookie", "a=b"),
        ] {
            assert_eq!(asked.headers()[name], expected, "{name}");
        }
        assert!(!asked.headers().contains_key("if-none-match") && !asked.headers().contains_key("host"));
        let redirect = Template::parse("https://$host/after");
        let other = question(ExternalAuth { redirect, method: Method::POST, ..at("http://auth") }).request;
        assert_eq!(other.headers()["x-auth-request-redirect"], "https://x.com/after");
        assert_eq!(other.method(), Method::POST);
    }

    #[test]
    fn only_a_clear_yes_lets_in() {
        let fields =
            [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("www-authenticate", "Bearer"), ("x-user", "ann")];
        for status in [200, 204, 299] {
            let granted = question(at("http://auth")).judge(answer(status, &fields)).unwrap();
            assert_eq!(granted.fields["x-user"], "ann");
        }
        let refused = |settings, heard| question(settings).judge(heard).unwrap_err();
        for (status, expected) in
            [(401, 401), (403, 403), (302, 500), (404, 500), (500, 500), (199, 500), (300, 500)]
        {
            assert_eq!(refused(at("http://auth"), answer(status, &fields)).status, expected, "{status}");
        }
        let reply = refused(at("http://auth"), answer(401, &fields));
        assert_eq!(reply.fields.get_all("set-cookie").iter().count(), 2);
        assert_eq!(reply.fields["www-authenticate"], "Bearer");
        assert!(!reply.fields.contains_key("x-user"));
        assert_eq!(refused(at("http://auth"), Heard::Nothing("is away")).status, 500);
        assert_eq!(refused(at("http://auth"), Heard::Busy).status, 503);

        let sign_in = Template::parse_location("https://$host/in?rd=$escaped_request_uri");
        let signing = || ExternalAuth { sign_in: sign_in.clone(), ..at("http://auth") };
        let reply = refused(signing(), answer(401, &fields));
        assert_eq!(
            (reply.status, &reply.fields["location"]),
            (302, &"https://x.com/in?rd=%2Fp%3Fq%3D1".parse().unwrap())
        );
        assert!(reply.fields.contains_key("set-cookie") && !reply.fields.contains_key("www-authenticate"));
        assert_eq!(refused(signing(), answer(403, &fields)).status, 403, "who is known need not sign in");
    }

    #[test]
    fn an_answer_is_remembered_by_all_that_it_may_depend_on() {
        let caching = |key: &str, asked: &str| {
            let (key, lifetimes) = (Template::parse(key).unwrap(), Lifetimes::default());
            Some(Caching { key, lifetimes, asked: asked.into() })
        };
        let key = |key: &str, asked| {
            question(ExternalAuth { caching: caching(key, asked), ..at("http://auth") }).cache_key
        };
        assert_eq!(key("$cookie_a", "u").unwrap(), b"rule\0u\0x.com\0b");
        assert_ne!(key("$cookie_a", "u"), key("$cookie_a", "v"));
        assert_eq!(question(at("http://auth")).cache_key, None);
    }

    #[test]
    fn a_name_is_the_servers_in_any_spelling() {
        let auth = at("http://auth");
        assert!(auth.owns("X-User") && auth.owns("x_user"));
        assert!(!auth.owns("x-users") && !auth.owns("x.user"));
    }
}
