//! Frames, built field by field, with every checksum computed from scratch.
//!
//! An expected output is built the same way as an input, so that comparing the bytes also compares the programs'
//! checksum deltas with full sums.

use std::net::{IpAddr, SocketAddr};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
/// Ethertypes of VLAN tags: IEEE 802.1Q, and 802.1ad's outer one.
pub(crate) const C_TAG: u16 = 0x8100;
pub(crate) const S_TAG: u16 = 0x88a8;
const IPIP: u8 = 4;
const IP6IP6: u8 = 41;

/// Types of SCTP's chunks.
pub(crate) const DATA: u8 = 0;
pub(crate) const INIT: u8 = 1;
pub(crate) const INIT_ACK: u8 = 2;
pub(crate) const ABORT: u8 = 6;

/// An Ethernet frame with one packet in it.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    flags: u8,
    numbers: (u32, u32),
    window: u16,
    payload: Vec<u8>,
    ttl: u8,
    link_destination: [u8; 6],
    link_source: [u8; 6],
    tags: Vec<(u16, u16)>,
    id: u16,
    fragment: u16,
    options: Vec<u8>,
    /// Extension headers, each by its number and what follows its first byte: those before the fragment header, and
    /// those behind it.
    extensions: Vec<(u8, Vec<u8>)>,
    inner_extensions: Vec<(u8, Vec<u8>)>,
    checksum: Checksum,
    length: Option<usize>,
    /// An ICMP message, its checksum left out, in place of ports and payload.
    message: Option<Vec<u8>>,
    /// Offset and length of the part of all that stands behind the network header which this fragment has.
    part: Option<(usize, usize)>,
}

#[derive(Clone, Copy, Debug)]
enum Checksum {
    Full,
    /// UDP's zero: there is none.
    None,
    /// The pseudo header's sum, as a sender with transmit offload leaves it.
    Unfinished,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no ADDRESS:PORT"))
}

/// A TCP segment, an ordinary one of an open connection.
pub(crate) fn tcp(source: &str, destination: &str) -> Frame {
    Frame {
        source: address(source),
        destination: address(destination),
        protocol: TCP,
        flags: ACK,
        numbers: (1, 2),
        window: 0xffff,
        payload: b"weir!".to_vec(),
        ttl: 64,
        // The zero address is the loopback device's, which test runs happen on: "for this machine".
        link_destination: [0; 6],
        link_source: [2, 0, 0, 0, 0, 1],
        tags: Vec::new(),
        id: 0x1234,
        fragment: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        inner_extensions: Vec::new(),
        checksum: Checksum::Full,
        length: None,
        message: None,
        part: None,
    }
}

/// A UDP datagram.
pub(crate) fn udp(source: &str, destination: &str) -> Frame {
    Frame { protocol: UDP, flags: 0, ..tcp(source, destination) }
}

/// An SCTP packet with one chunk of this type.
pub(crate) fn sctp(source: &str, destination: &str, chunk: u8) -> Frame {
    Frame { protocol: SCTP, flags: chunk, ..tcp(source, destination) }
}

/// Type, code and the word behind the checksum of an ICMP message.
pub(crate) type Kind = (u8, u8, u32);

/// An ICMP message from an address, to the sender of the packet that it quotes.
pub(crate) fn icmp(source: &str, (kind, code, word): Kind, quoted: &Frame) -> Frame {
    let source = SocketAddr::new(source.parse().expect("an address"), 0);
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(&quoted.bytes()[14..]);
    Frame {
        source,
        protocol: if source.is_ipv4() { ICMP } else { ICMPV6 },
        message: Some(message),
        ..tcp(&quoted.destination.to_string(), &quoted.source.to_string())
    }
}

/// An ICMP echo request with this identifier, or the answer to one.
pub(crate) fn echo(source: &str, destination: &str, request: bool, identifier: u16) -> Frame {
    let socket = |text: &str| SocketAddr::new(text.parse().expect("an address"), 0);
    let (source, destination) = (socket(source), socket(destination));
    let kind = match (source.is_ipv4(), request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, 1]);
    message.extend(b"is anybody there?");
    Frame {
        source,
        destination,
        protocol: if source.is_ipv4() { ICMP } else { ICMPV6 },
        message: Some(message),
        ..tcp(&source.to_string(), &destination.to_string())
    }
}

/// A packet inside another one, between two nodes (RFC 2003, RFC 2473).
pub(crate) fn inside(source: &str, destination: &str, packet: &Frame) -> Frame {
    let socket = |text: &str| SocketAddr::new(text.parse().expect("an address"), 0);
    let (source, destination) = (socket(source), socket(destination));
    Frame {
        source,
        destination,
        protocol: if source.is_ipv4() { IPIP } else { IP6IP6 },
        message: Some(packet.bytes()[14..].to_vec()),
        id: 0,
        fragment: 0x4000,
        ..tcp(&source.to_string(), &destination.to_string())
    }
}

impl Frame {
    /// Whom the packet is for.
    pub(crate) fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Cuts the quote of an ICMP message to so many bytes.
    pub(crate) fn quoting(mut self, length: usize) -> Self {
        self.message.as_mut().expect("an ICMP message").truncate(8 + length);
        self
    }

    /// Sends an ICMP message to somebody else.
    pub(crate) fn sent_to(self, ip: &str) -> Self {
        Self { destination: SocketAddr::new(ip.parse().expect("an address"), 0), ..self }
    }

    pub(crate) fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// TCP's sequence and acknowledgement number.
    pub(crate) fn numbers(self, sequence: u32, acknowledgement: u32) -> Self {
        Self { numbers: (sequence, acknowledgement), ..self }
    }

    /// TCP's window.
    pub(crate) fn window(self, window: u16) -> Self {
        Self { window, ..self }
    }

    /// The identification.
    pub(crate) fn id(self, id: u16) -> Self {
        Self { id, ..self }
    }

    pub(crate) fn protocol(self, protocol: u8) -> Self {
        Self { protocol, ..self }
    }

    pub(crate) fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    pub(crate) fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    pub(crate) fn link(self, source: [u8; 6], destination: [u8; 6]) -> Self {
        Self { link_source: source, link_destination: destination, ..self }
    }

    /// A VLAN tag behind those that are there: its ethertype, then priority and VLAN.
    pub(crate) fn tag(mut self, ethertype: u16, control: u16) -> Self {
        self.tags.push((ethertype, control));
        self
    }

    /// The fragment word of IPv4: flags and offset in units of eight bytes.
    pub(crate) fn fragment(self, fragment: u16) -> Self {
        Self { fragment, ..self }
    }

    /// A fragment: `length` bytes from `offset` on of what stands behind the network header.
    pub(crate) fn part(self, offset: usize, length: usize) -> Self {
        assert!(offset.is_multiple_of(8), "offsets are in units of eight bytes");
        Self { part: Some((offset, length)), ..self }
    }

    pub(crate) fn options(self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4), "IPv4 options fill whole words");
        Self { options: options.to_vec(), ..self }
    }

    /// An extension header, by its number and what follows its first byte.
    pub(crate) fn extension(mut self, number: u8, body: &[u8]) -> Self {
        self.extensions.push((number, body.to_vec()));
        self
    }

    /// The same, behind the fragment header. IPv4 has none.
    pub(crate) fn inner_extension(mut self, number: u8, body: &[u8]) -> Self {
        self.inner_extensions.push((number, body.to_vec()));
        self
    }

    pub(crate) fn without_checksum(self) -> Self {
        Self { checksum: Checksum::None, ..self }
    }

    pub(crate) fn unfinished_checksum(self) -> Self {
        Self { checksum: Checksum::Unfinished, ..self }
    }

    /// Cuts the frame, whatever its headers say.
    pub(crate) fn cut(self, length: usize) -> Self {
        Self { length: Some(length), ..self }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let inner = if self.source.is_ipv4() { &[][..] } else { &self.inner_extensions };
        let (mut next, mut transport) = chain(inner, self.protocol, &self.transport());
        let (mut offset, mut more) = (0, false);
        if let Some((start, length)) = self.part {
            more = start + length < transport.len();
            transport.truncate(start + length);
            transport.drain(..start.min(transport.len()));
            offset = start as u16;
        }
        let mut frame = [self.link_destination, self.link_source].concat();
        for (ethertype, control) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let words = 5 + self.options.len() / 4;
                let mut header = vec![0x40 | words as u8, 0];
                header.extend(((words * 4 + transport.len()) as u16).to_be_bytes());
                header.extend(self.id.to_be_bytes());
                let fragment = self.fragment | (offset / 8) | if more { 0x2000 } else { 0 };
                header.extend(fragment.to_be_bytes());
                header.extend([self.ttl, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let checksum = !sum(&header, 0);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                if self.part.is_some() {
                    let mut header = vec![0];
                    header.extend((offset | u16::from(more)).to_be_bytes());
                    header.extend(u32::from(self.id).to_be_bytes());
                    (next, transport) = chain(&[(FRAGMENT, header)], next, &transport);
                }
                (next, transport) = chain(&self.extensions, next, &transport);
                frame.extend((transport.len() as u16).to_be_bytes());
                frame.extend([next, self.ttl]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => panic!("{} and {} are of different families", self.source, self.destination),
        }
        frame.extend(transport);
        frame.truncate(self.length.unwrap_or(usize::MAX));
        frame
    }

    fn transport(&self) -> Vec<u8> {
        if let Some(message) = &self.message {
            let mut bytes = message.clone();
            if matches!(self.protocol, IPIP | IP6IP6) {
                return bytes;
            }
            let pseudo = if self.protocol == ICMP { 0 } else { self.pseudo_sum(bytes.len()) };
            let checksum = !sum(&bytes, pseudo);
            bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
            return bytes;
        }
        let mut bytes = Vec::new();
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        if self.protocol == SCTP {
            return self.finish_sctp(bytes);
        }
        let offset = if self.protocol == UDP {
            bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            6
        } else {
            bytes.extend(self.numbers.0.to_be_bytes());
            bytes.extend(self.numbers.1.to_be_bytes());
            bytes.extend([0x50, self.flags]);
            bytes.extend(self.window.to_be_bytes());
            16
        };
        bytes.extend([0, 0]);
        bytes.resize(if self.protocol == UDP { 8 } else { 20 }, 0);
        bytes.extend(&self.payload);
        let pseudo = self.pseudo_sum(bytes.len());
        let checksum = match self.checksum {
            Checksum::None => 0,
            Checksum::Unfinished => pseudo,
            Checksum::Full => match !sum(&bytes, pseudo) {
                0 if self.protocol == UDP => u16::MAX,
                checksum => checksum,
            },
        };
        bytes[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Verification tag, checksum, and the chunk. A card that is to complete the checksum finds zero.
    fn finish_sctp(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend(self.numbers.0.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.flags, 0]);
        bytes.extend(((4 + self.payload.len()) as u16).to_be_bytes());
        bytes.extend(&self.payload);
        if matches!(self.checksum, Checksum::Full) {
            let checksum = crc32c(&bytes);
            bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    fn pseudo_sum(&self, length: usize) -> u16 {
        let mut pseudo = Vec::new();
        for ip in [self.source.ip(), self.destination.ip()] {
            match ip {
                IpAddr::V4(ip) => pseudo.extend(ip.octets()),
                IpAddr::V6(ip) => pseudo.extend(ip.octets()),
            }
        }
        pseudo.extend([0, self.protocol]);
        pseudo.extend((length as u16).to_be_bytes());
        sum(&pseudo, 0)
    }
}

/// Puts extension headers before what has this number: the number of the first, and all bytes.
fn chain(headers: &[(u8, Vec<u8>)], number: u8, bytes: &[u8]) -> (u8, Vec<u8>) {
    headers.iter().rev().fold((number, bytes.to_vec()), |(next, bytes), (number, body)| {
        (*number, [&[next], &body[..], &bytes[..]].concat())
    })
}

/// The one's complement sum of RFC 1071, not complemented.
pub(crate) fn sum(bytes: &[u8], start: u16) -> u16 {
    let mut sum = u32::from(start);
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The whole sum of RFC 9260, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
