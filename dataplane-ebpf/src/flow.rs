//! Flows: what was decided for a connection, one entry per direction.

use crate::{Address, Be16, Mac, Protocol, family_layout, layout};

/// Key of `flows_v4`, `flows_v6`, `opening_v4` and `opening_v6`: the packet's tuple as it arrives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
    /// TCP, UDP or SCTP; of flows that leave the cluster ICMP too, whose echo requests have their identifier as the source
    /// port, their answers as the destination port, and zero as the other.
    pub protocol: Protocol,
    /// Zero. Not an array of three bytes, which the compiler would fill by a call for every packet.
    pub padding: u8,
    /// Zero.
    pub padding_word: u16,
}

/// Where a flow is in its protocol's life; decides how long an idle entry stays.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowState(pub u8);

impl FlowState {
    /// Packets one way only: a SYN, or a first datagram. Such entries stand in `opening_v4` and `opening_v6`.
    pub const OPENING: Self = Self(0);
    /// Both directions were seen.
    pub const ESTABLISHED: Self = Self(1);
    /// A FIN was seen.
    pub const CLOSING: Self = Self(2);
    /// A RST was seen, or a FIN from both sides.
    pub const CLOSED: Self = Self(3);
}

/// Value of the same maps: the whole rewrite of one direction.
///
/// An established packet costs one lookup: new tuple, checksum deltas and the way out all stand here. No entry
/// refers to its other half, so that losing one half misroutes nothing: the half that is left, or the
/// frontend, restores it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A> {
    /// Packets seen in this direction.
    pub packets: u64,
    /// Bytes seen in this direction, from the network header on.
    pub bytes: u64,
    /// Source address after the rewrite.
    pub source: A,
    /// Destination address after the rewrite.
    pub destination: A,
    /// Source port after the rewrite.
    pub source_port: Be16,
    /// Destination port after the rewrite.
    pub destination_port: Be16,
    /// RFC 1624 delta of the network header's checksum (IPv4), one's complement, folded.
    pub network_delta: u16,
    /// RFC 1624 delta of the transport checksum, pseudo header included, folded.
    pub transport_delta: u16,
    /// When the last packet passed, in jiffies (low 32 bits).
    pub last_seen_jiffies: u32,
    /// [`crate::Frontend::service`] that made this flow.
    pub service: u32,
    /// Backend id of this flow.
    pub backend: u32,
    /// Interface to leave by, 0 when the stack decides.
    pub ifindex: u32,
    /// Link addresses to leave with, when a flag says that they are known.
    pub destination_mac: Mac,
    /// See `destination_mac`.
    pub source_mac: Mac,
    /// Life of the flow.
    pub state: FlowState,
    /// [`Flow::FLAG_REPLY`] and its siblings.
    pub flags: u8,
    /// For a flow that is tunnelled or leaves the cluster: bytes that fit through the way out, from the (outer) network
    /// header on. 0 when that is not known.
    pub mtu: u16,
}

impl<A> Flow<A> {
    /// This entry is for packets of the backend.
    pub const FLAG_REPLY: u8 = 1 << 0;
    /// `ifindex` is the host's end of a pod link and the packet goes straight into the pod.
    pub const FLAG_TO_POD: u8 = 1 << 1;
    /// The packet leaves by `ifindex` with the link addresses, which routes and neighbours named lately. With neither this
    /// flag nor the other it leaves by `ifindex` as the neighbour table says.
    pub const FLAG_NEXT_HOP: u8 = 1 << 2;
    /// The service has session affinity, which this flow's packets renew.
    pub const FLAG_AFFINITY: u8 = 1 << 3;
    /// The packet leaves as it is, inside one from `source` to `destination`, a node. The flow has no other half here: the
    /// backend's node answers the client.
    pub const FLAG_TUNNEL: u8 = 1 << 4;
    /// The client's packets go to a backend on another node with the client's address; those that open the flow have an
    /// option that names the frontend ([`crate::FrontendOption`]). The flow has no other half here, as with a tunnel.
    pub const FLAG_OPTION: u8 = 1 << 5;
    /// Of both halves where such a flow arrives: `source` and `source_port` are the frontend's, which the option named. The
    /// client's packets come with the backend's address and stay as they are; its answers leave in the frontend's name.
    pub const FLAG_NAMED: u8 = 1 << 6;
    /// A pod's flow to an address outside the cluster, which stays what it is: the rewrite puts an uplink's own address in
    /// the pod's place. There is no service and no backend behind it.
    pub const FLAG_EGRESS: u8 = 1 << 7;

    /// The flow has no other half on this node: the backend's answers do not come here.
    #[inline(always)]
    pub const fn is_one_way(&self) -> bool {
        self.flags & (Self::FLAG_TUNNEL | Self::FLAG_OPTION) != 0
    }
}

impl<A: Copy> Flow<A> {
    /// The tuple that answers arrive with once this entry's rewrite was done: the key of the other direction.
    #[inline(always)]
    pub fn reply_key(&self, protocol: Protocol) -> FlowKey<A> {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            padding: 0,
            padding_word: 0,
        }
    }
}

impl<A: Address> Flow<A> {
    /// Packets of this half stay as they are: another node has rewritten them ([`Flow::FLAG_NAMED`]).
    #[inline(always)]
    pub const fn is_rewritten(&self) -> bool {
        A::HAS_OPTIONS && self.flags & (Self::FLAG_NAMED | Self::FLAG_REPLY) == Self::FLAG_NAMED
    }

    /// The key of the other half of the flow whose one half this is, under `key`.
    #[inline(always)]
    pub fn other_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        if A::HAS_OPTIONS && self.flags & Self::FLAG_NAMED != 0 {
            key.reversed()
        } else {
            self.reply_key(key.protocol)
        }
    }

    /// Whether this entry, which stands under the other key of `half`, is of the same flow. `half` stands under `key`.
    #[inline(always)]
    pub fn is_other_half(&self, key: &FlowKey<A>, half: &Self) -> bool {
        if !A::HAS_OPTIONS || half.flags & Self::FLAG_NAMED == 0 {
            return self.undoes(key);
        }
        self.source == half.source
            && self.source_port == half.source_port
            && self.destination == key.source
            && self.destination_port == key.source_port
    }
}

impl<A: PartialEq> Flow<A> {
    /// Whether this entry leads packets back to where those with this tuple come from.
    #[inline(always)]
    pub fn undoes(&self, key: &FlowKey<A>) -> bool {
        self.source == key.destination
            && self.destination == key.source
            && self.source_port == key.destination_port
            && self.destination_port == key.source_port
    }
}

impl<A: Copy> FlowKey<A> {
    /// The tuple as an answer would carry it if nothing were rewritten.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            padding: 0,
            padding_word: 0,
        }
    }
}

layout!(FlowState = 1);
family_layout!(FlowKey = 16, 40; Flow = 64, 88);
