//! The first message of a TLS handshake, read before anything is answered: which name the client asks for.

use std::io;

use rustls::server::Acceptor;
use tokio::net::TcpStream;

use crate::wire::Buffer;

/// The name, in lower case, if the client says one. What was read stays in `input`; the caller has a deadline.
///
/// An error is what is no TLS, or a message that does not fit a buffer.
pub(super) async fn name(stream: &mut TcpStream, input: &mut Buffer) -> io::Result<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut read = 0;
    loop {
        // Some of it may have come behind a PROXY header.
        let mut unread = &input.filled()[read..];
        while !unread.is_empty() {
            read += acceptor.read_tls(&mut unread)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let name = hello.server_name().map(|name| name.strip_suffix('.').unwrap_or(name));
                    return Ok(name.map(str::to_ascii_lowercase));
                }
                Err((error, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        if input.is_full() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
        }
        if std::future::poll_fn(|cx| input.poll_fill(stream, cx)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::super::pieces;
    use super::*;

    async fn read(pieces: &[&[u8]]) -> (io::Result<Option<String>>, Vec<u8>) {
        pieces::read(pieces, name).await
    }

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn names_are_read_however_the_message_is_cut() {
        let bytes = hello("A.Example");
        for cut in [1, 5, bytes.len() / 2, bytes.len() - 1] {
            let (name, read) = read(&[&bytes[..cut], &bytes[cut..]]).await;
            assert_eq!(name.unwrap().as_deref(), Some("a.example"), "{cut}");
            assert_eq!(read, bytes, "nothing is lost");
        }
        assert_eq!(read(&[&hello("192.0.2.1")]).await.0.unwrap(), None, "an address is no name");
    }

    #[tokio::test]
    async fn what_is_no_handshake_is_an_error() {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &hello("a.example")[..40], b""] {
            assert!(read(&[bytes]).await.0.is_err(), "{bytes:?}");
        }
    }
}
