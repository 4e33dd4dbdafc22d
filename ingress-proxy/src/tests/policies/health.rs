//! Active checks of endpoints, as endpoints see them and as requests do.

mod grpc;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use weir_tests::Authority;

use super::super::backend::nobody;
use super::super::cluster::{eventually, in_time};
use super::super::pages::explained;
use super::super::script::{Act, Close, END, Endpoint, OK, Until};
use super::super::tls_to_endpoints::{endpoint, secret};
use super::*;

/// Checks that find out soon, and leave a busy machine time to answer.
const HTTP: [(&str, &str); 6] = [
    ("health-check", "http"),
    ("health-check-interval", "1s"),
    ("health-check-timeout", "1s"),
    ("health-check-fall", "2"),
    ("health-check-rise", "2"),
    ("load-balance", "round_robin"),
];

/// Those by which nobody need answer in time.
const OFTEN: [(&str, &str); 2] = [("health-check-interval", "100ms"), ("health-check-timeout", "100ms")];

/// The same with others in their place, or besides.
fn check<'a>(others: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = HTTP.iter().filter(|(name, _)| others.iter().all(|(other, _)| other != name));
    kept.chain(others).copied().collect()
}

/// A proxy in front of these endpoints, which are checked.
fn checking(endpoints: &[SocketAddr], others: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start();
    cluster.service("a", false, endpoints);
    cluster.ingress("i", rules(&[("x.com", "/", "a")]));
    cluster.annotate("i", &check(others));
    cluster
}

/// Why an endpoint of a host's is out; nothing if it is not.
fn why(cluster: &Cluster, host: &str, address: SocketAddr) -> Option<String> {
    let told = explained(cluster, &format!("http://{host}/"));
    let endpoints = told["backends"][0]["endpoints"].as_array().unwrap();
    let one = endpoints.iter().find(|one| one["address"] == address.to_string()).unwrap();
    one["unhealthy"].as_str().map(str::to_owned)
}

async fn out(cluster: &Cluster, address: SocketAddr, expected: &str) {
    let holds = async || why(cluster, "x.com", address).as_deref() == Some(expected);
    eventually(&format!("{expected}, not {:?}", why(cluster, "x.com", address)), holds).await;
}

async fn back(cluster: &Cluster, address: SocketAddr) {
    eventually("it is back", async || why(cluster, "x.com", address).is_none()).await;
}

async fn names(cluster: &Cluster, requests: usize) -> Vec<Value> {
    let mut names = Vec::new();
    for _ in 0..requests {
        names.push(seen(&cluster.ask("x.com", "/", "").await)["name"].clone());
    }
    names
}

fn gauge(cluster: &Cluster, line: &str) -> bool {
    cluster.server.proxy().sweep();
    cluster.metrics().contains(line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fails_gets_no_requests_until_it_succeeds_again() {
    for protocol in ["HTTP", "GRPC"] {
        let (a, bad) = (Backend::start("a").await, Backend::answering("bad", 500).await);
        let cluster = checking(&[a.address, bad.address], &[("backend-protocol", protocol)]);
        out(&cluster, bad.address, "the endpoint answered with status 500").await;
        assert_eq!(names(&cluster, 10).await, vec![Value::from("a"); 10], "{protocol}");
        assert!(gauge(&cluster, "weir_ingress_upstream_unhealthy 1\n"));
        assert!(gauge(&cluster, "weir_ingress_upstream_ejected 0\n"), "requests did not do it");
        let metrics = cluster.metrics();
        assert!(metrics.contains("weir_ingress_health_checks_total{result=\"Status\"}"), "{metrics}");
        assert!(metrics.contains("weir_ingress_health_checks_total{result=\"Passed\"}"), "{metrics}");
        let shown: Value = serde_json::from_str(&cluster.page("/status.json").1).unwrap();
        let first = &shown["endpoints"]["rows"][0];
        assert_eq!(first["unhealthy"], "the endpoint answered with status 500", "it stands first");
        assert_eq!(first["address"], bad.address.to_string());
        let told = cluster.page("/explain?method=GET&url=http://x.com/&client=192.0.2.7").1;
        let line = format!(
            "    {}: taken out by its health check (the endpoint answered with status 500), 0 in flight",
            bad.address
        );
        assert!(told.contains(&line), "{told}");
        bad.status.store(204, Ordering::SeqCst);
        back(&cluster, bad.address).await;
        assert!(gauge(&cluster, "weir_ingress_upstream_unhealthy 0\n"));
        bad.status.store(302, Ordering::SeqCst);
        assert_eq!(names(&cluster, 10).await.iter().filter(|name| **name == "bad").count(), 5);
    }
}

/// Listens, takes connections, and says nothing on them. Returns where, and how many were ended from the other side.
async fn silent() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, ended) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&ended);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
                counted.fetch_add(1, Ordering::SeqCst);
            });
        }
    });
    (address, ended)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_is_given_up_and_its_connections_are_closed() {
    for (kind, protocol) in [("http", "HTTP"), ("http", "GRPC"), ("grpc", "GRPC"), ("http", "HTTPS")] {
        let (a, (hanging, ended)) = (Backend::start("a").await, silent().await);
        // Half of the time nothing is under way.
        let others = [
            ("health-check", kind),
            ("backend-protocol", protocol),
            ("health-check-interval", "100ms"),
            ("health-check-timeout", "50ms"),
        ];
        let cluster = checking(&[a.address, hanging], &others);
        out(&cluster, hanging, "the endpoint did not answer in time").await;
        eventually("what was given up is closed", async || ended.load(Ordering::SeqCst) >= 2).await;
        eventually("nothing stays behind", async || {
            gauge(&cluster, "weir_ingress_health_checks_in_flight 0\n")
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_enough_for_tcp() {
    let (bad, (socket, nobody)) = (Backend::answering("bad", 500).await, nobody());
    let cluster = checking(&[bad.address, nobody], &[("health-check", "tcp")]);
    out(&cluster, nobody, "the endpoint refused the connection").await;
    assert_eq!(why(&cluster, "x.com", bad.address), None, "it takes connections");
    assert_eq!(bad.count(), 0, "and got no request");
    let _somebody = socket.listen(8).unwrap();
    back(&cluster, nobody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_as_with_requests() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = endpoint(&authority, "a.n.svc", None).await;
    for kind in ["http", "tcp"] {
        let tls = [("health-check", kind), ("backend-protocol", "HTTPS")];
        let verified = [&tls[..], &[("proxy-ssl-verify", "on"), ("proxy-ssl-secret", "ca")]].concat();
        let cluster = checking(&[address], &tls);
        let passed = "weir_ingress_health_checks_total{result=\"Passed\"}";
        eventually("a check without verification", async || cluster.metrics().contains(passed)).await;
        cluster.secret("ca", secret(&other, None));
        cluster.annotate("i", &check(&verified));
        out(&cluster, address, "the endpoint's certificate is not trusted").await;
        cluster.secret("ca", secret(&authority, None));
        eventually("it is trusted", async || cluster.get("x.com", "/").await.0 == 200).await;
        back(&cluster, address).await;
    }
    // A certificate of ours is shown, too: by HTTP/1.1 and by HTTP/2.
    let address = endpoint(&authority, "a.n.svc", Some(&other)).await;
    for protocol in ["HTTPS", "GRPCS"] {
        let cluster = checking(&[address], &[("backend-protocol", protocol)]);
        eventually("it wants a certificate", async || why(&cluster, "x.com", address).is_some()).await;
        cluster.secret("us", secret(&other, Some("weir")));
        cluster.annotate("i", &check(&[("backend-protocol", protocol), ("proxy-ssl-secret", "us")]));
        let passed = "weir_ingress_health_checks_total{result=\"Passed\"}";
        eventually("a check with a certificate", async || cluster.metrics().contains(passed)).await;
        assert_eq!(why(&cluster, "x.com", address), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_says_what_it_is_told_to() {
    static PLAIN: &[&[Act]] = &[&[END, OK]];
    static BEHIND_HEADER: &[&[Act]] = &[&[Until("PROXY UNKNOWN\r\n"), END, OK, Close]];
    let heard = async |endpoint: &Endpoint| {
        eventually("it is asked", async || {
            endpoint.heard().first().is_some_and(|heard| heard.ends_with("\r\n\r\n"))
        })
        .await;
        endpoint.heard().remove(0)
    };
    let (a, checked) = (Backend::start("a").await, Endpoint::follow(PLAIN).await);
    let port = checked.address.port().to_string();
    let others =
        [("health-check-path", "/up?x=1"), ("health-check-host", "up.example"), ("health-check-port", &port)];
    let cluster = checking(&[a.address], &others);
    let said = heard(&checked).await;
    assert!(said.starts_with("GET /up?x=1 HTTP/1.1\r\n"), "{said}");
    for field in ["Host: up.example\r\n", "User-Agent: weir-health-check/", "Connection: close\r\n"] {
        assert!(said.contains(field), "{said}");
    }
    assert_eq!(names(&cluster, 1).await, ["a"], "requests go to the endpoint's own port");

    let checked = Endpoint::follow(BEHIND_HEADER).await;
    let cluster = checking(&[checked.address], &[&OFTEN[..], &[("proxy-protocol", "v1")]].concat());
    let said = heard(&checked).await;
    assert!(said.starts_with("PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a.n.svc\r\n"), "{said}");
    drop(cluster);
}

/// Nothing that an endpoint answers is more than a failed check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_is_a_failure_and_no_more() {
    let answers: [&[u8]; 14] = [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/1.1 200",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 000 No\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
        b"HTTP/1.1 200 \xff\xfe\r\nN\xc3\xa4me: \xff\r\nno colon\r\n\r\n",
    ];
    for (kind, protocol) in [("http", "HTTP"), ("http", "GRPC"), ("grpc", "GRPC")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answers[counted.load(Ordering::SeqCst) % answers.len()];
                let _ = stream.read(&mut [0; 1_024]).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let others = [("health-check", kind), ("backend-protocol", protocol)];
        let cluster = checking(&[address], &[&OFTEN[..], &others].concat());
        eventually("each was answered once", async || asked.load(Ordering::SeqCst) > answers.len()).await;
        let metrics = cluster.metrics();
        assert!(why(&cluster, "x.com", address).is_some(), "{kind} {protocol}");
        for result in ["Panicked", "Passed"] {
            let line = format!("weir_ingress_health_checks_total{{result=\"{result}\"}}");
            assert!(!metrics.contains(&line), "{kind} {protocol} {metrics}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_fail_all_are_used() {
    let (b, c) = (Backend::start("b").await, Backend::start("c").await);
    // Nothing is at the path.
    let cluster =
        checking(&[b.address, c.address], &[&OFTEN[..], &[("health-check-path", "/status/404")]].concat());
    out(&cluster, b.address, "the endpoint answered with status 404").await;
    out(&cluster, c.address, "the endpoint answered with status 404").await;
    let mut served = names(&cluster, 4).await.into_iter().map(|name| name.to_string()).collect::<Vec<_>>();
    served.sort();
    assert_eq!(served, ["\"b\"", "\"b\"", "\"c\"", "\"c\""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ingresses_check_one_service_each_in_its_way() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let cluster = checking(&[a.address, b.address], &[("health-check-path", "/status/500")]);
    cluster.ingress("j", rules(&[("y.com", "/", "a")]));
    out(&cluster, a.address, "the endpoint answered with status 500").await;
    assert_eq!(why(&cluster, "y.com", a.address), None, "it does not check at all");
    cluster.annotate("j", &check(&[("health-check-path", "/status/200")]));
    let passed = "weir_ingress_health_checks_total{result=\"Passed\"}";
    eventually("it checks", async || cluster.metrics().contains(passed)).await;
    assert_eq!(why(&cluster, "y.com", a.address), None);
    // Another policy is another check.
    cluster.annotate("i", &check(&[("health-check-path", "/status/200")]));
    assert_eq!(why(&cluster, "x.com", a.address), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_follow_the_endpoints_and_end_with_the_rules_and_with_the_proxy() {
    let (a, late, other) =
        (Backend::start("a").await, Backend::start("late").await, Backend::start("o").await);
    let cluster = checking(&[], &OFTEN);
    cluster.service("o", false, &[other.address]);
    cluster.ingress("o", rules(&[("o.com", "/", "o")]));
    cluster.annotate("o", &check(&OFTEN));
    let checked = async |backend: &Backend| {
        let before = backend.count();
        eventually("it is checked", async || backend.count() >= before + 5).await;
    };
    checked(&other).await;
    cluster.endpoints("a", &[a.address]);
    checked(&a).await;
    assert_eq!(late.count(), 0);
    cluster.endpoints("a", &[late.address]);
    checked(&late).await;
    let gone = a.count();
    checked(&other).await;
    // One may have been under way.
    assert!(a.count() <= gone + 1, "{} after {gone}", a.count());

    // A request that goes on does not keep its backend checked.
    let cluster = Arc::new(cluster);
    let asking = Arc::clone(&cluster);
    let request = tokio::spawn(async move { asking.get("x.com", "/held").await });
    eventually("it is there", async || late.held.load(Ordering::SeqCst) > 0).await;
    cluster.ingress("i", rules(&[]));
    let gone = late.count();
    checked(&other).await;
    assert!(late.count() <= gone + 1, "{} after {gone}", late.count());
    late.release.cancel();
    assert_eq!(in_time("the request", request).await.unwrap().0, 200);

    in_time("the drain", cluster.server.drain(Duration::from_secs(10))).await;
    let ended = other.count();
    let clock = Backend::start("clock").await;
    let _cluster = checking(&[clock.address], &OFTEN);
    checked(&clock).await;
    assert!(other.count() <= ended + 1, "{} after {ended}", other.count());
    assert!(gauge(&cluster, "weir_ingress_health_checks_in_flight 0\n"));
}

/// More endpoints hang than checks may be under way: each is asked all the same, and never more at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_that_find_no_place_begin_late() {
    let most = Arc::new(Mutex::new((0_usize, 0_usize)));
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = Arc::clone(&most);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let open = Arc::clone(&open);
            {
                let mut counts = open.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
            }
            tokio::spawn(async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
                open.lock().unwrap().0 -= 1;
            });
        }
    });
    let addresses: Vec<SocketAddr> = (1..=120).map(|n| SocketAddr::from(([127, 0, 2, n], port))).collect();
    let cluster = checking(&addresses, &[&OFTEN[..], &[("health-check-fall", "1")]].concat());
    eventually("all of them are out", async || gauge(&cluster, "weir_ingress_upstream_unhealthy 120\n"))
        .await;
    assert!(!cluster.metrics().contains("weir_ingress_health_checks_delayed_total 0\n"));
    // What was given up is closed a moment later than the next begins.
    let most = most.lock().unwrap().1;
    assert!(most <= 2 * 32, "{most} at once");
}
