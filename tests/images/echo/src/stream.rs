//! TCP and UDP: what comes in goes back.

use std::io;

use tokio::{
    io::copy,
    net::{TcpListener, UdpSocket},
};

/// The largest datagram that UDP over IPv4 can carry.
const MAX_DATAGRAM_BYTES: usize = 65_507;

/// Echoes every connection until its client closes its side.
pub(crate) async fn serve_tcp(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            // A reset by the client ends its connection and nothing else.
            let _ = copy(&mut read, &mut write).await;
        });
    }
}

/// Echoes every datagram.
pub(crate) async fn serve_udp(socket: UdpSocket) -> io::Result<()> {
    let mut datagram = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        let (length, peer) = socket.recv_from(&mut datagram).await?;
        // An unreachable client must not end the server.
        let _ = socket.send_to(&datagram[..length], peer).await;
    }
}
