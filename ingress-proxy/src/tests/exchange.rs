//! Bodies in both directions, and how they end: against endpoints that follow a script byte by byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::{Cluster, eventually, in_time, read_all};
use super::script::{Act, Close, END, Endpoint, OK, Say, Until};

/// A client that reads what it expects and no more.
struct Client(TcpStream);

impl Client {
    async fn connect(cluster: &Cluster) -> Self {
        Self(TcpStream::connect(cluster.http).await.unwrap())
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until this came.
    async fn hear(&mut self, end: &str) -> String {
        let reading = async {
            let mut heard = String::new();
            while !heard.ends_with(end) {
                match self.0.read_u8().await {
                    Ok(byte) => heard.push(char::from(byte)),
                    Err(error) => panic!("the connection ended behind {heard:?}: {error}"),
                }
            }
            heard
        };
        in_time(end, reading).await
    }

    /// Everything up to the connection's end.
    async fn rest(&mut self) -> String {
        read_all(&mut self.0).await
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_on_both_sides_serve_one_request_after_the_other() {
    let endpoint = Endpoint::follow(&[&[
        END,
        OK,
        END,
        Say("HTTP/1.1 204 No Content\r\n\r\n"),
        END,
        Say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), // to HEAD
        END,
        Say("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        END,
        Say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"),
        Until("\r\n\r\n0\r\n\r\n"),
        OK,
    ]])
    .await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    client.say(GET).await;
    client.hear("\r\n\r\nok").await;
    client.say(GET).await;
    assert!(client.hear("\r\n\r\n").await.starts_with("HTTP/1.1 204 No Content\r\n"));
    client.say("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(client.hear("\r\n\r\n").await.contains("Content-Length: 5"));
    client.say(GET).await;
    assert!(client.hear("\r\n\r\n").await.starts_with("HTTP/1.1 304"));
    client.say(GET).await;
    client.hear("\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n").await;
    client.say("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    client.hear("ok").await;
    assert_eq!(endpoint.heard().len(), 1, "one connection was enough");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_continue_gets_it_from_the_endpoint() {
    let endpoint =
        Endpoint::follow(&[&[END, Say("HTTP/1.1 100 Continue\r\n\r\n"), Until("body"), OK, END, OK]]).await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    client.say("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.say("body").await;
    assert!(client.hear("ok").await.starts_with("HTTP/1.1 200"));
    client.say(GET).await;
    client.hear("ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_may_overtake_the_body() {
    let endpoint = Endpoint::follow(&[&[
        END,
        Say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch"),
        Close,
    ]])
    .await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    client.say("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nfirst").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\nmuch"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_without_a_length_is_chunked_or_ends_with_the_connection() {
    const OLD: &[Act] = &[END, Say("HTTP/1.0 200 OK\r\nA: b\r\n\r\nsome"), Say("thing"), Close];
    let endpoint = Endpoint::follow(&[OLD, OLD, OLD]).await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    for _ in 0..2 {
        client.say(GET).await;
        let response = client.hear("\r\n0\r\n\r\n").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n"));
        let (_, body) = super::cluster::split(&response);
        assert_eq!(body, "something");
    }
    let old = cluster.raw(b"GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(old, "HTTP/1.1 200 OK\r\nA: b\r\nconnection: close\r\n\r\nsomething");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_client_may_keep_its_connection() {
    let endpoint = Endpoint::follow(&[&[END, OK], &[END, OK]]).await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    for _ in 0..2 {
        client.say("GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n").await;
        assert!(client.hear("ok").await.contains("\r\nconnection: keep-alive\r\n"));
    }
    assert!(
        endpoint.heard().iter().all(|heard| heard.starts_with("GET / HTTP/1.0\r\nconnection: close\r\n"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_breaks_off_breaks_off_at_the_client() {
    for (said, came) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "half"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "4\r\nhalf\r\n"),
    ] {
        let script: &'static [Act] = Vec::leak(vec![END, Say(said), Close]);
        let endpoint = Endpoint::follow(Vec::leak(vec![script])).await;
        let cluster = endpoint.cluster();
        let mut client = Client::connect(&cluster).await;
        client.say(GET).await;
        let heard = client.rest().await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.ends_with(&format!("\r\n\r\n{came}")), "{heard}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_chunk_of_a_response_that_has_begun_ends_it() {
    let endpoint = Endpoint::follow(&[&[
        END,
        Say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        Until("go on"),
        Say("ZZ\r\n"),
    ]])
    .await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    client.say("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n").await;
    client.hear("\r\n\r\n4\r\nhalf\r\n").await;
    client.say("go on").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_response_is_a_502() {
    for said in [
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ] {
        let script: &'static [Act] = Vec::leak(vec![END, Say(said)]);
        let endpoint = Endpoint::follow(Vec::leak(vec![script])).await;
        let cluster = endpoint.cluster();
        let (status, text) = cluster.get("x", "/").await;
        assert_eq!(
            (status, text.as_str()),
            (502, "502: Service \"a\": the endpoint's response is malformed\n")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_can_be_done_twice_is_sent_twice() {
    let endpoint =
        Endpoint::follow(&[&[END, OK, Until("put"), Close], &[Until("put"), OK, Until("post"), Close]]).await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    client.say(GET).await;
    client.hear("ok").await;
    client.say("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nput").await;
    assert!(client.hear("ok").await.starts_with("HTTP/1.1 200"), "on a fresh connection");
    client.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\npost").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(endpoint.heard().len(), 2);
}

/// A body that is not framed as it says must not leave the endpoint's connection to the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_chunk_ends_both_connections() {
    let endpoint = Endpoint::follow(&[&[Until("never")], &[END, OK]]).await;
    let cluster = endpoint.cluster();
    let mut client = Client::connect(&cluster).await;
    client.say("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    eventually("the endpoint has the first chunk", async || {
        endpoint.heard().first().is_some_and(|heard| heard.ends_with("3\r\nabc\r\n"))
    })
    .await;
    client.say("3 \r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    assert_eq!(cluster.get("x", "/").await, (200, "ok".to_owned()), "by another connection");
    assert!(!endpoint.heard()[0].contains("smuggled"));
}

/// More than any buffer between the two, with a reader that takes nothing until everything was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_both_ways_at_once() {
    const BYTES: usize = 16 * 1024 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = Cluster::start();
    cluster.service("a", false, &[listener.local_addr().unwrap()]);
    cluster.route("x", "/", "a");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let (reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader.take(BYTES as u64), &mut writer).await.unwrap();
    });
    let body: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
    let sent = body.clone();
    let (mut reader, mut writer) = TcpStream::connect(cluster.http).await.unwrap().into_split();
    let sending = tokio::spawn(async move {
        let head =
            format!("PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {BYTES}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.unwrap();
        writer.write_all(&sent).await.unwrap();
        writer
    });
    let mut response = Vec::new();
    in_time("the echo", reader.read_to_end(&mut response)).await.unwrap();
    let head = String::from_utf8_lossy(&response[..response.len().min(200)]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(response.ends_with(&body) && response.len() < BYTES + 200, "{} bytes came", response.len());
    in_time("the sender", sending).await.unwrap();
}
