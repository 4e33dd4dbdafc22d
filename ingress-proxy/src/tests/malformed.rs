//! Requests that must not get through, sent raw; the backend must not see any of them.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::backend::Backend;
use super::cluster::{Cluster, eventually, in_time, quick, read_all, split};
use crate::config::Timeouts;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_get_their_answer_and_no_further() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("", "/", "a");
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "a".repeat(900 * 1024));
    let rows: &[(&str, &[u8], u16, &str)] = &[
        ("no host", b"GET / HTTP/1.1\r\n\r\n", 400, "no Host"),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, ""),
        ("host with a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "host"),
        ("host with userinfo", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, ""),
        ("absolute form differs", b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""),
        ("bare LF", b"GET / HTTP/1.1\nHost: x\n\n", 400, "bare line feed"),
        ("bare LF in a field", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400, "bare line feed"),
        ("obs-fold", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400, ""),
        ("space before the colon", b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, ""),
        ("TRACE", b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "TRACE"),
        ("CONNECT", b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 405, ""),
        (
            "CL.TE",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
            400,
            "both Content-Length and Transfer-Encoding",
        ),
        (
            "TE.CL",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1\r\nX\r\n0\r\n\r\n",
            400,
            "both Content-Length and Transfer-Encoding",
        ),
        (
            "TE.TE",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
            400,
            "",
        ),
        ("TE obscured", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, ""),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nX", 400, ""),
        ("negative length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, ""),
        ("length with a sign", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nX", 400, ""),
        ("TE in HTTP/1.0", b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, ""),
        ("escaped slash", b"GET /a%2fb HTTP/1.1\r\nHost: x\r\n\r\n", 400, "escaped slash"),
        ("escaped dots", b"GET /%2e%2e/b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "escaped dot"),
        ("escaped NUL", b"GET /a%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "escaped control"),
        ("above the root", b"GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 400, "above the root"),
        ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "does not start with a slash"),
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""),
        ("900 KB of head", large.as_bytes(), 431, "larger than"),
    ];
    for (what, request, status, text) in rows {
        let response = cluster.raw(request).await;
        let (got, body) = split(&response);
        assert_eq!(got, *status, "{what}: {response}");
        assert!(body.contains(text), "{what}: {body}");
        assert!(response.matches("HTTP/1.1").count() <= 1, "{what} was answered twice: {response}");
    }
    assert_eq!(a.count(), 0, "a malformed request reached the backend");
    assert_eq!(cluster.get("x", "/").await.0, 200, "and the proxy is well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_chunks_end_the_exchange() {
    let a = Backend::start("a").await;
    let cluster = Cluster::start();
    cluster.service("a", false, &[a.address]);
    cluster.route("", "/", "a");
    for chunk in ["zz\r\nX\r\n0\r\n\r\n", "-1\r\nX\r\n0\r\n\r\n", "ffffffffffffffffff\r\nX\r\n0\r\n\r\n"] {
        let request = format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        let response = cluster.raw(request.as_bytes()).await;
        assert_ne!(split(&response).0, 200, "{chunk:?}: {response}");
    }
}

/// Every byte comes in time; the head as a whole does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dribbled_head_has_a_deadline() {
    let cluster = Cluster::start();
    let (mut reader, mut writer) = TcpStream::connect(cluster.http).await.unwrap().into_split();
    let dribbling = tokio::spawn(async move {
        let head = b"GET / HTTP/1.1\r\nHost: x\r\n".iter().chain(b"X-Slow: ".iter().cycle());
        for byte in head {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    });
    let response = read_all(&mut reader).await;
    dribbling.abort();
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert!(cluster.metrics().contains("refused_total{reason=\"HeaderTimeout\"} 1"));
}

/// Where a connection was kept: as long as nothing comes, one time is waited, and from a head's first byte on another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_has_a_deadline_for_silence_and_one_for_a_head() {
    let a = Backend::start("a").await;
    let (short, long) = (Duration::from_millis(300), Duration::from_hours(1));
    let whole = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let half = "GET / HTTP/1.1\r\nHo";
    for (keepalive, header, pieces, then) in [
        (short, long, &[whole][..], &["HTTP/1.1 200"][..]),
        (long, short, &[whole, half], &["HTTP/1.1 200", "HTTP/1.1 408"]),
        // Half of it is there when it is waited for.
        (long, short, &[&format!("{whole}{half}")], &["HTTP/1.1 200", "HTTP/1.1 408"]),
    ] {
        // Nor is it another's that is still running.
        let timeouts = Timeouts { keepalive, header, read: long, ..quick() };
        let cluster = Cluster::with(timeouts, Path::new("off"));
        cluster.service("a", false, &[a.address]);
        cluster.route("x", "/", "a");
        let mut stream = TcpStream::connect(cluster.http).await.unwrap();
        let seen = a.count();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            eventually("the first request is there", async || a.count() > seen).await;
        }
        let all = in_time("the end", read_all(&mut stream)).await;
        let statuses: Vec<&str> = all.matches("HTTP/1.1 200").chain(all.matches("HTTP/1.1 408")).collect();
        assert_eq!(statuses, then, "{all}");
    }
}

/// Silence is cut off too, before the first request; also where the first bytes could still become HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_end() {
    let cluster = Cluster::start();
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(cluster.http).await.unwrap();
        stream.write_all(said).await.unwrap();
        assert_eq!(read_all(&mut stream).await, "");
    }
    let mut tls = TcpStream::connect(cluster.https).await.unwrap();
    assert_eq!(read_all(&mut tls).await, "");
}
