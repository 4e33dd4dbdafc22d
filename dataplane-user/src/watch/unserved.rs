//! What of an object is not served, in words for its Events, and the checks that find it.

use std::net::IpAddr;

use weir_dataplane_ebpf::Protocol;

/// A wish of an object that the dataplane does not fulfil.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unserved {
    /// A protocol without an implementation here.
    #[error("port {port}: protocol {protocol} is not served; TCP and UDP are")]
    Protocol {
        /// The service port.
        port: i32,
        /// Its protocol.
        protocol: String,
    },
    /// An address that is none.
    #[error("{field} `{value}` is not an IP address")]
    Address {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// An address that no client could reach.
    #[error("{field} {address} is {kind}; give one that they can reach")]
    Unreachable {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        address: IpAddr,
        /// What is wrong with it.
        kind: &'static str,
    },
    /// A port number out of range.
    #[error("{field} {value} is not a port; ports are 1 to 65535")]
    Port {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: i32,
    },
    /// A range that is none. The others are served.
    #[error("{field} `{value}` is not a range as in 10.0.0.0/8 or fd00::/8; it admits nobody")]
    Range {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
}

/// Whether clients can reach a service at an address that `field` names.
pub(super) fn usable(field: &'static str, address: IpAddr) -> Result<IpAddr, Unserved> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let kind = if address.is_loopback() {
        "a loopback address, which means another machine to each client"
    } else if link_local {
        "a link-local address, which ends at the next router"
    } else if address.is_multicast() {
        "a multicast address, which no single machine answers from"
    } else if address.is_unspecified() {
        "the unspecified address, which nobody can send to"
    } else {
        return Ok(address);
    };
    Err(Unserved::Unreachable { field, address, kind })
}

/// A port number.
pub(super) fn port_number(field: &'static str, value: i32, unserved: &mut Vec<Unserved>) -> Option<u16> {
    let number = u16::try_from(value).ok().filter(|port| *port > 0);
    if number.is_none() {
        unserved.push(Unserved::Port { field, value });
    }
    number
}

/// A protocol that is served.
pub(super) fn protocol(text: Option<&str>, port: i32, unserved: &mut Vec<Unserved>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        other => {
            unserved.push(Unserved::Protocol { port, protocol: other.to_owned() });
            None
        }
    }
}
