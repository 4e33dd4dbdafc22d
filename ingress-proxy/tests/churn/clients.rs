//! Clients of every kind, at a steady pace, none of which sends twice what a server may have looked at; and two that stay
//! connected.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use weir_tests::Authority;

use super::{HOST, Outcome, Site};

/// Pause between two requests of one client.
const PACE: Duration = Duration::from_millis(5);
/// A request that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// Starts one of each kind, until `stop`.
pub(super) fn start(
    site: Site,
    authority: &Authority,
    stop: &CancellationToken,
) -> Vec<(&'static str, JoinHandle<Outcome>)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(tls));
    vec![
        ("connections", tokio::spawn(connections(site.http, stop.clone()))),
        ("keepalive", tokio::spawn(keepalive(site.http, stop.clone()))),
        ("TLS connections", tokio::spawn(tls_connections(site.https, tls, stop.clone()))),
        ("HTTP/2", tokio::spawn(streams(site.http, stop.clone()))),
    ]
}

/// Text for what went wrong.
fn told(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// Sends a request and reads its answer. Says whether the connection stays.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), close: bool) -> Result<bool, String> {
    let connection = if close { "close" } else { "keep-alive" };
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: {connection}\r\n\r\n");
    let exchange = async {
        stream.write_all(request.as_bytes()).await.map_err(told)?;
        let mut heard = String::new();
        while !heard.ends_with("\r\n\r\nserved") {
            let byte = stream.read_u8().await.map_err(|error| format!("{error:?} behind {heard:?}"))?;
            heard.push(char::from(byte));
        }
        if !heard.starts_with("HTTP/1.1 200") {
            return Err(heard);
        }
        Ok(!heard.contains("connection: close"))
    };
    timeout(DEADLINE, exchange).await.map_err(told)?
}

async fn connections(address: SocketAddr, stop: CancellationToken) -> Outcome {
    let mut outcome = Outcome::default();
    while !stop.is_cancelled() {
        let one = async {
            let mut stream = TcpStream::connect(address).await.map_err(told)?;
            ask(&mut stream, true).await.map(drop)
        };
        outcome.note(one.await);
        sleep(PACE).await;
    }
    outcome
}

/// The same on the connection that was kept, or on a new one, which is kept if it may be.
pub(super) async fn ask_again(address: SocketAddr, kept: &mut Option<TcpStream>) -> Result<(), String> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect(address).await.map_err(told)?,
    };
    if ask(&mut stream, false).await? {
        *kept = Some(stream);
    }
    Ok(())
}

async fn keepalive(address: SocketAddr, stop: CancellationToken) -> Outcome {
    let mut outcome = Outcome::default();
    let mut kept = None;
    while !stop.is_cancelled() {
        outcome.note(ask_again(address, &mut kept).await);
        sleep(PACE).await;
    }
    outcome
}

async fn tls_connections(address: SocketAddr, tls: TlsConnector, stop: CancellationToken) -> Outcome {
    let mut outcome = Outcome::default();
    while !stop.is_cancelled() {
        let one = async {
            let stream = TcpStream::connect(address).await.map_err(told)?;
            let name = ServerName::try_from(HOST).map_err(told)?;
            let mut stream = tls.connect(name, stream).await.map_err(told)?;
            ask(&mut stream, true).await.map(drop)
        };
        outcome.note(one.await);
        sleep(PACE).await;
    }
    outcome
}

/// A connection by HTTP/2.
async fn connect_http2(address: SocketAddr) -> Result<SendRequest<Bytes>, String> {
    let stream = TcpStream::connect(address).await.map_err(told)?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(told)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A request and the status of its answer. Nothing when the connection goes away and the request was not looked at, which a
/// client may send once more elsewhere (RFC 9113 §8.7).
async fn ask_http2(sender: SendRequest<Bytes>) -> Result<Option<(SendRequest<Bytes>, u16)>, String> {
    let asking = async {
        let mut sender = sender.ready().await?;
        let mut request = Request::new(());
        *request.uri_mut() = format!("http://{HOST}/grpc").parse().expect("an address");
        let (response, _) = sender.send_request(request, true)?;
        Ok((sender, response.await?.status().as_u16()))
    };
    match timeout(DEADLINE, asking).await.map_err(told)? {
        Ok(asked) => Ok(Some(asked)),
        Err(error) if h2::Error::is_go_away(&error) && error.reason() == Some(Reason::NO_ERROR) => Ok(None),
        Err(error) => Err(told(error)),
    }
}

async fn streams(address: SocketAddr, stop: CancellationToken) -> Outcome {
    let mut outcome = Outcome::default();
    let mut kept = None;
    while !stop.is_cancelled() {
        let one = async {
            let asked = match kept.take() {
                Some(sender) => ask_http2(sender).await?,
                None => None,
            };
            let asked = match asked {
                Some(asked) => Some(asked),
                None => ask_http2(connect_http2(address).await?).await?,
            };
            let (sender, status) = asked.ok_or("a fresh connection goes away")?;
            kept = Some(sender);
            if status == 200 { Ok(()) } else { Err(format!("status {status}")) }
        };
        outcome.note(one.await);
        sleep(PACE).await;
    }
    outcome
}

/// Connects what stays connected until `stop`: each takes turns of saying something and hearing it, and counts them.
pub(super) async fn hold(
    address: SocketAddr,
    stop: &CancellationToken,
) -> Vec<(&'static str, JoinHandle<usize>)> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(socket.read_u8().await.unwrap());
    }
    assert!(heard.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&heard));
    let stopped = stop.clone();
    let websocket = tokio::spawn(async move {
        let mut turns = 0;
        while !stopped.is_cancelled() {
            socket.write_all(b"turn").await.unwrap();
            let mut back = [0; 4];
            timeout(DEADLINE, socket.read_exact(&mut back)).await.expect("an echo").unwrap();
            assert_eq!(&back, b"turn");
            turns += 1;
            sleep(PACE).await;
        }
        turns
    });

    let mut sender = connect_http2(address).await.unwrap().ready().await.unwrap();
    let request = Request::post(format!("http://{HOST}/grpc")).body(()).unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    let stopped = stop.clone();
    let grpc = tokio::spawn(async move {
        let mut turns = 0;
        while !stopped.is_cancelled() {
            stream.send_data(Bytes::from_static(b"turn"), false).unwrap();
            let back = timeout(DEADLINE, body.data()).await.expect("an echo").unwrap().unwrap();
            assert_eq!(back, "turn");
            body.flow_control().release_capacity(back.len()).unwrap();
            turns += 1;
            sleep(PACE).await;
        }
        turns
    });
    vec![("WebSocket", websocket), ("gRPC stream", grpc)]
}
