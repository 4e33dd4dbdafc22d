//! What `before` decides, in which order, and what `after` adds.

use http::HeaderMap;

use super::fake::{Head, get};
use super::*;

fn client(https: bool) -> Client {
    Client { address: "192.0.2.1".parse().unwrap(), https, now_us: 0, dice: 7 }
}

fn policy(settings: Settings) -> Arc<Policy> {
    Arc::new(Policy { settings: Arc::new(settings), host_has_tls: true, ..Policy::default() })
}

fn before(policy: &Arc<Policy>, head: &Head, https: bool) -> Decision {
    policy.before(head, &client(https), &Memory::new(&PolicyMetrics::default()))
}

fn answer(policy: &Arc<Policy>, head: &Head, https: bool) -> Reply {
    match before(policy, head, https) {
        Decision::Answer(reply) => reply,
        other => panic!("{other:?}"),
    }
}

fn forward(policy: &Arc<Policy>, head: &Head) -> Box<Passage> {
    match before(policy, head, true) {
        Decision::Forward(passage) => passage,
        other => panic!("{other:?}"),
    }
}

/// Everything that answers, in one policy: each is taken away after it has answered.
#[test]
fn the_order_of_answers() {
    let challenge = BasicAuth::challenge("here").unwrap();
    let mut settings = Settings {
        closed: Some("shut".into()),
        sources: Sources { deny: ["192.0.2.1".parse().unwrap()].into(), ..Sources::default() },
        cors: Some(Cors {
            origins: Origins::Any,
            methods: HeaderValue::from_static("PUT"),
            headers: HeaderValue::from_static("x"),
            expose: None,
            credentials: false,
            max_age: HeaderValue::from_static("1"),
        }),
        limits: Some(Limits { at_a_time: Some(0), ..Limits::default() }),
        auth: Some(BasicAuth { challenge, users: Arc::default() }),
        body_limit: NonZeroU64::new(1),
        ..Settings::default()
    };
    let mut head = get("http://a.com/x", &[("content-length", "2"), ("origin", "https://o")]);
    head.method = "OPTIONS";
    head.fields.push(("access-control-request-method".into(), b"PUT".to_vec()));
    let by = |settings: &Settings, head: &Head, https| answer(&policy(settings.clone()), head, https).by;
    assert_eq!(by(&settings, &head, false), By::Closed);
    settings.closed = None;
    assert_eq!(by(&settings, &head, false), By::SourceRange);
    settings.sources = Sources::default();
    assert_eq!(by(&settings, &head, false), By::Redirect);
    assert_eq!(by(&settings, &head, true), By::Cors);
    head.method = "PUT";
    assert_eq!(by(&settings, &head, true), By::ConnectionLimit);
    settings.limits = None;
    assert_eq!(by(&settings, &head, true), By::BasicAuth);
    settings.auth = None;
    assert_eq!(by(&settings, &head, true), By::BodySize);
    settings.body_limit = None;
    forward(&policy(settings), &head);
}

#[test]
fn every_answer_says_hsts_over_https_only() {
    let closed = Settings {
        closed: Some("shut".into()),
        hsts: Some(HeaderValue::from_static("max-age=1")),
        ..Settings::default()
    };
    let head = get("http://a.com/", &[]);
    let policy = policy(closed);
    assert_eq!(answer(&policy, &head, true).fields["strict-transport-security"], "max-age=1");
    assert!(answer(&policy, &head, false).fields.is_empty());
    let without = Arc::new(Policy { host_has_tls: false, ..(*policy).clone() });
    assert!(answer(&without, &head, true).fields.is_empty());
}

#[test]
fn the_endpoints_own_hsts_stays() {
    let hsts = Some(HeaderValue::from_static("max-age=1"));
    let passage = forward(&policy(Settings { hsts, ..Settings::default() }), &get("http://a.com/", &[]));
    let mut response = HeaderMap::new();
    passage.after(200, &mut response);
    assert_eq!(response["strict-transport-security"], "max-age=1");
    response.insert("strict-transport-security", HeaderValue::from_static("max-age=2"));
    passage.after(200, &mut response);
    assert_eq!(response["strict-transport-security"], "max-age=2");
}

#[test]
fn a_passage_carries_what_is_different() {
    let settings = Settings {
        vhost: Some(HeaderValue::from_static("inner")),
        prefix: Some(HeaderValue::from_static("/outer")),
        body_limit: NonZeroU64::new(5),
        affinity: Some(Affinity {
            name: "s".into(),
            attributes: "; Path=/".into(),
            secure: false,
            with_canary: true,
        }),
        error_statuses: [404].into(),
        ..Settings::default()
    };
    let rewrite = Rewrite {
        pattern: crate::table::Pattern::path("/x(.*)").unwrap(),
        target: Replacement::parse("/y$1").unwrap(),
    };
    let policy = Arc::new(Policy { rewrite: Some(rewrite), ..(*policy(settings)).clone() });
    let passage = forward(&policy, &get("http://a.com/x/1?q", &[]));
    assert_eq!(passage.target(), Some("/y/1?q"));
    assert_eq!(passage.host().unwrap(), "inner");
    let fields: Vec<_> = passage.fields().map(|(name, value)| (name.to_string(), value.clone())).collect();
    assert_eq!(fields, [("x-forwarded-prefix".to_owned(), HeaderValue::from_static("/outer"))]);
    assert!(passage.rank_by().is_some() && !passage.to_canary());
    assert!(passage.replaces(404) && !passage.replaces(500));
    assert_eq!(passage.body_limit(), Some(5));
    assert_eq!(passage.refuse_body().unwrap().status, 413);
    let mut response = HeaderMap::new();
    passage.after(200, &mut response);
    assert_eq!(response["set-cookie"], "s=0000000000000007; Path=/; Secure");
}

#[test]
fn a_path_that_cannot_be_rewritten_is_refused() {
    let rewrite = Rewrite {
        pattern: crate::table::Pattern::path("/(.*)x(.*)").unwrap(),
        target: Replacement::parse("/$1$2").unwrap(),
    };
    let policy = Arc::new(Policy { rewrite: Some(rewrite), ..(*policy(Settings::default())).clone() });
    assert_eq!(answer(&policy, &get("http://a.com/.x./q", &[]), true).status, 400);
}

#[test]
fn settings_that_do_nothing_are_known() {
    let hsts = Some(HeaderValue::from_static("max-age=1"));
    let never = Redirects { to_https: ToHttps::Never, ..Redirects::default() };
    let always = Redirects { to_https: ToHttps::Always, ..Redirects::default() };
    assert!(Settings { hsts, redirects: never, ..Settings::default() }.are_idle_without_tls());
    assert!(!Settings { redirects: always, ..Settings::default() }.are_idle_without_tls());
    assert!(!Settings { body_limit: NonZeroU64::new(1), ..Settings::default() }.are_idle_without_tls());
}
