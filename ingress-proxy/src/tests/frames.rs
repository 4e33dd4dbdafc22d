//! Frames that no well-behaved client of HTTP/2 sends, written byte by byte; the endpoint must not see what comes of them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::backend::Backend;
use super::cluster::{Cluster, in_time};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a stream came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// An answer; of its head only that it is one.
    Answer,
    Reset,
    /// The whole connection.
    GoAway,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK's literals: no table, no Huffman code, nothing checked.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        assert!(text.len() < 127, "a longer one needs more than a byte for its length");
        [&[text.len() as u8], text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A client that has said its preface.
async fn connect(cluster: &Cluster) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&preface).await.unwrap();
    stream
}

/// What becomes of a stream.
async fn outcome(stream: &mut TcpStream, number: u32) -> Outcome {
    let reading = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return Outcome::GoAway;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                GOAWAY => return Outcome::GoAway,
                RST_STREAM if of == number => return Outcome::Reset,
                HEADERS if of == number => return Outcome::Answer,
                _ => {}
            }
        }
    };
    in_time("something comes of the stream", reading).await
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")];

async fn cluster() -> (Cluster, Backend) {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("", "/", "a");
    (cluster, a)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abused_fields_reach_no_endpoint() {
    let (cluster, a) = cluster().await;
    let with = |field: (&'static str, &'static str)| [&GET[..], &[field]].concat();
    let replaced = |name: &str, value: &'static str| {
        GET.map(|(field, usual)| if field == name { (field, value) } else { (field, usual) }).to_vec()
    };
    let without = |name: &str| GET.into_iter().filter(|(field, _)| *field != name).collect::<Vec<_>>();
    for fields in [
        // Pseudo fields: missing, twice, unknown, late, of a response.
        without(":method"),
        without(":path"),
        without(":scheme"),
        with((":method", "POST")),
        with((":path", "/other")),
        with((":authority", "y")),
        with((":unknown", "1")),
        with((":status", "200")),
        [&[("accept", "*/*")][..], &GET].concat(),
        replaced(":path", ""),
        // What would end a line, or a word, of HTTP/1.1.
        replaced(":path", "/ HTTP/1.1\r\nHost: y\r\n\r\nGET /smuggled"),
        replaced(":path", "/a b"),
        replaced(":path", "/a\0b"),
        replaced(":method", "GET / HTTP/1.1\r\n\r\n"),
        replaced(":method", "GE T"),
        replaced(":authority", "x\r\nx-injected: 1"),
        replaced(":authority", "a b"),
        replaced(":authority", "user@x"),
        with(("x", "a\r\nx-injected: 1")),
        with(("x", "a\nx-injected: 1")),
        with(("x", "a\0")),
        with(("x y", "1")),
        with(("x:", "1")),
        with(("x\r\ny", "1")),
        with(("", "1")),
        with(("Upper", "1")),
        // What belongs to a connection of HTTP/1.1.
        with(("connection", "close")),
        with(("transfer-encoding", "chunked")),
        with(("upgrade", "h2c")),
        with(("keep-alive", "1")),
        with(("proxy-connection", "close")),
        with(("te", "gzip")),
        // Two hosts, and lengths that are not kept.
        with(("host", "y")),
        [&GET[..], &[("host", "x"), ("host", "x")]].concat(),
        with(("content-length", "5")),
        with(("content-length", "-0")),
        with(("content-length", "0,0")),
    ] {
        let mut stream = connect(&cluster).await;
        let headers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields));
        stream.write_all(&headers).await.unwrap();
        outcome(&mut stream, 1).await;
        assert_eq!(a.count(), 0, "{fields:?} reached the endpoint");
    }
    let mut stream = connect(&cluster).await;
    stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&GET))).await.unwrap();
    assert_eq!(
        (outcome(&mut stream, 1).await, a.count()),
        (Outcome::Answer, 1),
        "and one as it should be does"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_as_long_as_it_says_is_no_request() {
    let (cluster, a) = cluster().await;
    let fields = [&GET[1..], &[(":method", "POST"), ("content-length", "3")]].concat();
    for bodies in [&["abcd"][..], &["ab"], &["a", "b"], &["abc", "d"]] {
        let mut stream = connect(&cluster).await;
        let mut frames = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        for (at, body) in bodies.iter().enumerate() {
            let flags = if at + 1 == bodies.len() { END_STREAM } else { 0 };
            frames.extend(frame(DATA, flags, 1, body.as_bytes()));
        }
        stream.write_all(&frames).await.unwrap();
        assert_ne!(outcome(&mut stream, 1).await, Outcome::Answer, "{bodies:?}");
    }
    // The endpoint may have seen the beginning of one, and that it broke off.
    assert_eq!(cluster.get("x", "/").await.0, 200);
    assert!(a.count() <= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_are_cut_off() {
    let (cluster, a) = cluster().await;
    // CONTINUATION without end (CVE-2024-27316), and a head larger than any.
    let mut stream = connect(&cluster).await;
    stream.write_all(&frame(HEADERS, END_STREAM, 1, &block(&GET))).await.unwrap();
    let field = ("x", "a".repeat(120));
    let more = frame(CONTINUATION, 0, 1, &block(&vec![("x", field.1.as_str()); 100]));
    let flooding = async {
        for _ in 0..10_000 {
            if stream.write_all(&more).await.is_err() {
                return;
            }
        }
        panic!("120 MB of fields were taken");
    };
    in_time("the flood ends", flooding).await;
    // Pings and settings that want answers which nobody reads.
    let mut stream = connect(&cluster).await;
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(10_000);
    let _ = in_time("settings", stream.write_all(&settings)).await;
    assert_eq!(cluster.get("x", "/").await.0, 200, "others are served");
    assert_eq!(a.count(), 1);
}
