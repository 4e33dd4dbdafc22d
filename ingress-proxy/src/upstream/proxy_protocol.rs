//! The PROXY protocol towards endpoints: for whom a connection is.

use std::net::{IpAddr, SocketAddr};

use ppp::v2::{Builder, Command, Protocol, Version};

use crate::proxy::Ends;

/// The version that a rule's endpoints are spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyProtocol {
    /// By the name that an annotation has.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "v1" => Some(Self::V1),
            "v2" => Some(Self::V2),
            _ => None,
        }
    }

    /// What goes in front of a connection that is for nobody else.
    pub(super) fn own_header(self) -> &'static [u8] {
        match self {
            Self::V1 => b"PROXY UNKNOWN\r\n",
            // The command LOCAL, and no addresses.
            Self::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        }
    }

    /// What goes in front of a connection.
    pub(crate) fn header(self, Ends { source, destination }: Ends) -> Vec<u8> {
        // Both are of one family: a client by IPv4 on a socket of both counts as IPv4.
        let (from, to) = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) | (from @ IpAddr::V6(_), to @ IpAddr::V6(_)) => {
                (from, to)
            }
            (from, to) => (mapped(from), mapped(to)),
        };
        let (source, destination) =
            (SocketAddr::new(from, source.port()), SocketAddr::new(to, destination.port()));
        let version_2 = || {
            let command = Version::Two | Command::Proxy;
            Builder::with_addresses(command, Protocol::Stream, (source, destination)).build().ok()
        };
        match self {
            Self::V2 => version_2().unwrap_or_default(),
            Self::V1 => {
                let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
                let (from_port, to_port) = (source.port(), destination.port());
                format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
            }
        }
    }
}

fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        address @ IpAddr::V6(_) => address,
    }
}
