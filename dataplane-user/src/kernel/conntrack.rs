//! The kernel's own connection table, as ctnetlink tells it: what rules of NAT have decided for connections that are
//! established now. And the way to an address, as routes tell it, for those connections' packets.
//!
//! Messages are those of `linux/netfilter/nfnetlink_conntrack.h` and `linux/rtnetlink.h`; only what is asked for here is
//! read, and an attribute that is not known is skipped.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use weir_dataplane_ebpf::{FlowState, Protocol};

use super::exchange::{ACKNOWLEDGE, Attributes, DUMP, REQUEST, attribute, exchange, find, message};

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`, below `NFNL_SUBSYS_CTNETLINK`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// `RTM_GETROUTE`.
const GET_ROUTE: u16 = 26;
/// Bytes of `struct nfgenmsg` and `struct rtmsg`.
const NETFILTER_HEADER: usize = 4;
const ROUTE_HEADER: usize = 12;
/// `IPS_SEEN_REPLY`, `IPS_DST_NAT`.
const SEEN_REPLY: u32 = 1 << 1;
const DESTINATION_NAT: u32 = 1 << 5;

/// Addresses and ports of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// A connection whose destination was translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// As the client sends.
    pub original: Tuple,
    /// As the backend answers.
    pub reply: Tuple,
    /// Where it is in its life.
    pub state: FlowState,
    /// The original tuple as it was read: what names the connection to the kernel.
    pub name: Vec<u8>,
}

/// Every connection of one family whose destination was translated, TCP and UDP. Those that are over are left out.
pub fn translated(ipv4: bool) -> io::Result<Vec<Connection>> {
    let family = family(ipv4);
    let mut all = Vec::new();
    exchange(
        NETLINK_NETFILTER,
        &message(GET, REQUEST | DUMP, &netfilter_header(family)),
        |kind, payload| {
            if kind >> 8 == GET >> 8 {
                all.extend(payload.get(NETFILTER_HEADER..).and_then(connection));
            }
        },
    )?;
    Ok(all)
}

/// Makes the kernel forget a connection. One that is gone already is forgotten.
pub fn forget(connection: &Connection) -> io::Result<()> {
    /// `CTA_TUPLE_ORIG`, nested.
    const ORIGINAL: u16 = 1 | 1 << 15;
    let mut payload = netfilter_header(family(connection.original.source.is_ipv4())).to_vec();
    payload.extend(attribute(ORIGINAL, &connection.name));
    match exchange(NETLINK_NETFILTER, &message(DELETE, REQUEST | ACKNOWLEDGE, &payload), |_, _| ()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The interface by which packets to an address leave.
pub fn interface_towards(address: IpAddr) -> io::Result<Option<u32>> {
    /// `RTA_DST`, `RTA_OIF`.
    const DESTINATION: u16 = 1;
    const INTERFACE: u16 = 4;
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut payload = vec![0; ROUTE_HEADER];
    (payload[0], payload[1]) = (family(address.is_ipv4()), bytes.len() as u8 * 8);
    payload.extend(attribute(DESTINATION, &bytes));
    let mut found = None;
    let asked =
        exchange(NETLINK_ROUTE, &message(GET_ROUTE, REQUEST | ACKNOWLEDGE, &payload), |_, payload| {
            let attributes = payload.get(ROUTE_HEADER..).unwrap_or_default();
            let interface = Attributes(attributes).find(|(kind, _)| *kind == INTERFACE);
            found =
                found.or(interface.and_then(|(_, value)| Some(u32::from_ne_bytes(value.try_into().ok()?))));
        });
    match asked {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            Ok(None)
        }
        other => other.map(|()| found),
    }
}

fn family(ipv4: bool) -> u8 {
    if ipv4 { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// `struct nfgenmsg`: family, version 0, no resource.
fn netfilter_header(family: u8) -> [u8; NETFILTER_HEADER] {
    [family, 0, 0, 0]
}

/// A connection from its attributes; nothing when it is not of those that are asked for.
fn connection(attributes: &[u8]) -> Option<Connection> {
    /// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_STATUS`, `CTA_PROTOINFO`, `CTA_PROTOINFO_TCP`, its `STATE`.
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const STATUS: u16 = 3;
    const DETAILS: u16 = 4;
    const DETAILS_TCP: u16 = 1;
    const STATE: u16 = 1;
    let status = u32::from_be_bytes(find(attributes, STATUS)?.try_into().ok()?);
    if status & DESTINATION_NAT == 0 {
        return None;
    }
    let name = find(attributes, ORIGINAL)?;
    let (protocol, original) = tuple(name)?;
    let (_, reply) = tuple(find(attributes, REPLY)?)?;
    let state = match protocol {
        Protocol::TCP => tcp_state(*find(find(find(attributes, DETAILS)?, DETAILS_TCP)?, STATE)?.first()?)?,
        Protocol::UDP if status & SEEN_REPLY != 0 => FlowState::ESTABLISHED,
        Protocol::UDP => FlowState::OPENING,
        _ => return None,
    };
    Some(Connection { protocol, original, reply, state, name: name.to_vec() })
}

/// `enum tcp_conntrack`. One that is over is no connection.
fn tcp_state(state: u8) -> Option<FlowState> {
    match state {
        1 | 2 => Some(FlowState::OPENING),
        3 => Some(FlowState::ESTABLISHED),
        4..=6 => Some(FlowState::CLOSING),
        _ => None,
    }
}

fn tuple(attributes: &[u8]) -> Option<(Protocol, Tuple)> {
    /// `CTA_TUPLE_IP` and its addresses; `CTA_TUPLE_PROTO` and its numbers.
    const ADDRESSES: u16 = 1;
    const NUMBERS: u16 = 2;
    let addresses = find(attributes, ADDRESSES)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = find(addresses, v4) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(find(addresses, v6)?).ok()?).into())
    };
    let numbers = find(attributes, NUMBERS)?;
    let port = |kind: u16| Some(u16::from_be_bytes(find(numbers, kind)?.try_into().ok()?));
    let tuple = Tuple {
        source: SocketAddr::new(address(1, 3)?, port(2)?),
        destination: SocketAddr::new(address(2, 4)?, port(3)?),
    };
    Some((Protocol(*find(numbers, 1)?.first()?), tuple))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple_bytes(source: [u8; 4], destination: [u8; 4], protocol: u8, ports: [u16; 2]) -> Vec<u8> {
        let addresses = [attribute(1, &source), attribute(2, &destination)].concat();
        let [from, to] = ports.map(u16::to_be_bytes);
        let numbers = [attribute(1, &[protocol]), attribute(2, &from), attribute(3, &to)].concat();
        [attribute(1 | 1 << 15, &addresses), attribute(2 | 1 << 15, &numbers)].concat()
    }

    fn bytes(protocol: u8, status: u32, state: u8) -> Vec<u8> {
        let original = tuple_bytes([192, 0, 2, 2], [10, 96, 0, 1], protocol, [40_000, 80]);
        let reply = tuple_bytes([10, 244, 0, 2], [192, 0, 2, 2], protocol, [8_080, 40_000]);
        let details = attribute(4 | 1 << 15, &attribute(1 | 1 << 15, &attribute(1, &[state])));
        [attribute(1, &original), attribute(2, &reply), attribute(3, &status.to_be_bytes()), details].concat()
    }

    #[test]
    fn translated_connections_are_read() {
        let found = connection(&bytes(6, DESTINATION_NAT | SEEN_REPLY, 3)).unwrap();
        assert_eq!(found.original.destination, "10.96.0.1:80".parse().unwrap());
        assert_eq!(found.reply.source, "10.244.0.2:8080".parse().unwrap());
        assert_eq!(found.reply.destination, "192.0.2.2:40000".parse().unwrap());
        assert_eq!((found.protocol, found.state), (Protocol::TCP, FlowState::ESTABLISHED));
        let datagrams = connection(&bytes(17, DESTINATION_NAT, 0)).unwrap();
        assert_eq!((datagrams.protocol, datagrams.state), (Protocol::UDP, FlowState::OPENING));
    }

    #[test]
    fn others_are_left_out() {
        assert_eq!(connection(&bytes(6, SEEN_REPLY, 3)), None, "not translated");
        assert_eq!(connection(&bytes(6, DESTINATION_NAT, 7)), None, "over");
        assert_eq!(connection(&bytes(1, DESTINATION_NAT, 0)), None, "neither TCP nor UDP");
    }

    #[test]
    fn bytes_that_end_early_are_no_connection() {
        let whole = bytes(6, DESTINATION_NAT, 3);
        for end in 0..whole.len() {
            assert_eq!(connection(&whole[..end]), None, "{end} of {} bytes", whole.len());
        }
    }
}
