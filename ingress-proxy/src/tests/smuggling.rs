//! Requests that two readers could read as different ones, checked where it counts: at the endpoint.
//!
//! Whatever a client sends, the endpoint must see the same requests whichever way it reads them: by lengths first or by
//! chunks first, with lines that end in bare line feeds or not, the first of two fields or the last. And each of them must have
//! got its own response, in order.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::sample::select;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::{Cluster, in_time, read_all};

/// Behind every case: who smuggled a request gets the answer of another one here.
const SENTINEL: &str = "GET /sentinel HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// One of the ways in which servers read HTTP/1.1.
#[expect(clippy::struct_excessive_bools, reason = "each is a leniency of its own")]
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// `Transfer-Encoding` counts when there is a `Content-Length` too.
    chunks_first: bool,
    /// A line may end without a carriage return.
    bare_line_feeds: bool,
    /// Of several fields the last one counts.
    last_field: bool,
    /// What only contains the word is chunked.
    loose_coding: bool,
}

impl Reading {
    fn all() -> impl Iterator<Item = Self> {
        (0..16_u8).map(|bits| Self {
            chunks_first: bits & 1 != 0,
            bare_line_feeds: bits & 2 != 0,
            last_field: bits & 4 != 0,
            loose_coding: bits & 8 != 0,
        })
    }

    /// The request lines of a connection, each with the length of its body; behind the last whole request, the rest.
    fn requests(self, mut bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let Some((line, length, rest)) = self.request(bytes) else {
                found.push(format!("unfinished: {}", String::from_utf8_lossy(bytes)));
                break;
            };
            found.push(format!("{line} +{length}"));
            bytes = rest;
        }
        found
    }

    fn request(self, bytes: &[u8]) -> Option<(String, usize, &[u8])> {
        let mut rest = bytes;
        let first = self.line(&mut rest)?;
        let (mut lengths, mut codings) = (Vec::new(), Vec::new());
        loop {
            let line = self.line(&mut rest)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            match name.trim().to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value.trim().to_owned()),
                "transfer-encoding" => codings.push(value.trim().to_ascii_lowercase()),
                _ => {}
            }
        }
        let one =
            |mut fields: Vec<String>| if self.last_field { fields.pop() } else { fields.into_iter().next() };
        let (length, coding) = (one(lengths), one(codings));
        let is_chunked = coding.is_some_and(|coding| {
            if self.loose_coding { coding.contains("chunked") } else { coding == "chunked" }
        });
        let length = match length {
            Some(length) if !(is_chunked && self.chunks_first) => length.parse().ok()?,
            _ if is_chunked => {
                let mut whole = 0;
                loop {
                    let line = self.line(&mut rest)?;
                    let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
                    if size == 0 {
                        while !self.line(&mut rest)?.is_empty() {}
                        return Some((first, whole, rest));
                    }
                    whole += size;
                    rest = rest.get(size..)?;
                    if !self.line(&mut rest)?.is_empty() {
                        return None;
                    }
                }
            }
            _ => 0,
        };
        Some((first, length, rest.get(length..)?))
    }

    /// The next line, without its end.
    fn line(self, rest: &mut &[u8]) -> Option<String> {
        let end = (0..rest.len()).find(|&at| {
            rest[at] == b'\n'
                && (self.bare_line_feeds || at.checked_sub(1).is_some_and(|at| rest[at] == b'\r'))
        })?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        *rest = &rest[end + 1..];
        Some(line)
    }
}

/// An endpoint that keeps what it was sent, and answers each request with its target.
struct Recorder {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut noted = noted.lock().unwrap();
                    noted.push(Vec::new());
                    noted.len() - 1
                };
                tokio::spawn(record(stream, number, Arc::clone(&noted)));
            }
        });
        Self { address, connections }
    }

    /// What came since the last time, by connection.
    fn take(&self) -> Vec<Vec<u8>> {
        let mut connections = self.connections.lock().unwrap();
        connections.iter_mut().map(std::mem::take).filter(|bytes| !bytes.is_empty()).collect()
    }
}

async fn record(mut stream: TcpStream, number: usize, noted: Arc<Mutex<Vec<Vec<u8>>>>) {
    let strict =
        Reading { chunks_first: true, bare_line_feeds: false, last_field: false, loose_coding: false };
    let (mut unread, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        noted.lock().unwrap()[number].extend_from_slice(&chunk[..count]);
        unread.extend_from_slice(&chunk[..count]);
        while let Some((line, _, rest)) = strict.request(&unread) {
            let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
            unread = rest.to_vec();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// The proxy in front of a recorder.
async fn proxy() -> (Cluster, Recorder) {
    let recorder = Recorder::start().await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[recorder.address]);
    cluster.route("", "/", "a");
    (cluster, recorder)
}

/// Sends a case and the sentinel. Returns the statuses that the client got, once it is clear that the endpoint saw neither
/// more nor other requests than were answered from there.
async fn pass(cluster: &Cluster, recorder: &Recorder, case: &str) -> Vec<u16> {
    let mut stream = TcpStream::connect(cluster.http).await.unwrap();
    let _ = stream.write_all(format!("{case}{SENTINEL}").as_bytes()).await;
    let _ = stream.shutdown().await;
    let heard = read_all(&mut stream).await;
    let mut statuses = Vec::new();
    let mut served = Vec::new();
    for answer in heard.split("HTTP/1.1 ").skip(1) {
        let status: u16 = answer[..3].parse().unwrap();
        statuses.push(status);
        if status == 200 {
            served.push(answer.split("\r\n\r\n").nth(1).unwrap().to_owned());
        }
    }
    let connections = recorder.take();
    let seen = |reading: Reading| -> Vec<String> {
        connections.iter().flat_map(|bytes| reading.requests(bytes)).collect()
    };
    let mut readings = Reading::all().map(|reading| (reading, seen(reading)));
    let (_, first) = readings.next().unwrap();
    for (reading, requests) in readings {
        assert_eq!(requests, first, "{case:?} is read differently by {reading:?}");
    }
    let whole = first.iter().filter(|line| !line.starts_with("unfinished"));
    let targets: Vec<_> = whole.map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    // A request may be cut short, by a fault in its body, after it was sent on; one that is whole has its answer.
    assert_eq!(served, targets, "{case:?} got {heard:?} for {first:?}");
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_endpoint_reads_the_same_requests() {
    const POST: &str = "POST /case HTTP/1.1\r\nHost: x\r\n";
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let (cluster, recorder) = proxy().await;
    let length = SMUGGLED.len();
    let post = |fields: &str, body: &str| format!("{POST}{fields}\r\n{body}");
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    for (case, expected) in [
        // Served, both requests.
        (post("Content-Length: 2\r\n", "ab"), &[200, 200][..]),
        (chunked("2\r\nab\r\n0\r\n\r\n"), &[200, 200]),
        (chunked("2;ext=\"a\"\r\nab\r\n0\r\nX-Trailer: 1\r\n\r\n"), &[200, 200]),
        (chunked("0002\r\nab\r\n000\r\n\r\n"), &[200, 200]),
        (post("TRANSFER-ENCODING: Chunked\r\n", "1\r\na\r\n0\r\n\r\n"), &[200, 200]),
        (post("Content-Length: 0\r\n", ""), &[200, 200]),
        (post(&format!("Content-Length: {length}\r\n"), SMUGGLED), &[200, 200]),
        // Two framings, or one that is not understood by all.
        (post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", SMUGGLED), &[400]),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding:\u{b}chunked\r\n", "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), &[400]),
        (post("Transfer-Encoding\r\n : chunked\r\n", "0\r\n\r\n"), &[400]),
        (post(" Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[400]),
        (post("X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[400]),
        (post("X: y\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[400]),
        (post("Content-Length: 2\r\nContent-Length: 2\r\n", "ab"), &[400]),
        (post("Content-Length: 2, 2\r\n", "ab"), &[400]),
        (post("Content-Length: 0x2\r\n", "ab"), &[400]),
        (post("Content-Length: 2 \u{b}\r\n", "ab"), &[400]),
        (post("Content-Length: 18446744073709551618\r\n", "ab"), &[400]),
        (post("Content_Length: 5\r\nContent-Length: -5\r\n", "ab"), &[400]),
        // Chunks that end elsewhere for others. What was sent on breaks off there.
        (chunked("2\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("2\r\nab\n0\r\n\r\n"), &[400]),
        (chunked("2\r\nabc\r\n0\r\n\r\n"), &[400]),
        (chunked("2 ;x\r\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("0x2\r\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("+2\r\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("\r\n2\r\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("2;a=\nb\r\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("10000000000000002\r\nab\r\n0\r\n\r\n"), &[400]),
        (chunked("0\r\nTrailer: a\n\r\n"), &[400]),
        // Hosts and targets.
        ("GET http://y/case HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400]),
        ("GET /case HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".into(), &[400]),
        ("GET /case HTTP/1.1\r\nHost: x, y\r\n\r\n".into(), &[400]),
        ("GET /ca se HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400]),
        ("GET /case\tHTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400]),
        ("GET /case HTTP/1.1\r\n\r\nHost: x\r\n\r\n".into(), &[400]),
        ("GET /case HTTP/2.0\r\nHost: x\r\n\r\n".into(), &[400]),
        ("GET /case HTTP/1.2\r\nHost: x\r\n\r\n".into(), &[400]),
        ("GET /case\r\n".into(), &[400]),
        ("GE\0T /case HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[400]),
    ] {
        let statuses = in_time(&case, pass(&cluster, &recorder, &case)).await;
        assert_eq!(statuses, expected, "{case:?}");
    }
}

/// Heads and bodies put together from what has fooled servers before.
fn requests() -> impl Strategy<Value = String> {
    let line = select(vec![
        "POST /r HTTP/1.1\r\n",
        "GET /r HTTP/1.1\r\n",
        "POST /r HTTP/1.0\r\n",
        "POST http://x/r HTTP/1.1\r\n",
        "PUT /r HTTP/1.1\n",
    ]);
    let field = select(vec![
        "Host: x\r\n",
        "Content-Length: 3\r\n",
        "content-length: 0\r\n",
        "Content-Length: 10\r\n",
        "Content-Length: 3\n",
        "Content-Length:\r\n 3\r\n",
        "Content-Length : 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-encoding:chunked\r\n",
        "Transfer-Encoding: \tchunked\t\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Connection: keep-alive\r\n",
        "Connection: Transfer-Encoding, Content-Length\r\n",
        "Connection: close\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\n",
        "X: \r\n",
        "X: a\rb\r\n",
        "\r\n",
    ]);
    let body = select(vec![
        "",
        "abc",
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nA: b\r\n\r\n",
        "3;x\r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "GET /inner HTTP/1.1\r\nHost: x\r\n\r\n",
        "0\r\n\r\nGET /inner HTTP/1.1\r\nHost: x\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\nGET /inner HTTP/1.1\r\nHost: x\r\n\r\n",
    ]);
    (line, prop::collection::vec(field, 0..5), body)
        .prop_map(|(line, fields, body)| format!("{line}Host: x\r\n{}\r\n{body}", fields.concat()))
}

/// The same for cases that nobody thought of.
#[test]
fn every_endpoint_reads_the_same_of_anything() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (cluster, recorder) = runtime.block_on(proxy());
    proptest!(ProptestConfig::with_cases(1_000), |(case in requests())| {
        runtime.block_on(in_time(&case, pass(&cluster, &recorder, &case)));
    });
}

#[test]
fn the_readings_tell_smuggled_requests_apart() {
    for (sent, at_least) in [
        (
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
            2,
        ),
        ("POST / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 4\r\n\r\nabcd", 2),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 2),
        ("GET / HTTP/1.1\r\nX: y\n\nGET /b HTTP/1.1\r\n\r\n", 2),
    ] {
        let mut seen: Vec<_> = Reading::all().map(|reading| reading.requests(sent.as_bytes())).collect();
        seen.sort();
        seen.dedup();
        assert!(seen.len() >= at_least, "{sent:?} is read as {seen:?} by all");
    }
}
