//! A client of HTTP/1.1 that does no more than a load needs: one request, one response, whole and of the right length.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::backend::{Body, head_end};

/// The largest response at once, with its head.
const BUFFER_BYTES: usize = 32 * 1_024;

/// What is written for one request.
pub(crate) fn request(host: &str, path: &str, close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ingress-bench\r\nAccept: */*\r\n{connection}\r\n"
    )
    .into_bytes()
}

pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One connection.
pub(crate) struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    /// Sends the request and takes the whole of its response, which must be the body that was asked for.
    pub(crate) async fn ask(&mut self, request: &[u8], body: Body) -> Result<()> {
        let status = self.exchange(request).await?;
        let length = self.buffer.len();
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&self.buffer).trim_end());
        ensure!(length == body.length, "a body of {length} bytes, not {}", body.length);
        Ok(())
    }

    /// Sends the request and takes the whole of its response, whose body is in the buffer then. Returns its status.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await.context("sending a request")?;
        self.stream.flush().await.context("sending a request")?;
        self.buffer.clear();
        let end = loop {
            self.more().await?;
            if let Some(end) = head_end(&self.buffer) {
                break end;
            }
        };
        let (status, length) = read_head(&self.buffer[..end])?;
        while self.buffer.len() < end + length {
            self.more().await?;
        }
        ensure!(self.buffer.len() == end + length, "more than the response that was asked for");
        self.buffer.drain(..end);
        Ok(status)
    }

    /// Waits until the other side has closed.
    pub(crate) async fn closed(mut self) -> Result<()> {
        self.buffer.clear();
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Ok(()),
            // TLS that ends without a word ends all the same.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
            Ok(_) => bail!("more than the response that was asked for"),
            Err(error) => Err(error).context("waiting for the end of the connection"),
        }
    }

    async fn more(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await.context("reading a response")?;
        ensure!(read > 0, "the connection was closed within a response");
        Ok(())
    }
}

/// Status and length of the body.
fn read_head(head: &[u8]) -> Result<(u16, usize)> {
    let text = std::str::from_utf8(head).context("a response's head")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    status.zip(length).with_context(|| format!("a response without status or length: {text}"))
}
