//! A connection on which bytes come in pieces, for tests of who reads what a connection begins with.

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::wire::Buffer;

/// What `read` makes of the pieces, after which the connection ends, and what it leaves unread.
pub(super) async fn read<T>(
    pieces: &[&[u8]],
    read: impl AsyncFnOnce(&mut TcpStream, &mut Buffer) -> T,
) -> (T, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let mut server = listener.accept().await.unwrap().0;
    let mut input = Buffer::default();
    let send = async {
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read(&mut server, &mut input), send);
    (read, input.filled().to_vec())
}
