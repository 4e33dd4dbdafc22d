//! Redirects, aliases, rewrites.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::script::{END, Endpoint, Say};
use super::super::tls::{connect, tls_spec};
use super::*;

/// Status and `Location`.
async fn location(cluster: &Cluster, host: &str, path: &str) -> (u16, String) {
    let response = cluster.ask(host, path, "").await;
    (status(&response), field(&response, "location").to_owned())
}

fn to(status: u16, location: &str) -> (u16, String) {
    (status, location.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_tls_is_served_over_https_and_says_so() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.ingress("i", tls_spec("x.com", "none-yet"));
    assert_eq!(location(&cluster, "x.com", "/p?q=1").await, to(308, "https://x.com/p?q=1"));
    assert_eq!(cluster.get("x.com", "/.well-known/acme-challenge/t").await.0, 200);
    let https = async || {
        let mut stream = connect(&cluster, "x.com", &[b"http/1.1"]).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert_eq!(status(&response), 200);
        field(&response, "strict-transport-security").to_owned()
    };
    assert_eq!(https().await, "max-age=31536000");
    cluster.annotate("i", &[("hsts", "false"), ("ssl-redirect", "false")]);
    assert_eq!(https().await, "");
    let plain = cluster.ask("x.com", "/", "").await;
    assert_eq!((status(&plain), field(&plain, "strict-transport-security")), (200, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_ask_no_endpoint() {
    let (a, cluster) = one(&[("force-ssl-redirect", "true")]).await;
    assert_eq!(location(&cluster, "x.com", "/p").await, to(308, "https://x.com/p"));
    cluster.annotate("i", &[("permanent-redirect", "https://y.com$request_uri")]);
    assert_eq!(location(&cluster, "x.com", "/p?q").await, to(301, "https://y.com/p?q"));
    cluster.annotate("i", &[("temporal-redirect", "/later"), ("temporal-redirect-code", "307")]);
    assert_eq!(location(&cluster, "x.com", "/p").await, to(307, "/later"));
    assert_eq!(a.count(), 0);
    cluster.annotate("i", &[("app-root", "/app")]);
    assert_eq!(location(&cluster, "x.com", "/").await, to(302, "/app"));
    assert_eq!(cluster.echo("x.com", "/app").await["uri"], "/app");
    let metrics = cluster.metrics();
    assert!(metrics.contains("weir_ingress_policy_answers_total{policy=\"Redirect\"} 4"), "{metrics}");
}

/// Also for an Ingress that has no rule for `/`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_root_is_where_no_rule_is() {
    let (_a, cluster) = one(&[]).await;
    cluster.ingress("i", rules(&[("x.com", "/app", "a")]));
    cluster.annotate("i", &[("app-root", "/app")]);
    assert_eq!(location(&cluster, "x.com", "/").await, to(302, "/app"));
    assert_eq!(cluster.get("x.com", "/other").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_only_an_annotation_names() {
    let (_a, cluster) = one(&[("from-to-www-redirect", "true"), ("server-alias", "y.com,*.z.com")]).await;
    assert_eq!(location(&cluster, "www.x.com", "/p?q").await, to(308, "http://x.com/p?q"));
    assert_eq!(cluster.echo("y.com", "/p").await["headers"]["host"], "y.com");
    assert_eq!(cluster.echo("1.z.com", "/p").await["name"], "a");
    // Who has rules for the host goes first.
    let b = Backend::start("b").await;
    cluster.service("b", false, &[b.address]);
    cluster.ingress("j", rules(&[("www.x.com", "/", "b"), ("y.com", "/", "b")]));
    assert_eq!(cluster.echo("www.x.com", "/").await["name"], "b");
    assert_eq!(cluster.echo("y.com", "/").await["name"], "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_rewritten_with_groups() {
    let (_a, cluster) = one(&[]).await;
    cluster.ingress("i", rules(&[("x.com", "/api(/|$)(.*)", "a"), ("y.com", "/v[0-9]+/", "a")]));
    cluster
        .annotate("i", &[("use-regex", "true"), ("rewrite-target", "/$2"), ("x-forwarded-prefix", "/api")]);
    for (path, uri) in
        [("/api/users/7?full", "/users/7?full"), ("/API", "/"), ("/api//x", "/x"), ("/public/../api/x", "/x")]
    {
        let seen = cluster.echo("x.com", path).await;
        assert_eq!(
            (&seen["uri"], &seen["headers"]["x-forwarded-prefix"]),
            (&uri.into(), &"/api".into()),
            "{path}"
        );
    }
    assert_eq!(cluster.get("x.com", "/apis").await.0, 404);
    assert_eq!(super::endpoints::over_http2(&cluster, "/api/x?q").await["uri"], "/x?q");
    cluster.annotate("i", &[("use-regex", "true")]);
    assert_eq!(cluster.echo("y.com", "/v12/x").await["uri"], "/v12/x");
    assert_eq!(cluster.get("y.com", "/vx/").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_of_the_endpoint_become_the_clients() {
    const MOVED: &str = "HTTP/1.1 302 Found\r\nLocation: http://app:8080/in\r\nSet-Cookie: a=1; Path=/app/x\r\n\
                         Set-Cookie: b=2; Domain=app; Path=/y\r\nX-Other: http://app:8080/\r\nContent-Length: 0\r\n\r\n";
    let endpoint = Endpoint::follow(&[&[END, Say(MOVED), END, Say(MOVED)]]).await;
    let cluster = endpoint.cluster();
    let before = cluster.ask("x", "/", "").await;
    assert_eq!(field(&before, "location"), "http://app:8080/in");
    let annotations = [
        ("proxy-redirect-from", "http://app:8080/"),
        ("proxy-redirect-to", "https://x/"),
        ("proxy-cookie-domain", "app x"),
        ("proxy-cookie-path", "/app/ /"),
    ];
    cluster.annotate("a-x-", &annotations);
    let after = cluster.ask("x", "/", "").await;
    assert_eq!((status(&after), field(&after, "location")), (302, "https://x/in"), "{after}");
    assert_eq!(field(&after, "x-other"), "http://app:8080/");
    for cookie in ["set-cookie: a=1; Path=/x\r\n", "set-cookie: b=2; Domain=x; Path=/y\r\n"] {
        assert!(after.to_ascii_lowercase().contains(&cookie.to_ascii_lowercase()), "{after}");
    }
    assert_eq!(after.to_ascii_lowercase().matches("set-cookie").count(), 2, "{after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_may_stay_out_of_the_access_log() {
    let a = Backend::start("a").await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let cluster = Cluster::with(quick(), log.path());
    cluster.service("a", false, &[a.address]);
    cluster.route("x", "/", "a");
    cluster.route("y", "/", "a");
    cluster.annotate("a-x-", &[("enable-access-log", "false")]);
    assert_eq!((cluster.get("x", "/").await.0, cluster.get("y", "/").await.0), (200, 200));
    let lines = async || std::fs::read_to_string(log.path()).unwrap();
    eventually("the other's line", async || lines().await.contains("\"host\":\"y\"")).await;
    assert!(!lines().await.contains("\"host\":\"x\""), "{}", lines().await);
}
