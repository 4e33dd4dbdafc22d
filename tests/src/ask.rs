//! One question of a client from an address of its choice, over TCP or UDP.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

/// Connects from `source` to `to`, says `hello`, and returns all that comes back. Call it inside a namespace.
pub fn ask_tcp(source: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&to.into(), patience)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Sends `hello` from `source` to `to`, from any port if that is 0, and returns the first answer. The socket is connected, so that it hears of ICMP
/// errors.
pub fn ask_udp(source: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind(source)?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    socket.send(b"hello")?;
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}
