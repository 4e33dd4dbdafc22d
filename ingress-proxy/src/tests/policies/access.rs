//! Who may come in, how often, and what browsers are told.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;

use super::super::cluster::{eventually, quick};
use super::*;
use crate::compile::SecretFact;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_ranges() {
    let (a, cluster) = one(&[("whitelist-source-range", "10.0.0.0/8,127.0.0.0/8")]).await;
    assert_eq!(cluster.get("x.com", "/").await.0, 200);
    cluster.annotate("i", &[("allowlist-source-range", "10.0.0.0/8")]);
    assert_eq!(cluster.get("x.com", "/").await, (403, "403: 127.0.0.1 may not come here\n".to_owned()));
    cluster.annotate("i", &[("denylist-source-range", "127.0.0.1")]);
    // Nobody whom we trust says otherwise.
    assert_eq!(status(&cluster.ask("x.com", "/", "X-Forwarded-For: 10.1.1.1\r\n").await), 403);
    assert_eq!(a.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_says_who_asks_and_how() {
    let a = Backend::start("a").await;
    let cluster = Cluster::trusting(&["127.0.0.0/8".parse().unwrap()], quick(), Path::new("off"));
    cluster.service("a", false, &[a.address]);
    cluster.ingress("i", rules(&[("x.com", "/", "a")]));
    cluster.annotate("i", &[("allowlist-source-range", "10.0.0.0/8"), ("force-ssl-redirect", "true")]);
    let ask = async |address: &str, proto: &str| {
        let fields = format!("X-Forwarded-For: {address}\r\nX-Forwarded-Proto: {proto}\r\n");
        status(&cluster.ask("x.com", "/", &fields).await)
    };
    assert_eq!(ask("10.1.1.1", "https").await, 200);
    assert_eq!(ask("10.1.1.1", "http").await, 308);
    assert_eq!(ask("10.1.1.1, 192.0.2.1", "https").await, 403, "the nearest that nobody vouches for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_kept_closed_otherwise_is_closed() {
    let (a, cluster) = one(&[("whitelist-source-range", "everybody")]).await;
    let (status, text) = cluster.get("x.com", "/").await;
    assert!(status == 503 && text.contains("whitelist-source-range is not a list of networks"), "{text}");
    cluster.annotate("i", &[("auth-url", "auth.example")]);
    assert_eq!(cluster.get("x.com", "/").await.0, 503);
    assert_eq!(a.count(), 0);
}

fn login(user: &str, password: &str) -> String {
    let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {token}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn basic_authentication() {
    let (a, cluster) = one(&[("auth-type", "basic"), ("auth-secret", "users"), ("auth-realm", "in")]).await;
    let ask = async |fields: &str| cluster.ask("x.com", "/", fields).await;
    let data = |key: &str, text: &str| {
        let data = BTreeMap::from([(key.to_owned(), text.as_bytes().to_vec())]);
        SecretFact::Opaque(Arc::new(data))
    };
    assert_eq!(status(&ask(&login("ann", "secret")).await), 503, "the secret was not read yet");
    cluster.secret("users", SecretFact::Missing);
    assert_eq!(status(&ask(&login("ann", "secret")).await), 503);

    let hash = "$apr1$q3Xz.8kL$pbDaWrsy/FSo/7fuEehng.";
    cluster.secret("users", data("auth", &format!("ann:{hash}\n")));
    let refused = ask("").await;
    assert_eq!(status(&refused), 401);
    assert_eq!(field(&refused, "www-authenticate"), "Basic realm=\"in\", charset=\"UTF-8\"");
    assert_eq!(status(&ask(&login("ann", "wrong")).await), 401);
    assert_eq!(status(&ask(&login("bob", "secret")).await), 401);
    assert_eq!(a.count(), 0);
    for _ in 0..2 {
        let served = seen(&ask(&login("ann", "secret")).await);
        assert!(served["headers"].get("authorization").is_none(), "the password stays here");
    }
    // The map form, and a password that changes.
    cluster
        .annotate("i", &[("auth-type", "basic"), ("auth-secret", "users"), ("auth-secret-type", "auth-map")]);
    cluster.secret("users", data("ann", "$apr1$q3Xz.8kL$.pk2DNvUPIZiV7I0qizPC/"));
    assert_eq!(status(&ask(&login("ann", "secret")).await), 401);
    assert_eq!(status(&ask(&login("ann", "a")).await), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_are_limited_for_each_client() {
    let annotations = [("limit-rpm", "2"), ("limit-burst-multiplier", "2")];
    let (a, cluster) = one(&annotations).await;
    for _ in 0..5 {
        assert_eq!(cluster.get("x.com", "/").await.0, 200, "one and the burst");
    }
    assert_eq!(cluster.get("x.com", "/").await, (503, "503: more than 2 requests per minute\n".to_owned()));
    // A new table forgives nothing.
    cluster.annotate("i", &[annotations[0], annotations[1], ("proxy-body-size", "1m")]);
    assert_eq!(cluster.get("x.com", "/").await.0, 503);
    assert_eq!(a.count(), 5);
    let exempt = [annotations[0], annotations[1], ("limit-whitelist", "127.0.0.0/8")];
    cluster.annotate("i", &exempt);
    assert_eq!(cluster.get("x.com", "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_a_time_are_limited_and_their_places_given_back() {
    let (a, cluster) = one(&[("limit-connections", "2")]).await;
    let counted = |cluster: &Cluster| cluster.metrics().contains("weir_ingress_limit_clients_in_flight 1");
    let held = async {
        let (first, second) = tokio::join!(cluster.get("x.com", "/held"), cluster.get("x.com", "/held"));
        assert_eq!((first.0, second.0), (200, 200));
    };
    let third = async {
        eventually("both are at the backend", async || a.count() == 2).await;
        assert!(counted(&cluster));
        assert_eq!(cluster.get("x.com", "/").await.0, 503);
        a.release.cancel();
    };
    tokio::join!(held, third);
    eventually("both places are free", async || !counted(&cluster)).await;
    assert_eq!(seen(&cluster.ask("x.com", "/", "").await)["name"], "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_told_who_may_read() {
    let origins = ("cors-allow-origin", "https://app.example, https://*.dev.example");
    let (a, cluster) = one(&[("enable-cors", "true"), origins, ("cors-max-age", "60")]).await;
    let preflight = |origin: &str| {
        format!(
            "OPTIONS / HTTP/1.1\r\nHost: x.com\r\nConnection: close\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: PUT\r\n\r\n"
        )
    };
    let response = cluster.raw(preflight("https://me.dev.example").as_bytes()).await;
    assert_eq!(status(&response), 204);
    assert!(response.ends_with("\r\n\r\n"), "{response}");
    assert_eq!(field(&response, "access-control-allow-origin"), "https://me.dev.example");
    assert_eq!(field(&response, "access-control-max-age"), "60");
    assert_eq!(a.count(), 0);

    let response = cluster.ask("x.com", "/", "Origin: https://app.example\r\n").await;
    assert_eq!(field(&response, "access-control-allow-origin"), "https://app.example");
    assert_eq!(field(&response, "access-control-allow-credentials"), "true");
    for origin in ["https://evil.example", "https://a.b.dev.example"] {
        let response = cluster.ask("x.com", "/", &format!("Origin: {origin}\r\n")).await;
        assert_eq!(field(&response, "access-control-allow-origin"), "", "{origin}");
        assert_eq!(field(&response, "vary"), "origin");
    }
    let foreign = cluster.raw(preflight("https://evil.example").as_bytes()).await;
    assert_eq!(seen(&foreign)["method"], "OPTIONS", "it is the endpoint's to answer");
}
