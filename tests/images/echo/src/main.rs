//! The test image: a server that answers with what it saw.
//!
//! One static program, so that the image is one file. HTTP/1.1, HTTP/2 with prior knowledge and WebSocket share
//! `LISTEN_HTTP` (8080); plain TCP and UDP echo share `LISTEN_ECHO` (9000). Examples, whole-cluster tests and benches run it.

mod http;
mod report;
mod stream;

use std::{env, io, net::Ipv6Addr, time::Duration};

use tokio::{
    net::{TcpListener, UdpSocket},
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// How long requests are still answered after SIGTERM: the time that the news "this endpoint is terminating" may
/// take to reach every client.
const DRAIN: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let http = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port("LISTEN_HTTP", 8080)?)).await?;
    let echo = (Ipv6Addr::UNSPECIFIED, port("LISTEN_ECHO", 9000)?);
    let tcp = TcpListener::bind(echo).await?;
    let udp = UdpSocket::bind(echo).await?;

    println!("HTTP on {}, echo on {}", http.local_addr()?, tcp.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = http::serve(http) => result,
        result = stream::serve_tcp(tcp) => result,
        result = stream::serve_udp(udp) => result,
        () = async {
            terminate.recv().await;
            println!("SIGTERM: serving for {DRAIN:?} more");
            sleep(DRAIN).await;
        } => Ok(()),
    }
}

/// The port that the environment names, or the default. No name ends in `_PORT`: a Service called `echo` gives every pod an
/// `ECHO_PORT` of its own.
fn port(variable: &str, default: u16) -> io::Result<u16> {
    match env::var(variable) {
        Ok(value) => value.parse().map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{variable}={value}: {error}"))
        }),
        Err(_) => Ok(default),
    }
}
