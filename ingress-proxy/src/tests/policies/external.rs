//! External authentication, from all three sides.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::{HeaderMap, Method};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::super::cluster::eventually;
use super::super::recorder::Recorder;
use super::*;

/// A backend behind an authentication server that is asked at this path, with these annotations besides.
async fn guarded(path: &str, annotations: &[(&str, &str)]) -> (Backend, Recorder, Cluster) {
    let auth = Recorder::start().await;
    let (a, cluster) = one(&[]).await;
    annotate(&cluster, &auth, path, annotations);
    (a, auth, cluster)
}

fn annotate(cluster: &Cluster, auth: &Recorder, path: &str, annotations: &[(&str, &str)]) {
    let url = format!("http://{}{path}", auth.address);
    let all: Vec<_> = [("auth-url", url.as_str())].iter().chain(annotations).copied().collect();
    cluster.annotate("i", &all);
}

/// Status, fields and body of a request over HTTP/2 with a body and these fields.
async fn post_http2(cluster: &Cluster, path: &str, fields: &[(&str, &str)]) -> (u16, HeaderMap, String) {
    let stream = TcpStream::connect(cluster.http).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = hyper::Request::post(format!("http://x.com{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from("body"))).unwrap()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, headers, String::from_utf8(body.to_vec()).unwrap())
}

fn post(path: &str, fields: &str) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x.com:81\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n{fields}");
    format!("{head}Content-Length: 4\r\n\r\nbody").into_bytes()
}

const FORGED: [(&str, &str); 4] = [
    ("x-auth-user", "root"),
    ("x_auth_user", "root"),
    ("x-auth-groups", "admin"),
    ("x-original-url", "http://x.com/public"),
];

/// However the request comes and goes on, what the server says of it arrives, and nothing else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_let_in_is_who_the_server_says() {
    let names = ("auth-response-headers", "X-Auth-User, X-Auth-Groups");
    let (a, auth, cluster) = guarded("/verify?to=$escaped_request_uri", &[names]).await;
    let forged = FORGED.map(|(name, value)| format!("{name}: {value}\r\n")).concat();
    let mut count = 0;
    for protocol in ["HTTP", "GRPC"] {
        let annotations = [names, ("backend-protocol", protocol)];
        annotate(&cluster, &auth, "/verify?to=$escaped_request_uri", &annotations);
        for fields in [&[("x-auth-user", "ann")][..], &[]] {
            auth.answers(200, fields);
            for by_http2 in [false, true] {
                let seen: Value = if by_http2 {
                    serde_json::from_str(&post_http2(&cluster, "/p?q=1", &FORGED).await.2).unwrap()
                } else {
                    seen(&cluster.raw(&post("/p?q=1", &forged)).await)
                };
                count += 1;
                let headers = &seen["headers"];
                let user = fields.first().map(|(_, value)| *value);
                assert_eq!(headers.get("x-auth-user").and_then(Value::as_str), user, "{seen}");
                assert!(
                    headers.get("x_auth_user").is_none() && headers.get("x-auth-groups").is_none(),
                    "{seen}"
                );
                assert_eq!((&seen["method"], &seen["body"]), (&"POST".into(), &"body".into()));

                let asked = auth.last();
                assert_eq!((asked.method.as_str(), asked.uri.as_str()), ("GET", "/verify?to=%2Fp%3Fq%3D1"));
                let host = if by_http2 { "x.com" } else { "x.com:81" };
                let (address, url) = (auth.address.to_string(), format!("http://{host}/p?q=1"));
                for (name, expected) in [
                    ("host", address.as_str()),
                    ("x-original-url", &url),
                    ("x-original-method", "POST"),
                    ("x-auth-request-redirect", "/p?q=1"),
                    ("x-forwarded-for", "127.0.0.1"),
                    ("x-forwarded-host", host),
                    ("x-real-ip", "127.0.0.1"),
                    ("x-request-id", headers["x-request-id"].as_str().unwrap()),
                    ("content-length", ""),
                    ("transfer-encoding", ""),
                    ("x-hop", ""),
                ] {
                    assert_eq!(asked.field(name), expected, "{name} {by_http2}");
                }
                assert_eq!(asked.headers.get_all("x-original-url").iter().count(), 1);
                assert_eq!(asked.body.as_deref(), Some(&b""[..]));
            }
        }
    }
    assert_eq!((a.count(), auth.count()), (count, count));
    let metrics = cluster.metrics();
    let granted = format!("weir_ingress_auth_requests_total{{outcome=\"Granted\"}} {count}\n");
    assert!(metrics.contains(&granted) && metrics.contains("weir_ingress_auth_in_flight 0\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_hears_it_from_the_server() {
    let (a, auth, cluster) = guarded("/verify", &[]).await;
    let fields = [("www-authenticate", "Bearer realm=\"x\""), ("set-cookie", "state=1"), ("x-private", "y")];
    auth.answers(401, &fields);
    let response = cluster.ask("x.com", "/", "").await;
    assert_eq!(split(&response), (401, "401: the authentication server does not know you\n".to_owned()));
    assert_eq!(field(&response, "www-authenticate"), "Bearer realm=\"x\"");
    assert_eq!((field(&response, "set-cookie"), field(&response, "x-private")), ("state=1", ""));
    let (status, headers, _) = post_http2(&cluster, "/", &[]).await;
    assert_eq!((status, &headers["set-cookie"]), (401, &"state=1".parse().unwrap()));
    auth.answers(403, &[]);
    assert_eq!(cluster.get("x.com", "/").await.0, 403);

    annotate(&cluster, &auth, "/verify", &[("auth-signin", "https://$host/in?a=b")]);
    assert_eq!(cluster.get("x.com", "/").await.0, 403, "who is known need not sign in");
    auth.answers(401, &fields);
    let response = cluster.ask("x.com:81", "/p?q=1&r", "").await;
    let there = "https://x.com/in?a=b&rd=http://x.com:81%2Fp%3Fq%3D1%26r";
    assert_eq!((super::status(&response), field(&response, "location")), (302, there));
    assert_eq!(field(&response, "set-cookie"), "state=1");
    assert_eq!(post_http2(&cluster, "/", &[]).await.0, 302);
    annotate(&cluster, &auth, "/verify", &[("auth-signin", "/in"), ("auth-signin-redirect-param", "to")]);
    let response = cluster.ask("x.com", "/p", "").await;
    assert_eq!(field(&response, "location"), "/in?to=http://x.com%2Fp");
    assert_eq!(a.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_no_clear_yes_keeps_out() {
    let (a, auth, cluster) = guarded("/verify", &[("auth-signin", "/in"), ("proxy-read-timeout", "1")]).await;
    for status in [302, 304, 404, 500, 503] {
        auth.answers(status, &[]);
        let (status, text) = cluster.get("x.com", "/").await;
        assert!(status == 500 && text.contains("answered with status"), "{status} {text}");
    }
    auth.answers(200, &[]);
    annotate(&cluster, &auth, "/held", &[("proxy-read-timeout", "1")]);
    let (status, text) = cluster.get("x.com", "/").await;
    assert_eq!((status, text.as_str()), (500, "500: the authentication server did not answer in time\n"));
    annotate(&cluster, &auth, "/verify", &[]);
    drop(auth);
    let down = async || {
        let (status, text) = cluster.get("x.com", "/").await;
        assert_eq!(status, 500, "{text}");
        text.contains("could not be reached")
    };
    eventually("the server is down", down).await;
    assert_eq!(post_http2(&cluster, "/", &[]).await.0, 500);
    assert_eq!(a.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_the_server_go_to_the_client() {
    let (_a, auth, cluster) = guarded("/verify", &[]).await;
    auth.answers(200, &[("set-cookie", "session=2")]);
    for (path, cookie) in [("/", "session=2"), ("/status/302", "session=2"), ("/status/404", "")] {
        let response = cluster.ask("x.com", path, "").await;
        assert_eq!(field(&response, "set-cookie"), cookie, "{path}");
        let (_, headers, _) = post_http2(&cluster, path, &[]).await;
        assert_eq!(headers.get("set-cookie").map_or("", |value| value.to_str().unwrap()), cookie, "{path}");
    }
    annotate(&cluster, &auth, "/verify", &[("auth-always-set-cookie", "true")]);
    let response = cluster.ask("x.com", "/status/404", "").await;
    assert_eq!((status(&response), field(&response, "set-cookie")), (404, "session=2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_remembered_for_each_rule_and_key() {
    let caching = [("auth-cache-key", "$http_authorization"), ("auth-response-headers", "X-User")];
    let (a, auth, cluster) = guarded("/verify", &caching).await;
    cluster.ingress("i", rules(&[("x.com", "/", "a"), ("x.com", "/b", "a"), ("y.com", "/", "a")]));
    annotate(&cluster, &auth, "/verify", &caching);
    auth.answers(200, &[("x-user", "ann")]);
    let ask = async |host: &str, path: &str, who: &str| {
        let response = cluster.ask(host, path, &format!("Authorization: {who}\r\nX-User: root\r\n")).await;
        (status(&response), auth.count())
    };
    assert_eq!(ask("x.com", "/", "ann").await, (200, 1));
    assert_eq!(ask("x.com", "/p?q", "ann").await, (200, 1));
    assert_eq!(seen(&cluster.ask("x.com", "/", "Authorization: ann\r\n").await)["headers"]["x-user"], "ann");
    assert_eq!(ask("x.com", "/b", "ann").await, (200, 2), "another rule");
    assert_eq!(ask("y.com", "/", "ann").await, (200, 3), "another host");
    auth.answers(401, &[]);
    assert_eq!(ask("x.com", "/", "bob").await, (401, 4));
    assert_eq!(ask("x.com", "/", "bob").await, (401, 4));
    auth.answers(403, &[]);
    assert_eq!(ask("x.com", "/", "carl").await, (403, 5));
    assert_eq!(ask("x.com", "/", "carl").await, (403, 6), "no duration is for it");
    assert_eq!(a.count(), 5);
    auth.answers(200, &[("cache-control", "no-store")]);
    assert_eq!((ask("x.com", "/", "dora").await, ask("x.com", "/", "dora").await), ((200, 7), (200, 8)));
    annotate(&cluster, &auth, "/other", &caching);
    assert_eq!(ask("x.com", "/", "ann").await, (200, 9), "another server is asked");
    assert!(cluster.metrics().contains("outcome=\"Remembered\"} 3\n"), "{}", cluster.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_several_is_enough_where_the_rule_says_so() {
    let elsewhere = ("allowlist-source-range", "10.0.0.0/8");
    let (a, auth, cluster) = guarded("/verify", &[elsewhere]).await;
    assert_eq!(cluster.get("x.com", "/").await.0, 403);
    annotate(&cluster, &auth, "/verify", &[elsewhere, ("satisfy", "any")]);
    assert_eq!(cluster.get("x.com", "/").await.0, 200);
    auth.answers(401, &[]);
    assert_eq!(cluster.get("x.com", "/").await.0, 401);
    auth.answers(500, &[]);
    assert_eq!(cluster.get("x.com", "/").await.0, 500);
    assert_eq!((a.count(), auth.count()), (1, 3));
    annotate(&cluster, &auth, "/verify", &[("allowlist-source-range", "127.0.0.0/8"), ("satisfy", "any")]);
    assert_eq!((cluster.get("x.com", "/").await.0, auth.count()), (200, 3), "nobody need be asked");
    annotate(&cluster, &auth, "/verify", &[("denylist-source-range", "127.0.0.0/8"), ("satisfy", "any")]);
    assert_eq!(cluster.get("x.com", "/").await.0, 403, "who is denied is out");
}

/// A client that goes away takes its question along, and gives its place back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_ends_with_who_asked() {
    let (a, _auth, cluster) = guarded("/held", &[("limit-connections", "1")]).await;
    let shows = |text: &str| cluster.metrics().contains(text);
    for by_http2 in [false, true] {
        let mut client = TcpStream::connect(cluster.http).await.unwrap();
        if by_http2 {
            let (mut sender, connection) =
                http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(client))
                    .await
                    .unwrap();
            let connection = tokio::spawn(connection);
            let request = hyper::Request::builder().method(Method::GET).uri("http://x.com/");
            let response = tokio::spawn(sender.send_request(request.body(Full::default()).unwrap()));
            eventually("it is asked", async || shows("weir_ingress_auth_in_flight 1\n")).await;
            assert_eq!(cluster.get("x.com", "/").await.0, 503, "it keeps its place");
            response.abort();
            eventually("it ends", async || shows("weir_ingress_auth_in_flight 0\n")).await;
            connection.abort();
        } else {
            client.write_all(&post("/", "")).await.unwrap();
            eventually("it is asked", async || shows("weir_ingress_auth_in_flight 1\n")).await;
            assert_eq!(cluster.get("x.com", "/").await.0, 503, "it keeps its place");
            drop(client);
            eventually("it ends", async || shows("weir_ingress_auth_in_flight 0\n")).await;
        }
        eventually("its place is free", async || shows("weir_ingress_limit_clients_in_flight 0\n")).await;
    }
    assert_eq!(a.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_does_not_name_the_server_that_lets_it_in() {
    let (a, cluster) = one(&[]).await;
    cluster.ingress("i", rules(&[("", "/", "a")]));
    cluster.annotate("i", &[("auth-url", "http://$host/verify")]);
    let (status, text) = cluster.get("127.0.0.1", "/").await;
    assert!(status == 503 && text.contains("auth-url"), "{status} {text}");
    assert_eq!(a.count(), 0);
}
