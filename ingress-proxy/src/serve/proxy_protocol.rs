//! The PROXY protocol, version 1 or 2, in front of a connection: whom a load balancer in front of us speaks for.

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use tokio::net::TcpStream;

use crate::proxy::Ends;
use crate::wire::Buffer;

/// Reads the header, which must be there. Nothing if the load balancer speaks for itself, or does not know for whom. What
/// came behind the header stays in `input`; the caller has a deadline.
pub(super) async fn read(stream: &mut TcpStream, input: &mut Buffer) -> io::Result<Option<Ends>> {
    loop {
        if input.is_full() {
            return Err(malformed("the PROXY header is too long"));
        }
        if std::future::poll_fn(|cx| input.poll_fill(stream, cx)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = HeaderResult::parse(input.filled());
        if header.is_incomplete() {
            continue;
        }
        let (length, ends) = match header {
            HeaderResult::V1(header) => {
                let header = header.map_err(malformed)?;
                (header.header.len(), of_v1(&header.addresses))
            }
            HeaderResult::V2(header) => {
                let header = header.map_err(malformed)?;
                let is_local = header.command == v2::Command::Local;
                (header.as_bytes().len(), if is_local { None } else { of_v2(&header.addresses) })
            }
        };
        input.consume(length);
        return Ok(ends);
    }
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn of_v1(addresses: &v1::Addresses) -> Option<Ends> {
    Some(match addresses {
        v1::Addresses::Tcp4(ip) => {
            between((ip.source_address, ip.source_port), (ip.destination_address, ip.destination_port))
        }
        v1::Addresses::Tcp6(ip) => {
            between((ip.source_address, ip.source_port), (ip.destination_address, ip.destination_port))
        }
        v1::Addresses::Unknown => return None,
    })
}

fn of_v2(addresses: &v2::Addresses) -> Option<Ends> {
    Some(match addresses {
        v2::Addresses::IPv4(ip) => {
            between((ip.source_address, ip.source_port), (ip.destination_address, ip.destination_port))
        }
        v2::Addresses::IPv6(ip) => {
            between((ip.source_address, ip.source_port), (ip.destination_address, ip.destination_port))
        }
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => return None,
    })
}

fn between(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>) -> Ends {
    Ends { source: source.into(), destination: destination.into() }
}

#[cfg(test)]
mod tests {
    use super::super::pieces;
    use super::*;
    use crate::upstream::ProxyProtocol;

    async fn read_of(pieces: &[&[u8]]) -> (io::Result<Option<Ends>>, Vec<u8>) {
        pieces::read(pieces, read).await
    }

    #[tokio::test]
    async fn what_is_written_is_read_however_it_is_cut() {
        for (source, destination) in
            [("192.0.2.1:5000", "198.51.100.1:443"), ("[2001:db8::1]:5000", "[2001:db8::2]:443")]
        {
            let ends = Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let mut bytes = version.header(ends);
                let length = bytes.len();
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
                for cut in [1, 7, length - 1, length, bytes.len()] {
                    let (found, rest) = read_of(&[&bytes[..cut], &bytes[cut..]]).await;
                    assert_eq!(found.unwrap(), Some(ends), "{version:?} {cut}");
                    assert!(b"GET / HTTP/1.1\r\n".starts_with(&rest), "{rest:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn who_speaks_for_nobody_is_itself() {
        assert_eq!(read_of(&[b"PROXY UNKNOWN\r\nrest"]).await.0.unwrap(), None);
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        assert_eq!(read_of(&[local]).await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_header_is_an_error() {
        for bytes in
            [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PROXY TCP4 a b 1 2\r\n", b"PROXY TCP4 192", b""]
        {
            assert!(read_of(&[bytes]).await.0.is_err(), "{bytes:?}");
        }
    }
}
