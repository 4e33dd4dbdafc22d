//! A plain HTTP/1.1 client over one fresh connection: what a load needs, and no more.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Everything behind the header block.
    pub body: String,
}

/// Sends one GET and reads the answer until the server closes.
pub fn get(address: SocketAddr, host: &str, path: &str, deadline: Duration) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, deadline).context("connecting")?;
    stream.set_read_timeout(Some(deadline))?;
    stream.set_write_timeout(Some(deadline))?;
    // In one piece: a server that answers the first may have closed before the second.
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("sending")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading")?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of headers")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status line")?;
    Ok(Response { status, body: body.to_owned() })
}
