//! What all proxies have behind them: it answers every GET with bytes that were made once.

use std::{io, net::Ipv4Addr, sync::LazyLock};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

/// Connections that wait to be taken: 512 streams of HTTP/2 open as many at once, and a client whose connection finds no
/// room asks again a second later.
const BACKLOG: u32 = 4_096;

/// A request head that is longer is none of the bench's.
const MAX_HEAD_BYTES: usize = 4_096;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) path: &'static str,
    pub(crate) length: usize,
}

pub(crate) const SMALL: Body = Body { path: "/small", length: 128 };
pub(crate) const LARGE: Body = Body { path: "/large", length: 16 * 1_024 };

static SMALL_RESPONSE: LazyLock<Vec<u8>> = LazyLock::new(|| response(SMALL));
static LARGE_RESPONSE: LazyLock<Vec<u8>> = LazyLock::new(|| response(LARGE));

fn response(body: Body) -> Vec<u8> {
    let length = body.length;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + length, b'w');
    bytes
}

/// Listens on a free port; call it inside the runtime that will serve.
pub(crate) fn bind(address: Ipv4Addr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    socket.listen(BACKLOG)
}

/// Serves on the caller's runtime, for as long as that runs.
pub(crate) async fn serve(listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // A connection that breaks is seen by who asked through it.
        tokio::spawn(connection(stream));
    }
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = Vec::with_capacity(MAX_HEAD_BYTES);
    while requests.len() < MAX_HEAD_BYTES && stream.read_buf(&mut requests).await? > 0 {
        while let Some(end) = head_end(&requests) {
            let is_large = requests.starts_with(b"GET /large ");
            let response = if is_large { &LARGE_RESPONSE } else { &SMALL_RESPONSE };
            stream.write_all(response).await?;
            requests.drain(..end);
        }
    }
    Ok(())
}

/// How long the first head in there is, with the empty line behind it.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    bytes.windows(END.len()).position(|window| window == END).map(|start| start + END.len())
}
