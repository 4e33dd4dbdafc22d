//! Which backend gets a request, what it is told, and what the client hears when there is none.

use super::backend::Backend;
use super::cluster::{Cluster, eventually, quick};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_and_paths_reach_their_services() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.service("b", false, &[b.address]);
    cluster.route("shop.example", "/", "a");
    cluster.route("shop.example", "/cart", "b");
    cluster.route("*.shop.example", "/", "b");
    for (host, path, expected) in [
        ("shop.example", "/", "a"),
        ("shop.example", "/carts", "a"),
        ("shop.example", "/cart", "b"),
        ("SHOP.example:8080", "/cart/1?x=y", "b"),
        ("eu.shop.example", "/", "b"),
    ] {
        assert_eq!(cluster.echo(host, path).await["name"], expected, "{host}{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backend_learns_who_asks_and_spoofing_does_not_help() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("x.com", "/", "a");
    let response = cluster
        .raw(
            b"GET /p?q=1 HTTP/1.1\r\nHost: x.com\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
              X-Real-IP: 6.6.6.6\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nProxy-Connection: x\r\n\r\n",
        )
        .await;
    let seen: serde_json::Value = serde_json::from_str(&super::cluster::split(&response).1).unwrap();
    let headers = &seen["headers"];
    assert_eq!(seen["uri"], "/p?q=1");
    assert_eq!(headers["host"], "x.com");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-real-ip"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "x.com");
    assert_eq!(headers["x-forwarded-port"], cluster.http.port().to_string());
    assert_eq!(headers["x-request-id"].as_str().unwrap().len(), 32);
    assert!(headers.get("x-secret").is_none() && headers.get("proxy-connection").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_normal_form_is_routed_on_and_forwarded() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.service("b", false, &[b.address]);
    cluster.route("x.com", "/", "a");
    cluster.route("x.com", "/admin", "b");
    for (path, name, uri) in [
        ("/public/../admin/x", "b", "/admin/x"),
        ("//admin", "b", "/admin"),
        ("/%61dmin?a=%2f", "b", "/admin?a=%2f"),
        ("/./a//b/", "a", "/a/b/"),
        ("http://x.com/admin", "b", "/admin"),
    ] {
        let seen = cluster.echo("x.com", path).await;
        assert_eq!((&seen["name"], &seen["uri"]), (&name.into(), &uri.into()), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why() {
    let cluster = Cluster::start();
    cluster.service("empty", false, &[]);
    cluster.route("x.com", "/empty", "empty");
    cluster.route("x.com", "/gone", "gone");
    let refused = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    cluster.service("down", false, &[refused]);
    cluster.route("x.com", "/down", "down");
    for (host, path, status, text) in [
        ("y.com", "/p", 404, "404: no Ingress rule matches host \"y.com\" path \"/p\"\n"),
        ("x.com", "/other", 404, "404: no Ingress rule matches host \"x.com\" path \"/other\"\n"),
        (
            "x.com",
            "/empty",
            503,
            "503: Service \"empty\" of Ingress n/empty-x.com-empty has no ready endpoints\n",
        ),
        ("x.com", "/gone", 503, "503: Service n/gone does not exist: create it, or name one that does\n"),
        ("x.com", "/down", 502, "502: Service \"down\": the endpoint refused the connection\n"),
    ] {
        assert_eq!(cluster.get(host, path).await, (status, text.to_owned()));
    }
    let head = cluster.raw(b"HEAD / HTTP/1.1\r\nHost: y.com\r\nConnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404") && head.ends_with("\r\n\r\n"), "{head}");
    let metrics = cluster.metrics();
    for line in [
        "weir_ingress_requests_total{ingress=\"\",service=\"\",class=\"4xx\"} 3",
        "weir_ingress_requests_total{ingress=\"n/gone-x.com-gone\",service=\"gone\",class=\"5xx\"} 1",
        "weir_ingress_upstream_failures_total{reason=\"ConnectRefused\"} 1",
        "weir_ingress_in_flight 0",
        "weir_ingress_paths 3",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_line_of_the_log() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let a = Backend::start("a").await;
    let cluster = Cluster::with(quick(), file.path());
    cluster.service("a", false, &[a.address]);
    cluster.route("x.com", "/", "a");
    cluster.echo("x.com", "/p?q").await;
    cluster.get("y.com", "/").await;
    // The writer is a thread of its own.
    let text = || std::fs::read_to_string(file.path()).unwrap();
    eventually("both lines are written", async || text().matches('\n').count() == 2).await;
    let lines: Vec<serde_json::Value> =
        text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [served, refused] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(served["status"], 200);
    assert_eq!(served["path"], "/p?q");
    assert_eq!(served["ingress"], "n/a-x.com-");
    assert_eq!(served["endpoint"], a.address.to_string());
    assert_eq!(served["client"], "127.0.0.1");
    assert_eq!(refused["status"], 404);
    assert!(refused["reason"].as_str().unwrap().contains("no Ingress rule"));
}
