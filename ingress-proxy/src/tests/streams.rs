//! Streams of HTTP/2: many on one connection, to endpoints that speak HTTP/1.1.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::backend::Backend;
use super::cluster::{Cluster, eventually, in_time, quick};
use super::script::{Act, Close, END, Endpoint, OK, Say, Until};

/// A client's connection.
pub(super) struct Client {
    pub(super) sender: SendRequest<Bytes>,
    /// How the connection ended.
    pub(super) ended: JoinHandle<Result<(), h2::Error>>,
}

/// A response that has come to its end.
pub(super) struct Whole {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    pub(super) trailers: Option<HeaderMap>,
}

impl Client {
    pub(super) async fn connect(cluster: &Cluster) -> Self {
        let stream = TcpStream::connect(cluster.http).await.unwrap();
        // A window for all streams that one stream cannot fill.
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(1 << 20);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        Self { sender, ended: tokio::spawn(connection) }
    }

    /// Opens a stream.
    pub(super) async fn open(
        &self,
        request: Request<()>,
        is_all: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut sender = self.sender.clone().ready().await.unwrap();
        sender.send_request(request, is_all).unwrap()
    }

    /// A whole request and its whole response.
    pub(super) async fn ask(
        &self,
        request: Request<()>,
        body: Option<&'static str>,
    ) -> Result<Whole, h2::Error> {
        let (response, mut stream) = self.open(request, body.is_none()).await;
        if let Some(body) = body {
            stream.send_data(Bytes::from_static(body.as_bytes()), true)?;
        }
        whole(in_time("a response", response).await?).await
    }
}

pub(super) async fn whole(response: Response<RecvStream>) -> Result<Whole, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = in_time("more", stream.data()).await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?;
    let body = String::from_utf8(body).unwrap();
    Ok(Whole { status: parts.status, headers: parts.headers, body, trailers })
}

pub(super) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://x{path}")).body(()).unwrap()
}

pub(super) fn post(path: &str, fields: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::post(format!("http://x{path}")).body(()).unwrap();
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_becomes_one_of_http1() {
    let endpoint = Endpoint::follow(&[&[
        END,
        OK,
        Until("world\r\n0\r\n\r\n"),
        Say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Hop: 1\r\nConnection: X-Hop\r\n\r\n"),
        Say("3\r\none\r\n3;x=y\r\ntwo\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n"),
        Until("five!"),
        OK,
        END,
        Say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), // to HEAD
        END,
        Say("HTTP/1.1 204 No Content\r\n\r\n"),
        END,
        Say("HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        Close,
    ]])
    .await;
    let cluster = endpoint.cluster();
    let client = Client::connect(&cluster).await;
    let mut request = get("/a//b?q");
    for crumb in ["a=1", "b=2", "c=3"] {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    assert_eq!(client.ask(request, None).await.unwrap().body, "ok");
    let chunked = client.ask(post("/", &[]), Some("hello world")).await.unwrap();
    assert_eq!((chunked.status.as_u16(), chunked.body.as_str()), (200, "onetwo"));
    assert!(!chunked.headers.contains_key("transfer-encoding") && !chunked.headers.contains_key("x-hop"));
    let trailers: Vec<_> =
        chunked.trailers.iter().flatten().map(|(name, value)| (name.as_str(), value)).collect();
    assert_eq!(trailers, [("x-sum", &"1".parse().unwrap())]);
    assert_eq!(client.ask(post("/", &[("content-length", "5")]), Some("five!")).await.unwrap().body, "ok");
    let to_head = client.ask(Request::head("http://x/").body(()).unwrap(), None).await.unwrap();
    assert_eq!((&to_head.headers["content-length"], to_head.body.as_str()), (&"5".parse().unwrap(), ""));
    assert_eq!(client.ask(get("/"), None).await.unwrap().status, 204);
    assert_eq!(client.ask(get("/"), None).await.unwrap().body, "until the end");
    let heard = endpoint.heard().concat();
    assert!(heard.starts_with("GET /a/b?q HTTP/1.1\r\nhost: x\r\n"), "{heard}");
    assert!(heard.contains("\r\ncookie: a=1; b=2; c=3\r\n"), "{heard}");
    assert!(heard.contains("\r\ntransfer-encoding: chunked\r\n"), "{heard}");
    assert!(heard.contains("\r\n\r\nb\r\nhello world\r\n0\r\n\r\n"), "{heard}");
    assert!(heard.contains("\r\ncontent-length: 5\r\n") && heard.contains("\r\n\r\nfive!HEAD / "), "{heard}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_responses_and_early_ones_reach_the_client() {
    let endpoint = Endpoint::follow(&[
        &[
            END,
            Say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
            OK,
            END,
            Say("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"),
        ],
        &[END, OK],
    ])
    .await;
    let cluster = endpoint.cluster();
    let client = Client::connect(&cluster).await;
    let (mut response, _stream) = client.open(get("/"), true).await;
    let interim = std::future::poll_fn(|cx| response.poll_informational(cx));
    let interim = in_time("hints", interim).await.unwrap().unwrap();
    assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</a>".parse().unwrap()));
    assert_eq!(whole(response.await.unwrap()).await.unwrap().body, "ok");
    // Its body is still on the way; nobody waits for the rest of it.
    let (response, mut stream) = client.open(post("/", &[]), false).await;
    let _ = stream.send_data(Bytes::from_static(b"begun"), false); // the answer may be there already
    let early = whole(in_time("an answer", response).await.unwrap()).await.unwrap();
    assert_eq!((early.status.as_u16(), early.body.as_str()), (413, "no"));
    let reset = in_time("a reset", std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    assert_eq!(reset.unwrap(), Reason::NO_ERROR);
    // The endpoint's connection of the unfinished request is not used again.
    assert_eq!(client.ask(get("/"), None).await.unwrap().body, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_be_read_in_two_ways_is_refused() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("x", "/", "a");
    let client = Client::connect(&cluster).await;
    let field = |name: &'static str, value: &'static str| post("/", &[(name, value)]);
    for (request, status, why) in [
        (field("host", "y"), 400, "Host differ"),
        (post("/", &[("host", "x"), ("host", "x")]), 400, "more than one Host"),
        (field("content-length", "1"), 400, "Content-Length"),
        (field("content-length", "+0"), 400, "Content-Length"),
        (post("/", &[("content-length", "0"), ("content-length", "0")]), 400, "Content-Length"),
        (Request::builder().method("TRACE").uri("http://x/").body(()).unwrap(), 405, "TRACE"),
        (get("/%2e%2e/a%2fb"), 400, "path"),
    ] {
        let described = format!("{request:?}");
        // A length that is not kept is the frames' affair, and ends the stream there.
        match client.ask(request, None).await {
            Ok(answer) => {
                assert_eq!(answer.status, status, "{described}: {}", answer.body);
                assert!(answer.body.contains(why), "{described}: {}", answer.body);
            }
            Err(error) => assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{described}: {error}"),
        }
    }
    let many: Vec<(&'static str, &'static str)> = vec![("x", "y"); 200];
    assert_eq!(client.ask(post("/", &many), None).await.unwrap().status, 431);
    assert_eq!(a.count(), 0);
    assert_eq!(client.ask(get("/"), None).await.unwrap().status, 200, "the connection goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_breaks_off_takes_only_its_stream_along() {
    let endpoint = Endpoint::follow(&[
        &[END, Say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), Until("go on"), OK],
        &[END, Say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), Close],
        &[END, Say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nZZ\r\n")],
        &[END, Say("SSH-2.0\r\n\r\n")],
    ])
    .await;
    let cluster = endpoint.cluster();
    let client = Client::connect(&cluster).await;
    let (held, _stream) = client.open(get("/held"), true).await;
    let mut held = in_time("a head", held).await.unwrap().into_body();
    assert_eq!(in_time("half", held.data()).await.unwrap().unwrap(), "half");
    for _ in 0..2 {
        let broken = client.ask(get("/"), None).await;
        assert_eq!(broken.err().and_then(|error| error.reason()), Some(Reason::INTERNAL_ERROR));
    }
    let malformed = client.ask(get("/"), None).await.unwrap();
    assert_eq!((malformed.status.as_u16(), malformed.body.contains("malformed")), (502, true));
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_closed_costs_no_request_that_can_be_repeated() {
    const CLOSES: &[Act] = &[END, OK, END, Close];
    const BODY: &[Act] = &[Until("0\r\n\r\n"), OK];
    let endpoint = Endpoint::follow(&[CLOSES, &[END, OK], CLOSES, BODY, CLOSES]).await;
    let cluster = endpoint.cluster();
    let client = Client::connect(&cluster).await;
    assert_eq!(client.ask(get("/"), None).await.unwrap().status, 200);
    assert_eq!(client.ask(get("/"), None).await.unwrap().status, 200);
    cluster.endpoints("a", &[]);
    cluster.endpoints("a", &[endpoint.address]);
    assert_eq!(client.ask(get("/"), None).await.unwrap().status, 200);
    let put = || Request::put("http://x/").body(()).unwrap();
    assert_eq!(client.ask(put(), Some("body")).await.unwrap().status, 200, "its body is at hand");
    assert!(endpoint.heard()[3].ends_with("\r\n\r\n4\r\nbody\r\n0\r\n\r\n"), "{:?}", endpoint.heard());
    cluster.endpoints("a", &[]);
    cluster.endpoints("a", &[endpoint.address]);
    assert_eq!(client.ask(get("/"), None).await.unwrap().status, 200);
    assert_eq!(client.ask(post("/", &[]), None).await.unwrap().status, 502, "a POST may do something twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gives_up_frees_its_endpoint() {
    let endpoint = Endpoint::follow(&[&[END, Until("never")]]).await;
    let cluster = endpoint.cluster();
    let client = Client::connect(&cluster).await;
    let (_response, mut stream) = client.open(get("/"), true).await;
    eventually("the endpoint has the request", async || !endpoint.heard().concat().is_empty()).await;
    stream.send_reset(Reason::CANCEL);
    eventually("nothing is in flight", async || cluster.metrics().contains("weir_ingress_in_flight 0")).await;
    assert!(cluster.metrics().contains("class=\"none\"} 1"), "{}", cluster.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_holds_up_nobody_else() {
    let large: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    let head: &'static str = "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n";
    let script: &'static [Act] = Vec::leak(vec![END, Say(head), Say(large)]);
    let endpoint = Endpoint::follow(Vec::leak(vec![script, &[END, OK]])).await;
    let cluster = endpoint.cluster();
    let client = Client::connect(&cluster).await;
    let (slow, _stream) = client.open(get("/slow"), true).await;
    let slow = in_time("a head", slow).await.unwrap();
    assert_eq!(client.ask(get("/quick"), None).await.unwrap().body, "ok");
    assert_eq!(whole(slow).await.unwrap().body.len(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_streams_and_idle_connections() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("x", "/", "a");
    let (busy, idle) = (Client::connect(&cluster).await, Client::connect(&cluster).await);
    assert_eq!(idle.ask(get("/"), None).await.unwrap().status, 200);
    let (response, _stream) = busy.open(get("/held"), true).await;
    eventually("the request is there", async || a.count() == 2).await;
    let server = std::sync::Arc::clone(&cluster.server);
    let drained = tokio::spawn(async move { server.drain(Duration::from_secs(20)).await });
    in_time("the idle connection ends", idle.ended).await.unwrap().unwrap();
    a.release.cancel();
    assert_eq!(in_time("a response", response).await.unwrap().status(), 200);
    assert_eq!(in_time("the drain", drained).await.unwrap(), 0, "nothing was cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_or_resets_too_much_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let a = Backend::start("a").await;
    let mut timeouts = quick();
    timeouts.keepalive = Duration::from_millis(300);
    let cluster = Cluster::with(timeouts, std::path::Path::new("off"));
    cluster.service("a", false, &[a.address]);
    cluster.route("x", "/", "a");
    // Half a preface.
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM").await.unwrap();
    in_time("the end of a slow one", stream.read_to_end(&mut Vec::new())).await.unwrap();
    // The preface and no stream, and one stream and no more.
    let (silent, idle) = (Client::connect(&cluster).await, Client::connect(&cluster).await);
    assert_eq!(idle.ask(get("/"), None).await.unwrap().status, 200);
    in_time("the end of a silent one", silent.ended).await.unwrap().unwrap();
    in_time("the end of an idle one", idle.ended).await.unwrap().unwrap();
    // Rapid reset (CVE-2023-44487).
    let client = Client::connect(&cluster).await;
    let resetting = async {
        for _ in 0..10_000 {
            let Ok(mut sender) = client.sender.clone().ready().await else { return };
            let Ok((_, mut stream)) = sender.send_request(get("/held"), true) else { return };
            stream.send_reset(Reason::CANCEL);
        }
    };
    in_time("the resets", resetting).await;
    let error = in_time("the end of a resetting one", client.ended).await.unwrap().unwrap_err();
    // Its own flood can keep it from reading why.
    assert!(error.is_io() || error.reason() == Some(Reason::ENHANCE_YOUR_CALM), "{error}");
}
