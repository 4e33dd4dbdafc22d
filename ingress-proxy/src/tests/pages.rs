//! What operators see, of a proxy that serves.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::backend::Backend;
use super::cluster::{Cluster, eventually};
use super::role::free;
use crate::certificate::tests::pair;
use crate::compile::SecretFact;
use crate::pages::Question;

fn question(method: &str, url: &str, headers: &[&str], client: &str) -> Question {
    Question {
        method: method.to_owned(),
        url: url.to_owned(),
        headers: headers.iter().map(ToString::to_string).collect(),
        client: client.parse().unwrap(),
    }
}

fn ask(cluster: &Cluster, method: &str, url: &str, headers: &[&str], is_json: bool) -> String {
    let question = question(method, url, headers, "192.0.2.7");
    let (status, text) = cluster.page(&question.path_and_query(is_json));
    assert_eq!(status, 200, "{text}");
    text
}

pub(super) fn explained(cluster: &Cluster, url: &str) -> Value {
    explained_from(cluster, url, "192.0.2.7")
}

fn explained_from(cluster: &Cluster, url: &str, client: &str) -> Value {
    let (_, text) = cluster.page(&question("GET", url, &[], client).path_and_query(true));
    serde_json::from_str(&text).unwrap()
}

fn path(path: &str, service: &str) -> Value {
    json!({"path": path, "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 80}}}})
}

/// `shop.example` with two paths, a wildcard and rules for every host; nothing listens at the endpoints.
fn shop(endpoints: &[SocketAddr]) -> Cluster {
    let cluster = Cluster::start();
    cluster.service("web", false, endpoints);
    cluster.service("api", false, endpoints);
    cluster.service("empty", false, &[]);
    cluster.ingress(
        "shop",
        json!({
            "tls": [{"hosts": ["shop.example"], "secretName": "pair"}],
            "rules": [{"host": "shop.example", "http": {"paths": [path("/", "web"), path("/api", "api")]}}],
        }),
    );
    cluster.secret("pair", SecretFact::Usable(Arc::new(pair(&["shop.example"], 2, 20)), None));
    cluster.ingress(
        "wild",
        json!({"rules": [{"host": "*.example", "http": {"paths": [path("/api/cart", "web")]}}]}),
    );
    cluster.ingress("all", json!({"defaultBackend": {"service": {"name": "empty", "port": {"number": 80}}}}));
    cluster.ingress(
        "late",
        json!({"rules": [{"host": "shop.example", "http": {"paths": [path("/api", "web")]}}]}),
    );
    cluster
}

#[tokio::test]
async fn the_rule_that_wins_and_those_that_lost() {
    let cluster = shop(&["192.0.2.1:80".parse().unwrap(), "192.0.2.2:80".parse().unwrap()]);
    let said = ask(&cluster, "POST", "https://shop.example/api/./cart?x=1", &[], false);
    let conflict = "path \"/api\" of host \"shop.example\" is already served by Ingress n/late, which is older: this rule \
                    is not in use";
    let expected = format!(
        "\
POST https://shop.example/api/./cart?x=1 from 192.0.2.7
  certificate: Secret n/pair; for shop.example; from 2030-01-02T00:00:00Z to 2030-01-20T00:00:00Z
  routed on host \"shop.example\" and path \"/api/cart\"
  rule: shop.example, prefix /api, of Ingress n/late, to Service n/web
    lost: shop.example, prefix /, of Ingress n/shop, to Service n/web: it is shorter than /api
    lost: *.example, prefix /api/cart, of Ingress n/wild, to Service n/web: the host itself comes before a wildcard
    lost: any host, default, of Ingress n/all, to Service n/empty: a default backend is asked after every rule
    not in use, of Ingress n/shop: {conflict}
  redirect: passes, the client speaks TLS
  one of the endpoints of Service n/web by HTTP/1.1, ewma of 2
    192.0.2.1:80: 0 in flight, no answer yet, 0 connections kept
    192.0.2.2:80: 0 in flight, no answer yet, 0 connections kept
"
    );
    assert_eq!(said, expected);
    let unknown = explained(&cluster, "https://other.test/");
    assert_eq!(unknown["certificate"]["secret"], Value::Null);
    assert_eq!(unknown["certificate"]["covers"], false);
}

#[tokio::test]
async fn policies_say_why_in_their_order() {
    let cluster = shop(&["192.0.2.1:80".parse().unwrap()]);
    let annotations = [
        ("whitelist-source-range", "192.0.2.0/24"),
        ("enable-cors", "true"),
        ("limit-rps", "5"),
        ("proxy-body-size", "1k"),
        ("affinity", "cookie"),
        ("rewrite-target", "/new$1"),
        ("use-regex", "true"),
    ];
    cluster.annotate("shop", &annotations);
    let said = ask(
        &cluster,
        "POST",
        "https://shop.example/x?q",
        &["Content-Length: 9", "Cookie: INGRESSCOOKIE=a"],
        false,
    );
    let policies = "
  source range: passes, 192.0.2.7 may come here
  redirect: passes, the client speaks TLS
  cors: passes, the request names no origin
  limits: passes, 192.0.2.7 is within 5 requests per second and 25 beyond at once
  body size: passes, 9 bytes, at most 1024
  rewrite: passes, /x?q becomes /new?q
  affinity: passes, cookie INGRESSCOOKIE keeps the client at its endpoint
  the endpoint of Service n/web by HTTP/1.1, hash of 1
    192.0.2.1:80: 0 in flight, no answer yet, 0 connections kept  <- tied to it
";
    assert!(said.ends_with(policies), "{said}");

    let said = ask(&cluster, "POST", "https://shop.example/x", &["Content-Length: 2000"], false);
    let end = "
  body size: answers 413, the request body is larger than 1024 bytes
  the client gets 413: the request body is larger than 1024 bytes
";
    assert!(said.ends_with(end), "{said}");
    let redirected = explained(&cluster, "http://shop.example/x");
    assert_eq!(redirected["policies"][1]["policy"], "redirect");
    assert_eq!(redirected["answer"], json!({"status": 308, "why": "see https://shop.example/x"}));
    assert_eq!((&redirected["certificate"], &redirected["backends"]), (&Value::Null, &json!([])));
}

#[tokio::test]
async fn what_goes_nowhere_says_so() {
    let cluster = shop(&[]);
    let default = explained(&cluster, "http://other.test/x");
    assert_eq!(default["rule"]["kind"], "default");
    let why = "Service \"empty\" of Ingress n/all has no ready endpoints";
    assert_eq!(default["answer"], json!({"status": 503, "why": why}));
    cluster.ingress("all", json!({"rules": []}));
    let none = ask(&cluster, "GET", "http://other.test/x", &[], false);
    let expected =
        "  rule: none\n  the client gets 404: no Ingress rule matches host \"other.test\" path \"/x\"\n";
    assert!(none.ends_with(expected), "{none}");
    let refused = ask(&cluster, "GET", "http://other.test/a%2fb", &[], false);
    assert!(
        refused.ends_with("  the client gets 400: the path has an escaped slash or backslash (%2f, %5c)\n"),
        "{refused}"
    );
    let traced = explained(&cluster, "http://other.test/x").to_string()
        + &ask(&cluster, "TRACE", "http://x.test/", &[], false);
    assert!(traced.ends_with("  the client gets 405: the method TRACE is not served\n"), "{traced}");
    let (status, text) = cluster.page("/explain?method=GET&url=x&client=::1");
    assert_eq!(
        (status, text.as_str()),
        (400, "URL \"x\" is not of the form http://HOST/PATH or https://HOST/PATH\n")
    );
}

/// Questions take no turn, count for no limit, and leave no trace in the metrics; requests do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_changes_nothing() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let cluster = Cluster::start();
    cluster.service("web", false, &[a.address, b.address]);
    cluster.route("x.com", "/", "web");
    let name = "web-x.com-";
    cluster.annotate(
        name,
        &[("limit-rpm", "2"), ("limit-burst-multiplier", "1"), ("load-balance", "round_robin")],
    );
    let before = cluster.metrics();
    let ask = || explained_from(&cluster, "http://x.com/", "127.0.0.1")["policies"][0].clone();
    for _ in 0..20 {
        assert_eq!(ask()["status"], Value::Null);
    }
    assert_eq!(cluster.metrics(), before);
    let mut names = Vec::new();
    for _ in 0..2 {
        names.push(cluster.echo("x.com", "/").await["name"].clone());
    }
    let in_order = if a.address < b.address { ["a", "b"] } else { ["b", "a"] };
    assert_eq!(names, in_order, "it was the first one's turn");
    while cluster.get("x.com", "/").await.0 == 200 {}
    let why = "more than 2 requests per minute";
    assert_eq!(ask(), json!({"policy": "limits", "status": 503, "why": why}));
}

#[tokio::test]
async fn other_backends_are_shown_with_why() {
    let cluster = Cluster::start();
    let address = |n: u8| SocketAddr::from(([192, 0, 2, n], 80));
    for (name, endpoints) in [("web", [address(1)]), ("next", [address(2)]), ("pages", [address(3)])] {
        cluster.service(name, false, &endpoints);
    }
    cluster.ingress("main", json!({"rules": [{"host": "x.com", "http": {"paths": [path("/", "web")]}}]}));
    cluster.ingress("next", json!({"rules": [{"host": "x.com", "http": {"paths": [path("/", "next")]}}]}));
    cluster.annotate("next", &[("canary", "true"), ("canary-weight", "30"), ("canary-by-header", "x-next")]);
    cluster.annotate("main", &[("default-backend", "pages")]);
    let said = |headers: &[&str]| ask(&cluster, "GET", "http://x.com/", headers, false);
    let backends = "
  the endpoint of Service n/web by HTTP/1.1, ewma of 1
    192.0.2.1:80: 0 in flight, no answer yet, 0 connections kept
  canary: the endpoint of Service n/next by HTTP/1.1, ewma of 1
    192.0.2.2:80: 0 in flight, no answer yet, 0 connections kept
";
    let by_chance = "  canary: passes, 30 of 100 requests go to the canary: chance decides which";
    assert!(said(&[]).ends_with(&format!("{by_chance}{backends}")), "{}", said(&[]));
    let by_header = "  canary: passes, the request goes to the canary: its header says so";
    assert!(said(&["X-Next: always"]).ends_with(&format!("{by_header}{backends}")));

    cluster.endpoints("next", &[]);
    cluster.endpoints("web", &[]);
    let fallback = "
  default backend, for the rule's Service has no endpoints: the endpoint of Service n/pages by HTTP/1.1, ewma of 1
    192.0.2.3:80: 0 in flight, no answer yet, 0 connections kept
";
    assert!(said(&[]).ends_with(fallback), "{}", said(&[]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_shown_as_they_are() {
    let (good, gone) = (Backend::start("good").await, free());
    let cluster = Cluster::start();
    cluster.service("web", false, &[good.address, gone]);
    cluster.route("x.com", "/", "web");
    let endpoints = || {
        let endpoints = explained(&cluster, "http://x.com/")["backends"][0]["endpoints"].clone();
        let by = |address: SocketAddr| {
            let all = endpoints.as_array().unwrap();
            all.iter().find(|one| one["address"] == address.to_string()).unwrap().clone()
        };
        (by(good.address), by(gone))
    };
    eventually("the endpoint where nobody listens is ejected", async || {
        assert_eq!(cluster.get("x.com", "/").await.0, 200);
        endpoints().1["ejectedMs"].is_u64()
    })
    .await;
    let (good, _) = endpoints();
    assert_eq!((&good["ejectedMs"], &good["inFlight"]), (&Value::Null, &json!(0)));
    assert!(good["latencyMs"].as_u64().unwrap() >= 1 && good["connections"].as_u64().unwrap() >= 1, "{good}");
}

fn status(cluster: &Cluster, query: &str) -> Value {
    let (status, text) = cluster.page(&format!("/status.json?{query}"));
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_is_what_is_live() {
    let backend = Backend::start("a").await;
    let cluster = shop(&[backend.address]);
    cluster.annotate("shop", &[("limit-rps", "1000"), ("ssl-redirect", "false")]);
    let shown = status(&cluster, "");
    assert_eq!((&shown["hosts"], &shown["routes"]["total"]), (&json!(2), &json!(4)));
    let expected = json!({
        "host": "shop.example", "path": "/", "kind": "prefix", "ingress": "n/shop", "service": "n/web", "fault": null,
        "policies": ["redirect", "hsts", "limit", "tls"],
    });
    assert_eq!(shown["routes"]["rows"][1], expected);
    let fault = |row: &Value| row["fault"].as_str().map(str::to_owned);
    let rows = shown["routes"]["rows"].as_array().unwrap();
    assert_eq!(
        (rows[0]["host"].as_str(), fault(&rows[0])),
        (Some("*"), Some("no ready endpoints".to_owned()))
    );
    let certificate = &shown["certificates"]["rows"][0];
    assert_eq!((&certificate["host"], &certificate["secret"]), (&json!("shop.example"), &json!("n/pair")));
    assert_eq!(shown["certificates"]["total"], 2, "and the default one");
    assert_eq!(shown["problems"]["rows"][0]["reason"], "Conflict");

    for (path, host) in [("/", "shop.example"), ("/status/503", "shop.example"), ("/", "no.test")] {
        cluster.get(host, path).await;
    }
    let counted = json!([["none", 0], ["1xx", 0], ["2xx", 1], ["3xx", 0], ["4xx", 0], ["5xx", 2]]);
    eventually("all requests are counted", async || status(&cluster, "")["requests"] == counted).await;
    let metrics = cluster.metrics();
    for line in [
        "weir_ingress_host_requests_total{host=\"shop.example\",class=\"2xx\"} 1",
        "weir_ingress_host_requests_total{host=\"shop.example\",class=\"5xx\"} 1",
        "weir_ingress_host_requests_total{host=\"*\",class=\"5xx\"} 1",
        "weir_ingress_certificate_expiry_timestamp_seconds{secret=\"n/pair\"} 1895097600",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test]
async fn twenty_thousand_routes_come_in_pages() {
    let cluster = Cluster::start();
    cluster.service("web", false, &[]);
    let paths =
        |host: usize| -> Vec<Value> { (0..40).map(|n| path(&format!("/{host}/{n}"), "web")).collect() };
    let rules: Vec<Value> =
        (0..500).map(|n| json!({"host": format!("h{n:03}.example"), "http": {"paths": paths(n)}})).collect();
    cluster.ingress("many", json!({ "rules": rules }));
    let first = status(&cluster, "");
    assert_eq!((&first["routes"]["total"], &first["routes"]["most"]), (&json!(20_000), &json!(100)));
    let rows = |status: &Value| status["routes"]["rows"].as_array().unwrap().clone();
    assert_eq!(rows(&first).len(), 100);
    let third = status(&cluster, "from=200");
    assert_eq!((&third["routes"]["from"], &rows(&third)[0]["host"]), (&json!(200), &json!("h005.example")));
    let few = status(&cluster, "filter=H499.ex");
    assert_eq!((&few["routes"]["total"], rows(&few).len()), (&json!(40), 40));
    let none = status(&cluster, "from=30000");
    assert_eq!((&none["routes"]["from"], rows(&none).len()), (&json!(20_000), 0));
    assert!(first.to_string().len() < 50_000, "{} bytes", first.to_string().len());
}

#[tokio::test]
async fn pages_say_what_a_browser_may_do_with_them() {
    let cluster = Cluster::start();
    for (path, kind) in [
        ("/status", "text/html; charset=utf-8"),
        ("/status.css", "text/css; charset=utf-8"),
        ("/status.js", "text/javascript; charset=utf-8"),
        ("/status.json", "application/json"),
    ] {
        let page = cluster.pages.answer(path, "").unwrap();
        assert_eq!(page.headers()["content-type"], kind);
        assert_eq!(page.headers()["x-content-type-options"], "nosniff");
        let policy = page.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"));
    }
    assert!(cluster.pages.answer("/other", "").is_none());
    assert_eq!(crate::Pages::default().answer("/status", "").unwrap().status(), 503, "nothing is served yet");
}
