//! Each annotation, read.

use std::time::Duration;

use super::*;
use crate::policy::{HeaderRule, Lifetimes, Origins, Per, Retry};
use crate::upstream::Method;

fn read(pairs: &[(&str, &str)]) -> Annotations {
    let annotations = pairs
        .iter()
        .map(|(name, value)| (format!("nginx.ingress.kubernetes.io/{name}"), (*value).to_owned()))
        .collect();
    Annotations::read(&ObjectKey::new("n", "i"), &annotations)
}

/// What is read without a complaint.
fn fine(pairs: &[(&str, &str)]) -> Annotations {
    let read = read(pairs);
    assert_eq!(read.problems, []);
    assert_eq!(read.settings.closed, None);
    read
}

/// The texts of problems.
fn faults(pairs: &[(&str, &str)]) -> Vec<String> {
    read(pairs).problems.into_iter().map(|(_, text)| text).collect()
}

#[test]
fn nothing_asks_for_nothing_but_hsts() {
    let none = fine(&[]);
    let hsts = HeaderValue::from_static("max-age=31536000");
    assert_eq!(none.settings, Settings { hsts: Some(hsts), ..Settings::default() });
    assert!(!none.patterns && !none.www && none.canary.is_none() && none.passwords.is_none());
}

#[test]
fn redirects_are_read() {
    for (pairs, to_https) in [
        (&[("ssl-redirect", "false")][..], ToHttps::Never),
        (&[("ssl-redirect", "True")], ToHttps::WhenServed),
        (&[("ssl-redirect", "false"), ("force-ssl-redirect", "true")], ToHttps::Always),
    ] {
        assert_eq!(fine(pairs).settings.redirects.to_https, to_https, "{pairs:?}");
    }
    let code = |pairs: &[(&str, &str)]| fine(pairs).settings.redirects.to.map(|(code, _)| code);
    let place = ("permanent-redirect", "https://b.example$request_uri");
    assert_eq!(code(&[place]), Some(301));
    assert_eq!(code(&[place, ("permanent-redirect-code", "308")]), Some(308));
    assert_eq!(code(&[place, ("temporal-redirect", "/later")]), Some(302));
    assert_eq!(fine(&[("app-root", "/app?x")]).settings.redirects.app_root.as_deref(), Some("/app?x"));
    for bad in [
        ("permanent-redirect", "b.example"),
        ("permanent-redirect", "https://b/$http_referer"),
        ("permanent-redirect-code", "200"),
        ("app-root", "https://b/"),
        ("ssl-redirect", "yes"),
    ] {
        assert_eq!(faults(&[bad]).len(), 1, "{bad:?}");
    }
}

#[test]
fn hsts_is_on_until_it_is_turned_off() {
    let hsts = |pairs: &[(&str, &str)]| fine(pairs).settings.hsts;
    assert_eq!(hsts(&[("hsts", "false"), ("hsts-max-age", "1")]), None);
    let all = [("hsts-max-age", "60"), ("hsts-include-subdomains", "true"), ("hsts-preload", "true")];
    assert_eq!(hsts(&all).unwrap(), "max-age=60; includeSubDomains; preload");
}

#[test]
fn what_keeps_requests_out_fails_closed() {
    for bad in [
        &[("whitelist-source-range", "10.0.0.0/33")][..],
        &[("allowlist-source-range", "")],
        &[("denylist-source-range", "office")],
        &[("auth-type", "digest"), ("auth-secret", "s")],
        &[("auth-type", "basic")],
        &[("auth-type", "basic"), ("auth-secret", "other/s")],
        &[("auth-type", "basic"), ("auth-secret", "s"), ("auth-secret-type", "file")],
        &[("auth-tls-secret", "other/ca")],
        &[("auth-tls-match-cn", "CN=ann")],
        &[("auth-tls-secret", "ca"), ("auth-tls-match-cn", "CN=(")],
        &[("auth-tls-secret", "ca"), ("auth-tls-verify-client", "maybe")],
        &[("backend-protocol", "HTTPS"), ("proxy-ssl-verify", "on")],
        &[("backend-protocol", "HTTPS"), ("proxy-ssl-verify", "maybe")],
        &[("proxy-ssl-secret", "other/s")],
        &[("auth-url", "auth.example/")],
        &[("auth-url", "https://$http_x/")],
        &[("auth-url", "https://auth.example/"), ("auth-method", "CONNECT")],
        &[("auth-url", "https://auth.example/"), ("auth-response-headers", "Content-Length")],
        &[("auth-url", "https://auth.example/"), ("auth-response-headers", "X-User, ,")],
        &[("satisfy", "some")],
        &[("backend-protocol", "FCGI")],
        &[("ssl-passthrough", "maybe")],
    ] {
        let read = read(bad);
        assert!(read.settings.closed.is_some(), "{bad:?}");
        assert!(read.problems[0].1.contains("answer 503 until"), "{bad:?} {:?}", read.problems);
    }
    // What only adds something fails open.
    for bad in [
        ("limit-rps", "0"),
        ("proxy-body-size", "1t"),
        ("custom-http-errors", "200"),
        ("rewrite-target", "x"),
        ("affinity", "ip"),
        ("upstream-hash-by", "$nothing"),
        ("upstream-vhost", "a b"),
        ("server-alias", "~^www"),
        ("proxy-next-upstream", "always"),
        ("load-balance", "least-request"),
        ("mirror-target", "test.example"),
        ("auth-signin", "javascript:x"),
    ] {
        let read = read(&[bad]);
        assert_eq!(read.settings.closed, None, "{bad:?}");
        assert_eq!(read.problems.len(), 1, "{bad:?}");
        assert_eq!(read.problems[0].0, Reason::BadAnnotation, "{bad:?}");
    }
}

#[test]
fn passwords_are_in_a_secret_of_the_own_namespace() {
    let map = fine(&[
        ("auth-type", "basic"),
        ("auth-secret", "n/s"),
        ("auth-secret-type", "auth-map"),
        ("auth-realm", "in"),
    ]);
    let source = map.passwords.unwrap();
    assert_eq!((source.secret.to_string().as_str(), source.is_map), ("n/s", true));
    assert_eq!(source.challenge, "Basic realm=\"in\", charset=\"UTF-8\"");
    let file = fine(&[("auth-type", "basic"), ("auth-secret", "s")]).passwords.unwrap();
    assert!(!file.is_map && file.challenge.to_str().unwrap().contains("Authentication Required"));
    assert_eq!(fine(&[("auth-secret", "s")]).passwords, None, "no auth-type, no authentication");
}

#[test]
fn limits_are_read_with_their_burst() {
    let limits = fine(&[
        ("limit-rps", "10"),
        ("limit-rpm", "300"),
        ("limit-connections", "7"),
        ("limit-burst-multiplier", "2"),
        ("limit-whitelist", "10.0.0.0/8, 192.0.2.1"),
    ]);
    let limits = limits.settings.limits.unwrap();
    let rates: Vec<_> = limits.rates.iter().map(|rate| (rate.requests, rate.per, rate.burst)).collect();
    assert_eq!(rates, [(300, Per::Minute, 600), (10, Per::Second, 20)]);
    assert_eq!((limits.at_a_time, limits.exempt.len(), &*limits.group), (Some(7), 2, "n/i"));
    let burst = fine(&[("limit-rps", "10")]).settings.limits.unwrap().rates[0].burst;
    assert_eq!(burst, 50);
    assert_eq!(fine(&[("limit-burst-multiplier", "2")]).settings.limits, None);
}

#[test]
fn cors_has_ingress_nginx_defaults() {
    assert_eq!(fine(&[("cors-allow-origin", "https://a.example")]).settings.cors, None, "not enabled");
    let cors = fine(&[("enable-cors", "true")]).settings.cors.unwrap();
    assert_eq!(cors.origins, Origins::Any);
    assert_eq!(cors.methods, "GET, PUT, POST, DELETE, PATCH, OPTIONS");
    assert_eq!(cors.max_age, "1728000");
    assert!(cors.credentials && cors.expose.is_none());
    let set = [
        ("enable-cors", "true"),
        ("cors-allow-origin", "https://a.example, https://*.b.example:8443"),
        ("cors-allow-methods", "GET"),
        ("cors-allow-headers", "X-A, X_b"),
        ("cors-expose-headers", "*, X-C"),
        ("cors-allow-credentials", "false"),
        ("cors-max-age", "600"),
    ];
    let cors = fine(&set).settings.cors.unwrap();
    assert!(matches!(cors.origins, Origins::Listed(list) if list.len() == 2));
    assert_eq!(
        (cors.methods, cors.headers),
        (HeaderValue::from_static("GET"), HeaderValue::from_static("X-A, X_b"))
    );
    assert_eq!((cors.expose.unwrap(), cors.credentials), (HeaderValue::from_static("*, X-C"), false));
    // An origin that cannot be read is nobody, not everybody.
    let bad = read(&[("enable-cors", "true"), ("cors-allow-origin", "a.example")]);
    assert_eq!(bad.settings.cors.unwrap().origins, Origins::Listed(Box::default()));
    assert_eq!(bad.problems.len(), 1);
}

#[test]
fn canaries_are_read() {
    assert_eq!(fine(&[("canary", "false"), ("canary-weight", "5")]).canary, None);
    let canary = fine(&[
        ("canary", "true"),
        ("canary-by-header", "X-Canary"),
        ("canary-by-cookie", "canary"),
        ("canary-weight", "150"),
        ("canary-weight-total", "1000"),
    ]);
    let canary = canary.canary.unwrap();
    assert_eq!(canary.header, Some(("x-canary".into(), HeaderRule::Word)));
    assert_eq!((canary.cookie.as_deref(), canary.weight, canary.total), (Some("canary"), 150, 1000));
    let rule =
        |pair| read(&[("canary", "true"), ("canary-by-header", "h"), pair]).canary.unwrap().header.unwrap().1;
    assert_eq!(rule(("canary-by-header-value", "eu")), HeaderRule::Value("eu".into()));
    assert!(matches!(rule(("canary-by-header-pattern", "^eu")), HeaderRule::Pattern(_)));
    // Neither becomes something that takes more requests.
    assert_eq!(rule(("canary-by-header-pattern", "(")), HeaderRule::Value("".into()));
    let unsure = read(&[("canary", "maybe"), ("canary-weight", "x")]);
    assert_eq!(unsure.canary, Some(Canary { total: 100, ..Canary::default() }));
    assert_eq!(unsure.problems.len(), 2);
}

#[test]
fn sessions_are_read() {
    let affinity = fine(&[("affinity", "cookie")]).settings.affinity.unwrap();
    assert_eq!((&*affinity.name, &*affinity.attributes), ("INGRESSCOOKIE", "; Path=/; HttpOnly"));
    let set = [
        ("affinity", "cookie"),
        ("session-cookie-name", "route"),
        ("session-cookie-path", "/shop"),
        ("session-cookie-expires", "100"),
        ("session-cookie-max-age", "200"),
        ("session-cookie-samesite", "lax"),
        ("session-cookie-domain", "a.example"),
        ("session-cookie-secure", "true"),
        ("affinity-canary-behavior", "legacy"),
    ];
    let affinity = fine(&set).settings.affinity.unwrap();
    let attributes = "; Path=/shop; Domain=a.example; Max-Age=200; SameSite=Lax; HttpOnly";
    assert_eq!((&*affinity.name, &*affinity.attributes), ("route", attributes));
    assert!(affinity.secure && !affinity.with_canary);
    let broken =
        [("affinity", "cookie"), ("session-cookie-path", "/; Domain=evil"), ("session-cookie-name", "a=b")];
    assert_eq!(faults(&broken).len(), 2);
    let persistent = read(&[("affinity", "cookie"), ("affinity-mode", "persistent")]);
    assert_eq!(persistent.problems[0].0, Reason::UnservedAnnotation);
    assert!(persistent.settings.affinity.is_some());
}

#[test]
fn endpoints_are_asked_as_told() {
    let read = fine(&[
        ("proxy-connect-timeout", "2"),
        ("proxy-read-timeout", "120"),
        ("proxy-send-timeout", "90s"),
        ("proxy-next-upstream", "error timeout http_503"),
        ("proxy-next-upstream-tries", "2"),
        ("proxy-next-upstream-timeout", "10"),
        ("proxy-body-size", "8m"),
        ("backend-protocol", "GRPC"),
        ("upstream-vhost", "inner.example:8080"),
        ("upstream-hash-by", "$remote_addr"),
        ("custom-http-errors", "404,503"),
        ("default-backend", "errors"),
        ("rewrite-target", "/$1"),
        ("x-forwarded-prefix", "/outer"),
        ("server-alias", "a.example,*.b.example"),
        ("from-to-www-redirect", "true"),
    ]);
    let seconds = |s| Some(Duration::from_secs(s));
    let upstream = &read.settings.upstream;
    assert_eq!((upstream.connect, upstream.read, upstream.send), (seconds(2), seconds(120), seconds(90)));
    let retry =
        Retry { tries: Some(2), within: seconds(10), ..Retry::parse("error timeout http_503").unwrap() };
    assert_eq!(upstream.retry, retry);
    assert_eq!(read.settings.body_limit.unwrap().get(), 8 << 20);
    assert_eq!(read.protocol, Some(Protocol::Grpc));
    assert_eq!(*read.settings.error_statuses, [404, 503]);
    assert_eq!(read.default_backend.as_deref(), Some("errors"));
    assert!(read.patterns && read.rewrite.is_some() && read.www && read.aliases.len() == 2);
    let endless = fine(&[
        ("proxy-next-upstream-tries", "0"),
        ("proxy-next-upstream-timeout", "0"),
        ("proxy-body-size", "0"),
    ]);
    assert_eq!(endless.settings.upstream.retry.tries, Some(crate::policy::MAX_TRIES));
    assert_eq!((endless.settings.upstream.retry.within, endless.settings.body_limit), (None, None));
}

#[test]
fn authentication_servers_are_read() {
    let url = ("auth-url", "https://auth.example/verify");
    let plain = fine(&[url]).settings.external.unwrap();
    assert_eq!((plain.method.as_str(), plain.response_fields.len()), ("GET", 0));
    assert!(plain.caching.is_none() && plain.sign_in.is_none() && !plain.always_set_cookie);
    assert_eq!(fine(&[("auth-signin", "/in")]).settings.external, None, "no auth-url, no authentication");
    let all = fine(&[
        url,
        ("auth-method", "POST"),
        ("auth-response-headers", "X-User,Authorization, Set-Cookie"),
        ("auth-signin", "https://$host/in"),
        ("auth-request-redirect", "/after"),
        ("auth-always-set-cookie", "true"),
        ("auth-cache-key", "$remote_user$http_authorization"),
        ("auth-cache-duration", "200 401 1m, 403 5s"),
        ("satisfy", "any"),
    ]);
    let external = all.settings.external.unwrap();
    assert_eq!(*external.response_fields, ["x-user", "authorization", "set-cookie"]);
    assert!(external.redirect.is_some() && external.always_set_cookie && all.settings.satisfy_any);
    assert_eq!(external.caching.as_ref().unwrap().lifetimes, Lifetimes::parse("200 401 1m, 403 5s").unwrap());

    let bad = read(&[url, ("auth-cache-key", "k"), ("auth-cache-duration", "200")]);
    assert_eq!((&bad.settings.external.unwrap().caching, bad.problems.len()), (&None, 1));
    let sign_in = |place: &str, param: &str| {
        fine(&[url, ("auth-signin", place), ("auth-signin-redirect-param", param)])
            .settings
            .external
            .unwrap()
            .sign_in
            .clone()
    };
    let way = "$scheme://$http_host$escaped_request_uri";
    for (place, expected) in [
        ("/in", format!("/in?to={way}")),
        ("/in?", format!("/in?to={way}")),
        ("/in?a=b", format!("/in?a=b&to={way}")),
        ("/in?to=", format!("/in?to=&to={way}")),
        ("/in?a&to=$request_uri", "/in?a&to=$request_uri".to_owned()),
    ] {
        assert_eq!(sign_in(place, "to"), Template::parse_location(&expected), "{place}");
    }
}

#[test]
fn mirrors_are_read() {
    let target = ("mirror-target", "https://test.example$request_uri");
    let mirror = fine(&[target]).settings.mirror.unwrap();
    assert!(mirror.with_body && mirror.host.is_none());
    let mirror = fine(&[target, ("mirror-request-body", "off"), ("mirror-host", "x.example")])
        .settings
        .mirror
        .unwrap();
    assert!(!mirror.with_body && mirror.host.as_ref().unwrap() == "x.example");
    assert_eq!(fine(&[("mirror-host", "x.example")]).settings.mirror, None);
}

/// What is served is read: an annotation with a value that nothing can be is complained about.
#[test]
fn every_served_annotation_is_read() {
    let free = [
        "auth-cache-key",
        "auth-secret",
        "auth-realm",
        "auth-tls-secret",
        "canary-by-header-value",
        "default-backend",
        "proxy-ssl-secret",
        "upstream-hash-by",
    ];
    for (name, known) in KNOWN.iter().filter(|(name, _)| !free.contains(name)) {
        if *known == Known::Served {
            let enabling = [
                ("canary", "true"),
                ("affinity", "cookie"),
                ("enable-cors", "true"),
                ("auth-type", "basic"),
                ("auth-secret", "s"),
                ("health-check", "http"),
            ];
            let mut pairs: Vec<_> = enabling.into_iter().filter(|(on, _)| on != name).collect();
            pairs.push((name, "\u{1}("));
            assert!(!faults(&pairs).is_empty(), "{name} is not read");
        }
    }
}

#[test]
fn load_balance_has_a_word_of_our_own() {
    let method = |key: &str, value: &str| {
        let annotations = [(key.to_owned(), value.to_owned())].into();
        let read = Annotations::read(&ObjectKey::new("n", "i"), &annotations);
        let faults: Vec<String> = read.problems.into_iter().map(|(_, text)| text).collect();
        (read.settings.upstream.balance.method, faults)
    };
    let (theirs, own) = ("nginx.ingress.kubernetes.io/load-balance", "weir.dev/load-balance");
    assert_eq!(method(theirs, "ewma"), (Method::Ewma, vec![]));
    assert_eq!(method(theirs, "round_robin"), (Method::RoundRobin, vec![]));
    assert_eq!(method(own, "round_robin"), (Method::RoundRobin, vec![]));
    assert_eq!(method(own, "least-request"), (Method::LeastRequest, vec![]));
    let fault = "annotation nginx.ingress.kubernetes.io/load-balance: \"least-request\" is not \"ewma\" or \
                 \"round_robin\"; weir.dev/load-balance has \"least-request\" too: it is ignored";
    assert_eq!(method(theirs, "least-request"), (Method::Ewma, vec![fault.to_owned()]));
    assert_eq!(method(own, "ip_hash").1.len(), 1);
}

#[test]
fn a_slow_start_has_its_time() {
    assert_eq!(fine(&[]).settings.upstream.balance.slow_start, None);
    let slow_start = fine(&[("slow-start", "90s")]).settings.upstream.balance.slow_start;
    assert_eq!(slow_start, Some(Duration::from_secs(90)));
    assert_eq!(faults(&[("slow-start", "soon")]).len(), 1);
}

#[test]
fn an_endpoint_has_at_most_so_many_connections() {
    let most = |text| fine(&[("max-connections", text)]).settings.upstream.balance.most;
    assert_eq!((most("1"), most("65535")), (Some(1), Some(65_535)));
    assert_eq!(fine(&[]).settings.upstream.balance.most, None);
    for bad in ["0", "65536", "-1", "many"] {
        let told = faults(&[("max-connections", bad)]);
        assert!(told.len() == 1 && told[0].contains("a whole number from 1 to 65535"), "{told:?}");
    }
}

#[test]
fn a_proxy_header_is_not_for_http2() {
    assert_eq!(faults(&[("proxy-protocol", "v2"), ("backend-protocol", "HTTPS")]), [""; 0]);
    let told = faults(&[("proxy-protocol", "v2"), ("backend-protocol", "GRPC")]);
    assert!(told.len() == 1 && told[0].contains("is not spoken with endpoints of HTTP/2"), "{told:?}");
}
