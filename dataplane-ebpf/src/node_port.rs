//! Ports of the node that services have: no process of the node may take one as well.

use crate::{Be16, Protocol};

/// Index into `node_ports`, whose elements are 1 for a port that services have and 0 for the others. Nothing for SCTP, whose
/// ports cannot be guarded: the kernel's `inet_bind` hands an SCTP socket over to `sctp_bind` before it asks a cgroup's
/// programs, and `sctp_bindx` asks none either. Packets of clients go to the service all the same.
#[inline(always)]
pub const fn node_port_index(protocol: Protocol, port: Be16) -> Option<u32> {
    let class = match protocol {
        Protocol::TCP => 0,
        Protocol::UDP => 1,
        _ => return None,
    };
    Some(class << u16::BITS | port.get() as u32)
}

/// The protocol and port of an index.
pub const fn node_port_at(index: u32) -> (Protocol, Be16) {
    let protocol = if index >> u16::BITS == 0 { Protocol::TCP } else { Protocol::UDP };
    (protocol, Be16::new(index as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::NODE_PORTS;

    #[test]
    fn each_port_has_its_own_element() {
        for index in 0..NODE_PORTS {
            let (protocol, port) = node_port_at(index);
            assert_eq!(node_port_index(protocol, port), Some(index));
        }
        assert_eq!(node_port_index(Protocol::SCTP, Be16::new(80)), None);
    }
}
