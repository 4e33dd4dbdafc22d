//! What is asked about requests: `weir explain http` of a running ingress, `weir ingress diff` of its cluster.

mod ingress;

use std::process::{Command, Output};

use anyhow::ensure;
use ingress::{Ingress, ask, free, get};
use serde_json::{Value, json};
use weir_tests::eventually;

/// `weir` with these words, ended.
fn weir(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir")).args(words).output().unwrap()
}

fn out(said: &Output) -> String {
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_ingress_explains_a_request() {
    let role = Ingress::start().await;
    // From the range for documentation (RFC 5737): nobody sends anything there.
    let endpoint = "192.0.2.1:8080".parse().unwrap();
    role.service("web", &[]).await;
    role.service("api", &[endpoint]).await;
    role.ingress("shop", "shop.example", &[("/", "web"), ("/api", "api")], json!({})).await;
    let routes = || {
        ensure!(ask(role.http, "shop.example", "/x").starts_with("HTTP/1.1 503"), "there is no rule");
        Ok(())
    };
    eventually("the Ingress is live", routes).unwrap();
    let admin = role.admin.to_string();

    let said =
        weir(&["explain", "http", "GET", "http://Shop.example/api/x", "-H", "X-A: b", "--admin", &admin]);
    let text = String::from_utf8_lossy(&said.stdout);
    let expected = format!(
        "\
GET http://Shop.example/api/x from 127.0.0.1
  routed on host \"shop.example\" and path \"/api/x\"
  rule: shop.example, prefix /api, of Ingress default/shop, to Service default/api:web
    lost: shop.example, prefix /, of Ingress default/shop, to Service default/web:web: it is shorter than /api
  the endpoint of Service default/api:web by HTTP/1.1, ewma of 1
    {endpoint}: 0 in flight, no answer yet, 0 connections kept
"
    );
    assert_eq!(text, expected, "{}", String::from_utf8_lossy(&said.stderr));

    let said =
        weir(&["explain", "http", "GET", "http://other.example/", "--admin", &admin, "--output", "json"]);
    let json: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(json["answer"]["status"], 404);

    let [nobody] = free();
    let nobody = nobody.to_string();
    for (words, error) in [
        (["G T", "http://a/", "--admin", &admin], "METHOD \"G T\" is none"),
        (["GET", "a/b", "--admin", &admin], "URL \"a/b\" is not of the form http://HOST/PATH"),
        (["GET", "http://a/", "--admin", &nobody], "start `weir ingress` with --metrics-address"),
    ] {
        let said = weir(&[&["explain", "http"][..], &words].concat());
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(!said.status.success() && text.contains(error), "{text}");
    }
    assert!(get(role.admin, "/nothing").contains("/metrics, /healthz, /readyz, /explain"));
}

/// The other thing that is explained is still there.
#[test]
fn packets_are_explained_as_before() {
    let words = ["explain", "tcp", "10.0.0.1:1", "10.0.0.2:2", "--run-dir", "/nonexistent"];
    let said = weir(&words);
    assert!(String::from_utf8_lossy(&said.stderr).contains("no dataplane is loaded below /nonexistent"));
    let said = weir(&["explain"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("<PROTOCOL> <SOURCE> <DESTINATION>"));
}

const MANIFEST: &str = "
kind: Ingress
metadata: {name: api}
spec:
  rules:
  - host: shop.example
    http: {paths: [{path: /api, pathType: Prefix, backend: {service: {name: NAME, port: {name: web}}}}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_compared_with_the_cluster() {
    let role = Ingress::start().await;
    role.service("web", &[]).await;
    role.service("api", &[]).await;
    let tls = json!({"tls": [{"hosts": ["shop.example"], "secretName": "missing"}]});
    role.ingress("shop", "shop.example", &[("/", "web")], tls).await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let manifest = file("api.yaml", &MANIFEST.replace("NAME", "api"));
    let said = role.weir(&["ingress", "diff", "-f", &manifest]);
    let expected = "requests below /api of shop.example go to default/web:web of Ingress default/shop, would go to \
                    default/api:web of Ingress default/api\nRules: 1, certificates: 0, new problems: 0\n";
    assert_eq!(out(&said), expected, "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(said.status.code(), Some(1));

    // There is no such Service, which is known of a cluster, and is not of a file.
    let broken = file("broken.yaml", &MANIFEST.replace("NAME", "none"));
    let said: Value =
        serde_json::from_str(&out(&role.weir(&["ingress", "diff", "-f", &broken, "-o", "json"]))).unwrap();
    assert_eq!(said["problems"][0]["reason"], "BadService");
    assert_eq!(said["requests"][0]["path"], "/api");
    let said = weir(&["ingress", "diff", "-f", &broken, "--now", &manifest]);
    assert!(out(&said).ends_with("Rules: 1, certificates: 0, new problems: 0\n"), "{}", out(&said));

    let said = weir(&["ingress", "diff", "-f", &manifest, "--now", &manifest]);
    assert_eq!(
        (said.status.code(), out(&said).as_str()),
        (Some(0), "Rules: 0, certificates: 0, new problems: 0\n")
    );
    let said = weir(&["ingress", "diff", "-f", "/nonexistent/x.yaml", "--now", &manifest]);
    assert_eq!(said.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&said.stderr).contains("cannot read /nonexistent/x.yaml"));
}
