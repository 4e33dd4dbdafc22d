//! What of an object is not served, in words for its Events, and the checks that find it.

use std::net::IpAddr;

use weir_dataplane_ebpf::Protocol;

/// A wish of an object that the dataplane does not fulfil.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unserved {
    /// A protocol without an implementation here.
    #[error("port {port}: protocol {protocol} is not served; TCP, UDP and SCTP are")]
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
    #[error("{field} {address} is {kind}; give one that clients can reach")]
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
    /// An address that the Service's endpoints cannot answer for.
    #[error(
        "{field} {address}: the Service has no address of this family; add the family to spec.ipFamilies"
    )]
    Family {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        address: IpAddr,
    },
    /// Two ports that cannot be told apart. The first is served.
    #[error("{field} `{value}` is there twice; the first is served: give the other another one")]
    Twice {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// Something in one of its slices.
    #[error("EndpointSlice {slice}: {problem}")]
    Slice {
        /// The slice's name.
        slice: Box<str>,
        /// What is wrong with it.
        problem: SliceProblem,
    },
    /// A setting that has no such value.
    #[error(
        "annotation {annotation}: `{value}` is none of snat, dsr and dsr-option; the node's own mode is used"
    )]
    Forwarding {
        /// Its name.
        annotation: &'static str,
        /// What it says.
        value: String,
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

/// Something of an `EndpointSlice` that is left out. Told of the Service, where people look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum SliceProblem {
    /// Its endpoints are no addresses.
    #[error("addressType {0} is not served; IPv4 and IPv6 are")]
    AddressType(String),
    /// Addresses that no connection reaches.
    #[error(
        "{count} endpoints are left out; the first has the address `{first}`, which is {kind}: give the pods' own"
    )]
    Addresses {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
        /// What is wrong with that one.
        kind: &'static str,
    },
    /// A family that the Service does not have.
    #[error(
        "its endpoints get no connections: the Service has no address of their family; add it to spec.ipFamilies"
    )]
    Family,
    /// A port that the Service does not have.
    #[error(
        "port `{name}` ({protocol}) is none of the Service's; give it the name and protocol of one in spec.ports"
    )]
    Port {
        /// Its name.
        name: Box<str>,
        /// Its protocol.
        protocol: String,
    },
    /// A port number out of range.
    #[error("ports.port {0} is not a port; ports are 1 to 65535")]
    PortNumber(i32),
}

/// Whether clients can reach a service at an address that `field` names.
pub(super) fn usable(field: &'static str, address: IpAddr) -> Result<IpAddr, Unserved> {
    match unreachable(address) {
        Some(kind) => Err(Unserved::Unreachable { field, address, kind }),
        None => Ok(address),
    }
}

/// Why nobody elsewhere reaches an address, if so.
pub(super) fn unreachable(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_loopback() {
        Some("a loopback address, which means another machine to each client")
    } else if link_local {
        Some("a link-local address, which ends at the next router")
    } else if address.is_multicast() {
        Some("a multicast address, which no single machine answers from")
    } else if address.is_unspecified() {
        Some("the unspecified address, which nobody can send to")
    } else {
        None
    }
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
        "SCTP" => Some(Protocol::SCTP),
        other => {
            unserved.push(Unserved::Protocol { port, protocol: other.to_owned() });
            None
        }
    }
}
