//! Whether what became of a frame is right.
//!
//! Knows the services and what it has seen translated so far, and reads frames on its own. Whatever a program does to a
//! frame, four things must hold: nothing but what a translation may change has changed; every checksum is as right or as
//! wrong as it was; the new tuple is a backend of the service that was asked, or undoes exactly a translation that was
//! made; and what ends here was counted once.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::maps::{MASQUERADE_PORT_FIRST, MASQUERADE_PORTS};

use super::Model;
use crate::packets::{
    HOST_MAC, POD_MAC, Program, Verdict,
    frame::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, RST, SCTP, TCP, UDP, crc32c, sum},
};

/// What a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Left alone.
    Untouched,
    /// Handed to a pod as it was.
    Delivered,
    /// A new tuple, and up the stack.
    TranslatedUp,
    /// A new tuple, and straight on.
    TranslatedOn,
    /// A later fragment with new addresses, and up the stack.
    FollowedUp,
    /// A later fragment with new addresses, and straight on.
    FollowedOn,
    /// An ICMP error about a translated packet.
    Error,
    /// Turned into an answer to its sender.
    Answered,
    /// Dropped.
    Dropped,
}

/// What happened to a frame.
pub(crate) struct Run<'a> {
    pub(crate) program: Program,
    pub(crate) input: &'a [u8],
    pub(crate) verdict: Verdict,
    pub(crate) output: &'a [u8],
    /// Drops that were counted meanwhile.
    pub(crate) drops: u64,
}

type Tuple = (SocketAddr, SocketAddr);

/// What the fragments of a packet have in common: addresses, identification, and the protocol of IPv4.
type Fragments = (IpAddr, IpAddr, Option<u32>, u8);

/// What of a packet is in a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

/// See the module.
pub(crate) struct Judge<'a> {
    model: &'a Model,
    /// What each tuple was seen to become, both ways.
    seen: HashMap<(u8, Tuple), HashSet<Tuple>>,
    /// The first fragments that came to TC, by what they have in common with later ones.
    firsts: HashMap<Fragments, (u8, Tuple)>,
    /// Tuples of packets that were dropped: what has no hop left opens a flow all the same.
    dropped: HashSet<(u8, Tuple)>,
}

/// A TCP, UDP, SCTP or ICMP packet in a frame, or in the quote of one, by the offsets of its parts.
struct Packet<'a> {
    bytes: &'a [u8],
    v4: bool,
    network: usize,
    transport: usize,
    /// Behind the packet's last byte.
    end: usize,
    protocol: u8,
    part: Part,
    identification: Option<u32>,
}

impl<'a> Packet<'a> {
    /// The packet of a frame that is for one machine, whole or a fragment.
    fn of_frame(bytes: &'a [u8]) -> Option<Self> {
        if bytes.first()? & 1 != 0 { None } else { Self::of_any_frame(bytes) }
    }

    /// The same, whomever the frame is for.
    fn of_any_frame(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < 14 {
            return None;
        }
        let packet = Self::at(bytes, 14, bytes[12..14] == [0x08, 0x00])?;
        let known = bytes[12..14] == [0x08, 0x00] || bytes[12..14] == [0x86, 0xdd];
        let least = if packet.part == Part::Later { 0 } else { packet.least()? };
        (known && packet.end <= bytes.len() && packet.end >= packet.transport + least).then_some(packet)
    }

    /// A packet that is quoted at `network`: it may end early.
    fn quoted(bytes: &'a [u8], network: usize, v4: bool, end: usize) -> Option<Self> {
        let mut packet = Self::at(bytes, network, v4)?;
        packet.end = end;
        (packet.is_plain() && end >= packet.transport + 8).then_some(packet)
    }

    fn at(bytes: &'a [u8], network: usize, v4: bool) -> Option<Self> {
        let header = bytes.get(network..network + if v4 { 20 } else { 40 })?;
        let word = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let part = |offset, more| match (offset, more) {
            (0, false) => Part::Whole,
            (0, true) => Part::First,
            _ => Part::Later,
        };
        let mut transport = network + header.len();
        if v4 {
            transport = network + usize::from(header[0] & 0x0f) * 4;
            if header[0] >> 4 != 4
                || transport < network + 20
                || !sound_options(bytes.get(network + 20..transport)?)
            {
                return None;
            }
            // Segmentation offload writes no length.
            let length = if word(2) == 0 { bytes.len() - network } else { word(2) };
            return Some(Self {
                bytes,
                v4,
                network,
                transport,
                end: network + length,
                protocol: header[9],
                part: part(word(6) & 0x1fff, word(6) & 0x2000 != 0),
                identification: Some(word(4) as u32),
            });
        }
        if header[0] >> 4 != 6 {
            return None;
        }
        let mut packet = Self {
            bytes,
            v4,
            network,
            transport,
            end: transport + word(4),
            protocol: header[6],
            part: Part::Whole,
            identification: None,
        };
        if packet.protocol == HOP_BY_HOP && word(4) == 0 {
            packet.end = bytes.len();
        }
        let mut left = 4;
        while matches!(packet.protocol, HOP_BY_HOP | DESTINATION_OPTIONS | FRAGMENT)
            && packet.part != Part::Later
        {
            left -= 1;
            let header = bytes.get(packet.transport..packet.transport + 8)?;
            if left < 0 || packet.protocol == FRAGMENT && packet.identification.is_some() {
                return None;
            }
            let mut length = 8;
            if packet.protocol == FRAGMENT {
                let word = u16::from_be_bytes([header[2], header[3]]);
                packet.part = part(usize::from(word >> 3), word & 1 != 0);
                packet.identification =
                    Some(u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
            } else {
                length += usize::from(header[1]) * 8;
            }
            packet.protocol = header[0];
            packet.transport += length;
        }
        Some(packet)
    }

    fn v4(&self) -> bool {
        self.v4
    }

    /// Whether the ports are where they always are.
    fn is_plain(&self) -> bool {
        self.part == Part::Whole && self.transport - self.network == if self.v4 { 20 } else { 40 }
    }

    fn fragments(&self) -> Fragments {
        let (source, destination) = self.ips();
        (source, destination, self.identification, if self.v4 { self.protocol } else { 0 })
    }

    /// Bytes of a whole transport header.
    fn least(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(20),
            UDP => Some(8),
            SCTP if self.part == Part::Whole => Some(16),
            ICMP if self.v4() && self.is_plain() => Some(8),
            ICMPV6 if !self.v4() && self.is_plain() => Some(8),
            _ => None,
        }
    }

    fn addresses(&self) -> std::ops::Range<usize> {
        if self.v4() { self.network + 12..self.network + 20 } else { self.network + 8..self.network + 40 }
    }

    fn ips(&self) -> (IpAddr, IpAddr) {
        let bytes = &self.bytes[self.addresses()];
        let (source, destination) = bytes.split_at(bytes.len() / 2);
        let ip = |bytes: &[u8]| -> IpAddr {
            match bytes.len() {
                4 => <[u8; 4]>::try_from(bytes).expect("four").into(),
                _ => <[u8; 16]>::try_from(bytes).expect("sixteen").into(),
            }
        };
        (ip(source), ip(destination))
    }

    fn tuple(&self) -> Tuple {
        let word = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let (source, destination) = self.ips();
        (
            SocketAddr::new(source, word(self.transport)),
            SocketAddr::new(destination, word(self.transport + 2)),
        )
    }

    fn ttl_at(&self) -> usize {
        self.network + if self.v4() { 8 } else { 7 }
    }

    fn checksum_at(&self) -> usize {
        self.transport
            + match self.protocol {
                TCP => 16,
                UDP => 6,
                SCTP => 8,
                _ => 2,
            }
    }

    fn checksum(&self) -> std::ops::Range<usize> {
        let at = self.checksum_at();
        at..at + if self.protocol == SCTP { 4 } else { 2 }
    }

    fn has_checksum(&self) -> bool {
        self.part != Part::Later && self.checksum().end <= self.end
    }

    fn no_checksum(&self) -> bool {
        // UDP's zero is none; SCTP's, one that a card is to complete.
        let may_lack = matches!(self.protocol, UDP | SCTP) && self.has_checksum();
        may_lack && self.bytes[self.checksum()].iter().all(|byte| *byte == 0)
    }

    /// The sum of the network header, which is zero when its checksum is right. Both zeros of one's complement are one.
    fn network_sum(&self) -> u16 {
        if self.v4() { sum(&self.bytes[self.network..self.transport], 0) % 0xffff } else { 0 }
    }

    /// The sum of what the transport's checksum covers, up to `end`. Protocol and length, which no translation changes,
    /// are left out. For SCTP it is the difference to the checksum that would be right.
    fn transport_sum(&self, end: usize) -> u32 {
        if self.part == Part::Later {
            return 0;
        }
        if self.protocol == SCTP {
            let mut bytes = self.bytes[self.transport..end].to_vec();
            let stored = <[u8; 4]>::try_from(&bytes[8..12]).expect("four");
            bytes[8..12].fill(0);
            return u32::from_le_bytes(stored) ^ crc32c(&bytes);
        }
        let pseudo = if self.protocol == ICMP { 0 } else { sum(&self.bytes[self.addresses()], 0) };
        u32::from(sum(&self.bytes[self.transport..end], pseudo) % 0xffff)
    }

    /// Marks what a translation of this packet may change.
    fn may_change(&self, changes: &mut [bool]) {
        changes[self.addresses()].fill(true);
        if self.v4() {
            changes[self.network + 10..self.network + 12].fill(true);
        }
        if self.has_checksum() {
            changes[self.checksum()].fill(true);
        }
    }
}

/// Whether options of IPv4 are whole, and none of them routes the packet.
fn sound_options(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [] | [0, ..] => return true,
            [1, rest @ ..] => rest,
            [131 | 137, ..] => return false,
            [_, length, ..] if *length >= 2 && usize::from(*length) <= options.len() => {
                &options[usize::from(*length)..]
            }
            _ => return false,
        }
    }
}

fn ensure(holds: bool, problem: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(problem.to_owned()) }
}

fn reversed((source, destination): Tuple) -> Tuple {
    (destination, source)
}

impl<'a> Judge<'a> {
    pub(crate) fn new(model: &'a Model) -> Self {
        Self { model, seen: HashMap::new(), firsts: HashMap::new(), dropped: HashSet::new() }
    }

    /// What the frame came to, or what is wrong with that.
    pub(crate) fn judge(&mut self, run: &Run<'_>) -> Result<Outcome, String> {
        let first = Packet::of_frame(run.input).filter(|it| it.part == Part::First);
        // TC passes what is for another machine's link.
        let to_tc = run.program != Program::XdpUplink && run.input[..6] == [0; 6];
        if let Some(first) = first.filter(|_| to_tc) {
            self.firsts.insert(first.fragments(), (first.protocol, first.tuple()));
        }
        if run.verdict == Verdict::Drop {
            ensure(run.drops == 1, "a drop is counted once")?;
            if let Some(packet) = Packet::of_frame(run.input).filter(|it| it.part != Part::Later) {
                self.dropped.insert((packet.protocol, packet.tuple()));
            }
            return Ok(Outcome::Dropped);
        }
        if run.drops != 0 {
            ensure(run.drops == 1 && run.verdict == Verdict::Redirect, "what goes on is not dropped")?;
            return self.answer(run).map(|()| Outcome::Answered);
        }
        ensure(run.input.len() == run.output.len(), "the length is the same")?;
        if run.input == run.output {
            ensure(run.verdict == Verdict::Pass, "what is sent on has one hop less")?;
            return Ok(Outcome::Untouched);
        }
        let before = Packet::of_frame(run.input).ok_or("nobody's packet was changed")?;
        let after = Packet::of_frame(run.output).ok_or("the packet is none any more")?;
        let parts = |packet: &Packet<'_>| (packet.part, packet.transport, packet.end, packet.protocol);
        ensure(parts(&before) == parts(&after), "its parts are where they were")?;
        let mut changes = vec![false; run.input.len()];
        let on = run.verdict == Verdict::Redirect;
        if on {
            changes[..12].fill(true);
            changes[before.ttl_at()] = true;
            ensure(run.input[before.ttl_at()] > 1, "a last hop is not gone on")?;
        }
        let hops = run.input[before.ttl_at()].wrapping_sub(run.output[before.ttl_at()]);
        ensure(hops == u8::from(on), "what is sent on has one hop less, and nothing else has")?;
        before.may_change(&mut changes);
        let outside = run.program != Program::XdpUplink;
        ensure(outside || before.is_plain(), "XDP leaves what it cannot read at once")?;
        let outcome = if before.part == Part::Later {
            self.follows(&before, &after)?;
            if on { Outcome::FollowedOn } else { Outcome::FollowedUp }
        } else if matches!(before.protocol, TCP | UDP | SCTP) {
            changes[before.transport..before.transport + 4].fill(true);
            self.translation(run, &before, &after)?
        } else {
            self.error(run, &before, &after, &mut changes)?
        };
        let bytes = run.input.iter().zip(run.output).zip(&changes);
        let other: Vec<usize> =
            bytes.enumerate().filter(|(_, ((a, b), may))| a != b && !**may).map(|(at, _)| at).collect();
        ensure(other.is_empty(), &format!("bytes {other:?} are not a translation's to change"))?;
        same_sums(&before, &after)?;
        Ok(outcome)
    }

    /// A later fragment, which takes the addresses of its first one's flow.
    fn follows(&self, before: &Packet<'_>, after: &Packet<'_>) -> Result<(), String> {
        let (protocol, from) =
            self.firsts.get(&before.fragments()).ok_or("its first fragment has not come")?;
        let ips = |to: &Tuple| (to.0.ip(), to.1.ip());
        let known = self.seen.get(&(*protocol, *from)).ok_or("its first fragment was not served")?;
        // What was dropped may have begun another flow of the same tuple, whose translation nobody has seen.
        let is_unseen = self.dropped.contains(&(*protocol, *from));
        ensure(
            is_unseen || known.iter().any(|to| ips(to) == after.ips()),
            &format!("it follows its first fragment, {protocol} {from:?}, which went to one of {known:?}"),
        )
    }

    /// A packet with another tuple, or a pod's packet on its last hop.
    fn translation(
        &mut self,
        run: &Run<'_>,
        before: &Packet<'_>,
        after: &Packet<'_>,
    ) -> Result<Outcome, String> {
        let (from, to) = (before.tuple(), after.tuple());
        let on = run.verdict == Verdict::Redirect;
        if from == to {
            ensure(on && self.model.pods.contains(&to.1.ip()), "only a pod's packet goes on as it is")?;
            ensure(run.output[..12] == [POD_MAC, HOST_MAC].concat()[..], "it has the pod link's addresses")?;
            return Ok(Outcome::Delivered);
        }
        let protocol = before.protocol;
        let known = self.seen.get(&(protocol, from)).is_some_and(|all| all.contains(&to));
        if !known {
            self.opens(protocol, from, to).or_else(|problem| {
                let undone = self.dropped.contains(&(protocol, reversed(to)));
                if undone { self.opens(protocol, reversed(to), reversed(from)) } else { Err(problem) }
            })?;
            self.seen.entry((protocol, from)).or_default().insert(to);
            self.seen.entry((protocol, reversed(to))).or_default().insert(reversed(from));
        }
        if before.no_checksum() {
            ensure(after.no_checksum(), "a datagram without checksum stays without")?;
        }
        Ok(if on { Outcome::TranslatedOn } else { Outcome::TranslatedUp })
    }

    /// Whether a client's packet may become this one.
    fn opens(&self, protocol: u8, from: Tuple, to: Tuple) -> Result<(), String> {
        let asked = |it: &&super::model::Service| it.protocol == protocol && it.address == from.1;
        let service = self.model.services.iter().find(asked);
        let service = service.ok_or(format!("{from:?} became {to:?}, which undoes nothing"))?;
        ensure(service.backends.contains(&to.1), "the backend is one of the service's")?;
        let ports = MASQUERADE_PORT_FIRST..MASQUERADE_PORT_FIRST + MASQUERADE_PORTS;
        // Where two flows would be one to the backend, the second takes another port.
        let ours = to.0.ip() == from.0.ip() || self.model.own.contains(&to.0.ip());
        let masquerade = ours && ports.contains(&to.0.port());
        ensure(to.0 == from.0 || masquerade, "the source is the client's, or the node's own")
    }

    /// Whether packets of this tuple were seen to become that one, or may have been.
    fn knows(&self, protocol: u8, from: Tuple, to: Tuple) -> bool {
        let opened =
            |from, to| self.dropped.contains(&(protocol, from)) && self.opens(protocol, from, to).is_ok();
        self.seen.get(&(protocol, from)).is_some_and(|all| all.contains(&to))
            || opened(from, to)
            || opened(reversed(to), reversed(from))
    }

    /// An ICMP error: its quote becomes the packet as it was sent, its addresses follow.
    fn error(
        &self,
        run: &Run<'_>,
        before: &Packet<'_>,
        after: &Packet<'_>,
        changes: &mut [bool],
    ) -> Result<Outcome, String> {
        ensure(run.program != Program::XdpUplink, "XDP leaves ICMP alone")?;
        let quote = |packet: &Packet<'_>| -> Option<(Tuple, u16, Option<u16>, bool, u8)> {
            let quote = Packet::quoted(packet.bytes, packet.transport + 8, packet.v4(), packet.end)?;
            let tuple = quote.tuple();
            // What is quoted of the transport may be a part: its fields' share of the sum is what stays.
            // Nobody can check SCTP's, which covers all of it.
            let covered = (quote.has_checksum() && quote.protocol != SCTP).then(|| {
                let at = quote.checksum_at();
                let ports = sum(&packet.bytes[quote.transport..quote.transport + 4], 0);
                let addresses = sum(&packet.bytes[quote.addresses()], ports);
                sum(&packet.bytes[at..at + 2], addresses) % 0xffff
            });
            Some((tuple, quote.network_sum(), covered, quote.no_checksum(), quote.protocol))
        };
        let (old, old_network, old_covered, old_none, protocol) =
            quote(before).ok_or("an ICMP packet without a quote was changed")?;
        let (new, new_network, new_covered, new_none, _) = quote(after).ok_or("the quote is gone")?;
        let (key, value) = (reversed(old), reversed(new));
        if key == value {
            // The error went to a pod as it was.
            return Err("an error about nobody's packet was changed".into());
        }
        ensure(self.knows(protocol, key, value), "the quote is the packet as it was sent")?;
        ensure(old_network == new_network, "the quoted header's checksum is as right as it was")?;
        ensure(old_none == new_none, "a quoted datagram without checksum stays without")?;
        ensure(old_none || old_covered == new_covered, "the quoted checksum is as right as it was")?;
        let (source, destination) = before.ips();
        let complains_itself = source == key.0.ip();
        let expected = (if complains_itself { value.0.ip() } else { source }, value.1.ip());
        ensure(destination == key.1.ip(), "only an error to the quoted sender is changed")?;
        ensure(after.ips() == expected, "the error is sent to the sender of the packet that it is about")?;
        let quote = Packet::quoted(before.bytes, before.transport + 8, before.v4(), before.end)
            .expect("it was read just now");
        quote.may_change(changes);
        changes[quote.transport..quote.transport + 4].fill(true);
        Ok(Outcome::Error)
    }

    /// A RST or "port unreachable" in the name of a service without endpoints.
    fn answer(&self, run: &Run<'_>) -> Result<(), String> {
        ensure(run.program != Program::XdpUplink, "XDP answers nothing")?;
        let before = Packet::of_frame(run.input).ok_or("nobody's packet is answered")?;
        // A frame may say that a group has sent it, and is answered all the same.
        let after = Packet::of_any_frame(run.output).ok_or("the answer is no packet")?;
        let (from, to) = (before.ips(), after.ips());
        ensure(to == (from.1, from.0), "the answer goes to the sender")?;
        let empty = |it: &super::model::Service| {
            it.protocol == before.protocol && it.address == before.tuple().1 && it.backends.is_empty()
        };
        ensure(self.model.services.iter().any(empty), "the service has no endpoint")?;
        let links = [&run.input[6..12], &run.input[..6]].concat();
        ensure(run.output[..12] == links[..], "the answer goes back by the link")?;
        let network = after.transport - after.network;
        if before.protocol == TCP {
            ensure(
                after.protocol == TCP && after.tuple() == reversed(before.tuple()),
                "a RST for a segment",
            )?;
            ensure(run.output[after.transport + 13] & RST != 0, "it is a RST")?;
            ensure(run.input[before.transport + 13] & RST == 0, "no RST is answered")?;
            ensure(run.output.len() == after.transport + 20, "it has no data")?;
        } else {
            let kind = if before.v4() { [3, 3] } else { [1, 4] };
            ensure(run.output[after.transport..after.transport + 2] == kind, "it says port unreachable")?;
            let quote = &run.output[after.transport + 8..];
            ensure(quote == &run.input[14..14 + network + 8], "it quotes the packet")?;
        }
        ensure(after.end == run.output.len(), "its length field is right")?;
        ensure(after.network_sum() == 0, "its header's checksum is right")?;
        let constant = if after.protocol == ICMP {
            0
        } else {
            u32::from(after.protocol) + (after.end - after.transport) as u32
        };
        let whole = (after.transport_sum(after.end) + constant) % 0xffff;
        ensure(whole == 0, "its checksum is right")
    }
}

/// Checksums are as right as they were.
fn same_sums(before: &Packet<'_>, after: &Packet<'_>) -> Result<(), String> {
    ensure(before.network_sum() == after.network_sum(), "the header's checksum is as right as it was")?;
    let same = before.transport_sum(before.end) == after.transport_sum(after.end);
    ensure(before.no_checksum() || same, "the checksum is as right as it was")?;
    ensure(before.no_checksum() || !after.no_checksum(), "a datagram with a checksum keeps one")
}
