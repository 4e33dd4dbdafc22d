//! From bytes to a tuple.
//!
//! Everything else works on [`Headers`]; only this file, [`crate::rewrite`], [`crate::icmp`] and [`crate::reject`] know
//! where a field stands. What cannot be a service's packet (other ethertypes and protocols, frames for a link group) is
//! [`Error::NotOurs`] and passes untouched: a rewrite on a guess would be worse than none. Fragments, and packets with IP
//! options or extension headers, are [`crate::slow_path`]'s to read.

use weir_dataplane_ebpf::{Be16, DropReason, FlowKey, Ip4, Ip6, Protocol, checksum};

use crate::{counters::Verdict, log::Loggable, reject::Reply, route::Routed};

/// Bytes before the network header.
pub const ETHERNET_LENGTH: usize = 14;
const ETHERTYPE_IPV4: Be16 = Be16::new(0x0800);
const ETHERTYPE_IPV6: Be16 = Be16::new(0x86dd);
/// Version 4, header of five words: no options.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// "More fragments" and the fragment offset.
const IPV4_FRAGMENT: Be16 = Be16::new(0x3fff);

/// TCP flags, from the header's fourteenth byte.
#[derive(Clone, Copy)]
pub struct TcpFlags(u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// What a UDP packet has.
    pub const NONE: Self = Self(0);

    /// What the answer to an echo has.
    pub const ACKNOWLEDGES: Self = Self(Self::ACK);

    /// From the byte at [`Tcp::FLAGS`].
    #[inline(always)]
    pub const fn of_tcp(byte: u8) -> Self {
        Self(byte)
    }

    /// From the type of an SCTP packet's first chunk: those that begin or end an association stand alone or at the front
    /// of their packet.
    #[inline(always)]
    pub const fn of_sctp(chunk: u8) -> Self {
        const INIT: u8 = 1;
        const INIT_ACK: u8 = 2;
        const ABORT: u8 = 6;
        const SHUTDOWN: u8 = 7;
        const SHUTDOWN_COMPLETE: u8 = 14;
        Self(match chunk {
            INIT => Self::SYN,
            INIT_ACK => Self::SYN | Self::ACK,
            ABORT | SHUTDOWN_COMPLETE => Self::RST,
            SHUTDOWN => Self::FIN | Self::ACK,
            _ => Self::ACK,
        })
    }

    /// The header's seventh word but the window, of a RST without data.
    pub const RESET: Be16 = Be16::new(0x5000 | Self::RST as u16);
    /// The same, of one that acknowledges.
    pub const RESET_AND_ACKNOWLEDGE: Be16 = Be16::new(0x5000 | (Self::RST | Self::ACK) as u16);

    /// The first packet of a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// The answer to it, which no client sends.
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }

    /// An ordinary packet of an open connection: nothing about its life changes.
    #[inline(always)]
    pub const fn carries_on(self) -> bool {
        self.0 & (Self::SYN | Self::FIN | Self::RST) == 0
    }

    /// The sender has nothing more to say.
    #[inline(always)]
    pub const fn finishes(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// The packet acknowledges something.
    #[inline(always)]
    pub const fn acknowledges(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// What the flags take of the sequence numbers (RFC 9293, 3.4).
    #[inline(always)]
    pub const fn sequence_length(self) -> u32 {
        (self.0 & Self::SYN != 0) as u32 + (self.0 & Self::FIN != 0) as u32
    }

    /// The connection ends at once.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }
}

/// A transport protocol. Each has its own copy of the path, so that every offset in it is a constant: the verifier
/// forgets what one branch on the protocol says about the next.
pub trait Transport {
    /// Its number.
    const PROTOCOL: Protocol;
    /// Bytes of its header.
    const LENGTH: usize;
    /// Offset of the checksum in it.
    const CHECKSUM: usize;
    /// Whether a checksum of zero means that there is none (RFC 768).
    const CHECKSUM_OPTIONAL: bool;
    /// Whether the checksum is a CRC32c over the transport alone, in place of an Internet checksum that has the addresses
    /// in it too.
    const CHECKSUM_IS_CRC: bool = false;

    /// TCP's flags, or what says the same; the frame holds the header at `offset`.
    fn flags(frame: Frame, offset: usize) -> TcpFlags;
    /// Bytes of the header there, options included: what each segment of the packet begins with.
    #[inline(always)]
    fn header_length(_: Frame, _: usize) -> u32 {
        Self::LENGTH as u32
    }
}

/// TCP (RFC 9293).
pub struct Tcp;
/// UDP (RFC 768).
pub struct Udp;
/// SCTP (RFC 9260), with the head of its first chunk.
pub struct Sctp;

impl Tcp {
    /// Offset of the header's length, in words, in the upper half of a byte.
    pub const OFFSET: usize = 12;
    /// Offset of the flags.
    pub const FLAGS: usize = 13;
}

impl Sctp {
    /// Offset of the first chunk's type.
    pub const CHUNK: usize = 12;
}

impl Transport for Tcp {
    const PROTOCOL: Protocol = Protocol::TCP;
    const LENGTH: usize = 20;
    const CHECKSUM: usize = 16;
    const CHECKSUM_OPTIONAL: bool = false;

    #[inline(always)]
    fn flags(frame: Frame, offset: usize) -> TcpFlags {
        TcpFlags::of_tcp(frame.read(offset + Self::FLAGS))
    }

    #[inline(always)]
    fn header_length(frame: Frame, offset: usize) -> u32 {
        u32::from(frame.read::<u8>(offset + Self::OFFSET) >> 4) * 4
    }
}

impl Transport for Udp {
    const PROTOCOL: Protocol = Protocol::UDP;
    const LENGTH: usize = 8;
    const CHECKSUM: usize = 6;
    const CHECKSUM_OPTIONAL: bool = true;

    #[inline(always)]
    fn flags(_: Frame, _: usize) -> TcpFlags {
        TcpFlags::NONE
    }
}

impl Transport for Sctp {
    const PROTOCOL: Protocol = Protocol::SCTP;
    const LENGTH: usize = 16;
    const CHECKSUM: usize = 8;
    const CHECKSUM_OPTIONAL: bool = false;
    const CHECKSUM_IS_CRC: bool = true;

    #[inline(always)]
    fn flags(frame: Frame, offset: usize) -> TcpFlags {
        TcpFlags::of_sctp(frame.read(offset + Self::CHUNK))
    }
}

/// What the programs must know of a packet.
pub struct Headers<A> {
    /// The tuple as it stands in the packet.
    pub key: FlowKey<A>,
    /// Bytes from the network header on.
    pub length: u32,
    /// TCP's flags, or what says the same.
    pub flags: TcpFlags,
    /// Time to live, or hop limit.
    pub ttl: u8,
}

/// Why there are no [`Headers`].
#[derive(Clone, Copy)]
pub enum Error {
    /// Nothing that a service could be asked by.
    NotOurs,
    /// The ports do not stand where they always do.
    Elsewhere,
    /// The packet ends before its headers do.
    Truncated,
}

impl Error {
    /// As a global function returns it; zero is no error.
    #[inline(always)]
    pub const fn to_number(self) -> u32 {
        match self {
            Self::NotOurs => 1,
            Self::Elsewhere => 2,
            Self::Truncated => 3,
        }
    }

    /// From what a global function returned.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Result<(), Self> {
        match number {
            0 => Ok(()),
            2 => Err(Self::Elsewhere),
            3 => Err(Self::Truncated),
            _ => Err(Self::NotOurs),
        }
    }

    /// What becomes of such a packet.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::NotOurs | Self::Elsewhere => Verdict::Pass,
            Self::Truncated => Verdict::Drop(DropReason::Truncated),
        }
    }
}

/// The family of a frame's packet.
pub enum Kind {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The bytes of a frame that are at hand.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// From a context's `data` and `data_end`.
    #[inline(always)]
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Whether the frame holds `length` bytes. Accesses below that are safe from here on.
    #[inline(always)]
    pub const fn holds(self, length: usize) -> bool {
        self.start + length <= self.end
    }

    /// The same bytes without the first `length`.
    #[inline(always)]
    pub const fn after(self, length: usize) -> Self {
        Self { start: self.start + length, end: self.end }
    }

    /// Reads a field; the caller has asked [`Frame::holds`].
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier admits the load only below the bound that `holds` compared, and only where the machine
        // can do it at this alignment. (The compiler would do an unaligned read byte by byte.)
        unsafe { ((self.start + offset) as *const T).read() }
    }

    /// Writes a field; the caller has asked [`Frame::holds`].
    #[inline(always)]
    pub fn write<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: as in `read`.
        unsafe { ((self.start + offset) as *mut T).write(value) }
    }
}

/// Where a family's headers are, and how the fields before the ports are read.
pub trait Layout: Loggable + Routed + Reply {
    /// Bytes of the network header.
    const NETWORK_LENGTH: usize;
    /// Offset of the ports in the frame.
    const TRANSPORT: usize = ETHERNET_LENGTH + Self::NETWORK_LENGTH;
    /// Offset of source and destination address, which stand side by side.
    const ADDRESSES: usize;
    /// Offset of the time to live.
    const TTL: usize;
    /// Offset of the network header's checksum, if it has one. A family without it has the addresses in the checksums
    /// of all its transports, ICMP among them.
    const NETWORK_CHECKSUM: Option<usize>;
    /// The family's ICMP.
    const ICMP: Protocol;
    /// Type and code of an echo request of that.
    const ECHO_REQUEST: Be16;
    /// The same of its answer.
    const ECHO_REPLY: Be16;
    /// What a packet of this family is to one that carries it.
    const TUNNEL: Protocol;
    /// What a frame says of its packet.
    const ETHERTYPE: Be16;

    /// Reads an address. Word by word: a copy of 16 unaligned bytes would be done byte by byte.
    fn read_address(frame: Frame, offset: usize) -> Self;
    /// Writes an address.
    fn write_address(self, frame: Frame, offset: usize);
    /// Reads protocol and length, or says that the packet is not ours. The frame holds the network header.
    fn network(frame: Frame) -> Result<(Protocol, u32), Error>;
    /// Whether a header of this number, in place of a transport's, may have one behind it.
    fn is_extension(protocol: Protocol) -> bool;
    /// Whether an ICMP message of this type quotes the packet that caused it.
    fn is_error(icmp_type: u8) -> bool;
}

impl Layout for Ip4 {
    const NETWORK_LENGTH: usize = 20;
    const ADDRESSES: usize = ETHERNET_LENGTH + 12;
    const TTL: usize = ETHERNET_LENGTH + 8;
    const NETWORK_CHECKSUM: Option<usize> = Some(ETHERNET_LENGTH + 10);
    const ICMP: Protocol = Protocol::ICMP;
    const ECHO_REQUEST: Be16 = Be16::new(0x0800);
    const ECHO_REPLY: Be16 = Be16::new(0x0000);
    const TUNNEL: Protocol = Protocol(4);
    const ETHERTYPE: Be16 = ETHERTYPE_IPV4;

    #[inline(always)]
    fn read_address(frame: Frame, offset: usize) -> Self {
        Self(frame.read(offset))
    }

    #[inline(always)]
    fn write_address(self, frame: Frame, offset: usize) {
        frame.write(offset, self.0);
    }

    #[inline(always)]
    fn network(frame: Frame) -> Result<(Protocol, u32), Error> {
        let fragment: Be16 = frame.read(ETHERNET_LENGTH + 6);
        let version: u8 = frame.read(ETHERNET_LENGTH);
        if version != IPV4_WITHOUT_OPTIONS || fragment.bits() & IPV4_FRAGMENT.bits() != 0 {
            return Err(if version >> 4 == 4 { Error::Elsewhere } else { Error::NotOurs });
        }
        Ok((frame.read(ETHERNET_LENGTH + 9), u32::from(frame.read::<Be16>(ETHERNET_LENGTH + 2).get())))
    }

    #[inline(always)]
    fn is_extension(_: Protocol) -> bool {
        false
    }

    /// Destination unreachable, time exceeded, parameter problem (RFC 792; source quench is gone by RFC 6633).
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 11 | 12)
    }
}

impl Layout for Ip6 {
    const NETWORK_LENGTH: usize = 40;
    const ADDRESSES: usize = ETHERNET_LENGTH + 8;
    const TTL: usize = ETHERNET_LENGTH + 7;
    const NETWORK_CHECKSUM: Option<usize> = None;
    const ICMP: Protocol = Protocol::ICMPV6;
    const ECHO_REQUEST: Be16 = Be16::new(0x8000);
    const ECHO_REPLY: Be16 = Be16::new(0x8100);
    const TUNNEL: Protocol = Protocol(41);
    const ETHERTYPE: Be16 = ETHERTYPE_IPV6;

    #[inline(always)]
    fn read_address(frame: Frame, offset: usize) -> Self {
        Self([frame.read(offset), frame.read(offset + 4), frame.read(offset + 8), frame.read(offset + 12)])
    }

    #[inline(always)]
    fn write_address(self, frame: Frame, offset: usize) {
        frame.write(offset, self.0[0]);
        frame.write(offset + 4, self.0[1]);
        frame.write(offset + 8, self.0[2]);
        frame.write(offset + 12, self.0[3]);
    }

    #[inline(always)]
    fn network(frame: Frame) -> Result<(Protocol, u32), Error> {
        if frame.read::<u8>(ETHERNET_LENGTH) >> 4 != 6 {
            return Err(Error::NotOurs);
        }
        let payload = u32::from(frame.read::<Be16>(ETHERNET_LENGTH + 4).get());
        Ok((frame.read(ETHERNET_LENGTH + 6), payload + Self::NETWORK_LENGTH as u32))
    }

    /// Those that [`crate::walk`] steps over. Behind a routing header the destination is not the packet's last, which
    /// is the one in the checksum.
    #[inline(always)]
    fn is_extension(protocol: Protocol) -> bool {
        matches!(protocol, Protocol::HOP_BY_HOP | Protocol::FRAGMENT | Protocol::DESTINATION_OPTIONS)
    }

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 1..=4)
    }
}

/// The family of the packet in a frame that is for this machine alone.
#[inline(always)]
pub fn kind(frame: Frame) -> Result<Kind, Error> {
    if !frame.holds(ETHERNET_LENGTH) {
        return Err(Error::Truncated);
    }
    if frame.read::<u8>(0) & 1 != 0 {
        return Err(Error::NotOurs);
    }
    match frame.read(12) {
        ETHERTYPE_IPV4 => Ok(Kind::V4),
        ETHERTYPE_IPV6 => Ok(Kind::V6),
        _ => Err(Error::NotOurs),
    }
}

/// Reads the network header: the transport protocol, and the packet's length. `frame_length` is the frame's true
/// length, which for a non-linear buffer is more than the bytes at hand.
#[inline(always)]
pub fn network<A: Layout>(frame: Frame, frame_length: u32) -> Result<(Protocol, u32), Error> {
    if !frame.holds(A::TRANSPORT) {
        return Err(Error::Truncated);
    }
    let (protocol, length) = A::network(frame)?;
    // The length field decides what belongs to the packet: short frames are padded, and padding is no header.
    // Segmentation offload leaves 0 there when the truth does not fit in 16 bits.
    let frame_length = frame_length - ETHERNET_LENGTH as u32;
    let length = if length == 0 { frame_length } else { length };
    if length > frame_length { Err(Error::Truncated) } else { Ok((protocol, length)) }
}

/// Reads the tuple; the frame holds the ports.
#[inline(always)]
pub fn key<A: Layout, T: Transport>(frame: Frame) -> FlowKey<A> {
    FlowKey {
        source: A::read_address(frame, A::ADDRESSES),
        destination: A::read_address(frame, A::ADDRESSES + size_of::<A>()),
        source_port: frame.read(A::TRANSPORT),
        destination_port: frame.read(A::TRANSPORT + 2),
        protocol: T::PROTOCOL,
        padding: 0,
        padding_word: 0,
    }
}

/// Reads the rest, once the transport is known.
#[inline(always)]
pub fn headers<A: Layout, T: Transport>(frame: Frame, length: u32) -> Result<Headers<A>, Error> {
    if length < (A::NETWORK_LENGTH + T::LENGTH) as u32 || !frame.holds(A::TRANSPORT + T::LENGTH) {
        return Err(Error::Truncated);
    }
    Ok(Headers {
        key: key::<A, T>(frame),
        length,
        flags: T::flags(frame, A::TRANSPORT),
        ttl: frame.read(A::TTL),
    })
}

/// The transport checksum after a change of what it covers by `delta`; nothing when there is none. Where zero says so,
/// a sum that comes out as zero is sent as its complement.
#[inline(always)]
pub fn changed_checksum<T: Transport>(old: u16, delta: u16) -> Option<u16> {
    if T::CHECKSUM_OPTIONAL && old == 0 {
        return None;
    }
    let new = checksum::apply(old, delta);
    Some(if T::CHECKSUM_OPTIONAL && new == 0 { u16::MAX } else { new })
}

/// The pseudo header's sum as a sender leaves it in the checksum field for its network card to complete.
#[inline(always)]
pub fn unfinished_checksum<A: Layout, T: Transport>(headers: &Headers<A>) -> u16 {
    let payload = headers.length as u16 - A::NETWORK_LENGTH as u16;
    pseudo_header(&headers.key, T::PROTOCOL, payload).fold()
}

/// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1): the same for a packet and for an answer of that length.
#[inline(always)]
pub fn pseudo_header<A: Layout>(key: &FlowKey<A>, protocol: Protocol, payload: u16) -> checksum::Sum {
    checksum::Sum::default()
        .add_address(&key.source)
        .add_address(&key.destination)
        .add_word(Be16::new(u16::from(protocol.0)))
        .add_word(Be16::new(payload))
}
