//! Answers in the name of services that have no endpoint, or not the port that was asked for, so that clients fail at once
//! instead of trying again: the RST or the ICMP error that a host gives for a port on which nobody listens. kube-proxy
//! rejects both likewise.
//!
//! The answer is put together in the packet's own buffer and goes back by the link that the packet came by. There is at
//! most one for a packet, longer than that by two headers at the most, so that a forged source gains nothing. No RST is
//! answered; the other packets that must not be (RFC 1122, 3.2.2) do not get here, but for those whose source is not
//! one host's.
//!
//! A packet whose checksum was left to a card keeps that state, which no helper clears: something behind us may still
//! write a sum over the transport, at the place where the old one was. For a RST that is right as it is: the field then
//! holds what a sender leaves in it. In an ICMP error the place is a word that means nothing, and the sum over a message
//! that has its own already is zero.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_PSEUDO_HDR},
    helpers::bpf_skb_change_tail,
    programs::TcContext,
};
use weir_dataplane_ebpf::{Address, Be16, Be32, FlowKey, Ip4, Ip6, Mac, Protocol, checksum};

use crate::{
    icmp,
    maps::{Complaint, Draft, Packet},
    parse::{self, ETHERNET_LENGTH, Frame, Layout, Tcp, TcpFlags, Transport, Udp},
    rewrite, tc,
};

/// Time to live of an answer.
const TTL: u8 = 64;

/// How a family's answers begin.
pub trait Reply: Address {
    /// Type and code of "port unreachable".
    const PORT_UNREACHABLE: Be16;
    /// Type and code of what tells a sender the MTU, in the message's second word.
    const PACKET_TOO_BIG: Be16;
    /// What the kernel must be told of a packet that is put into one of this family.
    const ENCAPSULATES: u64;

    /// Whether the address can be one host's alone.
    fn is_one_host(&self) -> bool;
    /// Writes the network header of an answer to the packet with this tuple. The frame holds it.
    fn write_header(frame: Frame, key: &FlowKey<Self>, protocol: Protocol, payload: u16);
}

impl Reply for Ip4 {
    const PORT_UNREACHABLE: Be16 = Be16::new(0x0303);
    const PACKET_TOO_BIG: Be16 = Be16::new(0x0304);
    const ENCAPSULATES: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;

    /// Not this network, loopback, multicast, reserved or broadcast.
    #[inline(always)]
    fn is_one_host(&self) -> bool {
        let network = self.0.get() >> 24;
        network != 0 && network != 127 && network < 224
    }

    #[inline(always)]
    fn write_header(frame: Frame, key: &FlowKey<Self>, protocol: Protocol, payload: u16) {
        let version = Be16::new(0x4500);
        let length = Be16::new(payload + Self::NETWORK_LENGTH as u16);
        let dont_fragment = Be16::new(0x4000);
        let ttl_and_protocol = Be16::new(u16::from(TTL) << 8 | u16::from(protocol.0));
        let sum = checksum::Sum::default()
            .add_word(version)
            .add_word(length)
            .add_word(dont_fragment)
            .add_word(ttl_and_protocol)
            .add_address(&key.source)
            .add_address(&key.destination);
        frame.write(ETHERNET_LENGTH, version);
        frame.write(ETHERNET_LENGTH + 2, length);
        frame.write(ETHERNET_LENGTH + 4, Be16::new(0));
        frame.write(ETHERNET_LENGTH + 6, dont_fragment);
        frame.write(ETHERNET_LENGTH + 8, ttl_and_protocol);
        frame.write(ETHERNET_LENGTH + 10, !sum.fold());
        write_addresses(frame, key);
    }
}

impl Reply for Ip6 {
    const PORT_UNREACHABLE: Be16 = Be16::new(0x0104);
    const PACKET_TOO_BIG: Be16 = Be16::new(0x0200);
    const ENCAPSULATES: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64;

    /// Not multicast, unspecified or loopback.
    #[inline(always)]
    fn is_one_host(&self) -> bool {
        let [a, b, c, d] = self.0.map(Be32::get);
        a >> 24 != 0xff && (a | b | c != 0 || d > 1)
    }

    #[inline(always)]
    fn write_header(frame: Frame, key: &FlowKey<Self>, protocol: Protocol, payload: u16) {
        frame.write(ETHERNET_LENGTH, Be32::new(0x6000_0000));
        frame.write(ETHERNET_LENGTH + 4, Be16::new(payload));
        frame.write(ETHERNET_LENGTH + 6, protocol);
        frame.write(ETHERNET_LENGTH + 7, TTL);
        write_addresses(frame, key);
    }
}

/// The answer's source is what was asked for.
#[inline(always)]
fn write_addresses<A: Layout>(frame: Frame, key: &FlowKey<A>) {
    key.destination.write_address(frame, A::ADDRESSES);
    key.source.write_address(frame, A::ADDRESSES + size_of::<A>());
}

/// What a closed port answers (RFC 9293, 3.10.7.1).
#[inline(always)]
pub fn reset<A: Layout>(skb: *mut __sk_buff) -> Option<()> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let Draft { key, packet: Packet { length, flags, .. }, .. } = unsafe { &*A::draft()? };
    if flags.resets() || !key.source.is_one_host() {
        return None;
    }
    let context = TcContext::new(skb);
    let frame = resize(&context, A::TRANSPORT + Tcp::LENGTH)?;
    let (sequence, acknowledgement): (Be32, Be32) =
        (frame.read(A::TRANSPORT + 4), frame.read(A::TRANSPORT + 8));
    let words = u32::from(frame.read::<u8>(A::TRANSPORT + 12) >> 4);
    let data = length.saturating_sub(A::NETWORK_LENGTH as u32 + words * 4);
    let end = sequence.get().wrapping_add(data).wrapping_add(flags.sequence_length());
    let (sequence, acknowledgement, flags) = if flags.acknowledges() {
        (acknowledgement, Be32::new(0), TcpFlags::RESET)
    } else {
        (Be32::new(0), Be32::new(end), TcpFlags::RESET_AND_ACKNOWLEDGE)
    };
    turn_round(frame);
    A::write_header(frame, key, Protocol::TCP, Tcp::LENGTH as u16);
    frame.write(A::TRANSPORT, key.destination_port);
    frame.write(A::TRANSPORT + 2, key.source_port);
    frame.write(A::TRANSPORT + 4, sequence);
    frame.write(A::TRANSPORT + 8, acknowledgement);
    frame.write(A::TRANSPORT + 12, flags);
    // Window, checksum, urgent pointer.
    frame.write(A::TRANSPORT + 14, Be16::new(0));
    frame.write(A::TRANSPORT + 16, Be32::new(0));
    let segment = checksum::Sum::default()
        .add_word(key.source_port)
        .add_word(key.destination_port)
        .add_words(sequence)
        .add_words(acknowledgement)
        .add_word(flags);
    let pseudo = parse::pseudo_header(key, Protocol::TCP, Tcp::LENGTH as u16);
    complete(&context, A::TRANSPORT + Tcp::CHECKSUM, pseudo.fold(), segment.fold())
}

/// An ICMP message to the packet's sender, with the network header and the first bytes behind it in the quote: what a host needs to find
/// the socket (RFC 792). RFC 4443 would like more of the packet, for people to look at.
#[inline(always)]
pub fn complain<A: Layout>(skb: *mut __sk_buff) -> Option<()> {
    // SAFETY: the draft is this CPU's own, see `Draft`.
    let Draft { key, complaint: Complaint { kind, word }, .. } = unsafe { &*A::draft()? };
    // The quote moves by its own length, so that it may be copied from front to back.
    const { assert!(icmp::HEADER_LENGTH == icmp::QUOTED_LENGTH) };
    if !key.source.is_one_host() {
        return None;
    }
    let quote_length = A::NETWORK_LENGTH + icmp::QUOTED_LENGTH;
    let quote_at = A::TRANSPORT + icmp::HEADER_LENGTH;
    let payload = (icmp::HEADER_LENGTH + quote_length) as u16;
    let context = TcContext::new(skb);
    let frame = resize(&context, quote_at + quote_length)?;
    let mut sum = checksum::Sum::default().add_word(*kind).add_words(*word);
    let mut at = 0;
    while at < quote_length {
        let words: Be32 = frame.read(ETHERNET_LENGTH + at);
        frame.write(quote_at + at, words);
        sum = sum.add_words(words);
        at += 4;
    }
    turn_round(frame);
    A::write_header(frame, key, A::ICMP, payload);
    let pseudo =
        if A::NETWORK_CHECKSUM.is_none() { parse::pseudo_header(key, A::ICMP, payload).fold() } else { 0 };
    frame.write(A::TRANSPORT, *kind);
    frame.write(A::TRANSPORT + icmp::CHECKSUM, !sum.add_word(Be16::from_bits(pseudo)).fold());
    frame.write(A::TRANSPORT + 4, *word);
    if A::NETWORK_CHECKSUM.is_some() {
        return Some(());
    }
    // Zero, unless somebody will complete it.
    complete(&context, A::TRANSPORT + Udp::CHECKSUM, pseudo, !pseudo)
}

/// Makes the packet `length` bytes long, all of them at hand.
#[inline(always)]
fn resize(context: &TcContext, length: usize) -> Option<Frame> {
    // SAFETY: the context is the kernel's. No bytes of the packet are read past the call but through a new frame.
    if unsafe { bpf_skb_change_tail(context.skb.skb, length as u32, 0) } != 0 {
        return None;
    }
    let frame = tc::frame(context, length);
    frame.holds(length).then_some(frame)
}

/// Addresses the frame to its sender.
#[inline(always)]
fn turn_round(frame: Frame) {
    let (destination, source): (Mac, Mac) = (frame.read(0), frame.read(6));
    rewrite::write_link_addresses(frame, source, destination);
}

/// Makes a checksum of a field that is zero, from the sums of the pseudo header and of the rest. The helper knows
/// whether the packet's sum is left to a card: the field gets the first alone then, to be completed. Nothing may be
/// read or written after it.
#[inline(always)]
fn complete(context: &TcContext, offset: usize, pseudo: u16, rest: u16) -> Option<()> {
    context.l4_csum_replace(offset, 0, u64::from(pseudo), u64::from(BPF_F_PSEUDO_HDR)).ok()?;
    context.l4_csum_replace(offset, 0, u64::from(rest), 0).ok()
}
