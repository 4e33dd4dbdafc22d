//! HTTP: every request is answered with a JSON report of itself, but for a few paths that tests and benches need.
//!
//! | path | answer |
//! |---|---|
//! | `/status/N` | status N, no body |
//! | `/bytes/N` | N bytes of `x` (at most 16 MiB) |
//! | `/fetch/HOST:PORT/PATH` | what a GET of that address answers, so that a test can ask from inside a pod |
//! | `/sleep/MS` | the report, after MS milliseconds (at most 60,000) |
//! | any, with `Upgrade: websocket` | each message back |

use std::{convert::Infallible, error::Error, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use crate::report::Pod;

/// Bodies beyond this are refused.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Longest `/sleep`.
const MAX_SLEEP_MS: u64 = 60_000;

#[derive(Serialize)]
struct Report<'a> {
    pod: Pod,
    peer: String,
    method: &'a str,
    uri: String,
    version: String,
    /// In order of arrival; a name may occur more than once.
    headers: Vec<(&'a str, String)>,
    body: String,
}

/// Serves until the listener fails.
pub(crate) async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, local, peer));
            let connection = auto::Builder::new(TokioExecutor::new());
            // A client that leaves early is not an event worth telling.
            let _ = connection.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    mut request: Request<Incoming>,
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if let Some(key) = websocket_key(request.headers()) {
        tokio::spawn(echo_messages(hyper::upgrade::on(&mut request)));
        return Ok(switching_protocols(&key));
    }
    let path = request.uri().path().to_owned();
    if let Some(status) = number(&path, "/status/").and_then(|n| StatusCode::from_u16(n as u16).ok()) {
        return Ok(plain(status, Bytes::new()));
    }
    if let Some(length) = number(&path, "/bytes/") {
        let length = usize::try_from(length).map_or(MAX_BODY_BYTES, |length| length.min(MAX_BODY_BYTES));
        return Ok(plain(StatusCode::OK, Bytes::from(vec![b'x'; length])));
    }
    if let Some(target) = path.strip_prefix("/fetch/") {
        return Ok(fetch(target)
            .await
            .unwrap_or_else(|error| plain(StatusCode::BAD_GATEWAY, Bytes::from(format!("{error}\n")))));
    }
    if let Some(ms) = number(&path, "/sleep/") {
        sleep(Duration::from_millis(ms.min(MAX_SLEEP_MS))).await;
    }
    Ok(report(request, local, peer).await)
}

async fn report(request: Request<Incoming>, local: SocketAddr, peer: SocketAddr) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return plain(StatusCode::PAYLOAD_TOO_LARGE, Bytes::from(format!("{error}\n"))),
    };
    let report = Report {
        pod: Pod::now(local),
        peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string(),
        method: head.method.as_str(),
        uri: head.uri.to_string(),
        version: format!("{:?}", head.version),
        headers: head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let mut text = serde_json::to_vec_pretty(&report).expect("strings and maps of strings are always JSON");
    text.push(b'\n');
    let mut response = plain(StatusCode::OK, Bytes::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Asks another server over a fresh connection and passes its answer on.
async fn fetch(target: &str) -> Result<Response<Full<Bytes>>, Box<dyn Error + Send + Sync>> {
    let (address, path) = target.split_once('/').unwrap_or((target, ""));
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("/{path}")).header(HOST, address).body(Empty::<Bytes>::new())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await?.to_bytes();
    Ok(plain(head.status, body))
}

fn plain(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

/// The number behind `prefix`, if the path is just that.
fn number(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}

/// The handshake's key, if the request asks for a WebSocket (RFC 6455, section 4.2.1).
fn websocket_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(UPGRADE)?.as_bytes();
    upgrade.eq_ignore_ascii_case(b"websocket").then(|| headers.get(SEC_WEBSOCKET_KEY).cloned())?
}

fn switching_protocols(key: &HeaderValue) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    let accept = derive_accept_key(key.as_bytes());
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).expect("base64 is a header value"));
    response
}

/// Sends each text or binary message back until either side closes.
async fn echo_messages(upgrade: hyper::upgrade::OnUpgrade) {
    let Ok(connection) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}
