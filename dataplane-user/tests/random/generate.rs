//! Frames: of every kind that the programs tell apart, then often spoilt.

use std::net::SocketAddr;

use super::{Model, Random};
use crate::packets::{
    Frame, Program,
    frame::{
        ABORT, ACK, C_TAG, DATA, DESTINATION_OPTIONS, FIN, HOP_BY_HOP, INIT, INIT_ACK, ROUTING, RST, SCTP,
        SYN, TCP, UDP, icmp, sctp, tcp, udp,
    },
};

/// Bytes that a socket buffer of a test run holds at least: its link header and the longer network header.
const SHORTEST_BUFFER: usize = 54;
/// The same of an XDP frame: the link header.
const SHORTEST_FRAME: usize = 14;
/// Bytes that hold all headers, and most of a quote's.
const HEADERS: usize = 110;

/// Makes frames between the addresses of a model.
pub(crate) struct Generator<'a> {
    model: &'a Model,
    random: Random,
    /// Later fragments of a packet whose first one has been made, for the same program.
    rest: Vec<(Program, Frame)>,
}

impl<'a> Generator<'a> {
    /// The same frames for the same seed.
    pub(crate) fn new(model: &'a Model, seed: u64) -> Self {
        Self { model, random: Random::new(seed), rest: Vec::new() }
    }

    /// A program and a frame for it.
    pub(crate) fn next(&mut self) -> (Program, Vec<u8>) {
        let mut program = *self.random.of(&[Program::XdpUplink, Program::TcUplink, Program::TcPod]);
        let mut frame = if let Some((of_first, fragment)) = self.rest.pop() {
            program = of_first;
            fragment.bytes()
        } else if self.random.once_in(50) {
            self.noise()
        } else if self.random.once_in(12) {
            self.fragments(program).bytes()
        } else {
            self.sound().bytes()
        };
        if self.random.once_in(3) {
            self.spoil(&mut frame);
        }
        if self.random.once_in(12) {
            let length = self.random.below(frame.len() + 1);
            frame.truncate(length);
        }
        if self.random.once_in(20) {
            // Short frames are padded; whatever stands there is nobody's.
            let padding = self.random.below(40);
            frame.extend((0..padding).map(|at| at as u8));
        }
        let shortest = if program == Program::XdpUplink { SHORTEST_FRAME } else { SHORTEST_BUFFER };
        if frame.len() < shortest {
            frame.resize(shortest, 0);
        }
        (program, frame)
    }

    /// Bytes without sense behind an ethertype that promises some, most of the time.
    fn noise(&mut self) -> Vec<u8> {
        let length = SHORTEST_FRAME + self.random.below(150);
        let mut frame: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
        frame[..12].fill(0);
        match self.random.below(3) {
            0 => frame[12..14].copy_from_slice(&[0x08, 0x00]),
            1 => frame[12..14].copy_from_slice(&[0x86, 0xdd]),
            _ => {}
        }
        frame
    }

    /// Some bytes of the headers, changed.
    fn spoil(&mut self, frame: &mut [u8]) {
        for _ in 0..=self.random.below(4) {
            let at = self.random.below(frame.len().min(HEADERS));
            frame[at] = match self.random.below(3) {
                0 => self.random.next() as u8,
                1 => *self.random.of(&[0, 0xff, 0x45, 0x60, TCP, UDP, SCTP]),
                _ => frame[at] ^ 1 << self.random.below(8),
            };
        }
    }

    /// A client and what it talks to; or a backend and a client, or the node in its stead.
    fn tuple(&mut self) -> (SocketAddr, SocketAddr) {
        let client = *self.random.of(&self.model.clients);
        let service = self.random.of(&self.model.services);
        let (address, backends) = (service.address, service.backends.clone());
        let fits = |a: SocketAddr, b: SocketAddr| a.is_ipv4() == b.is_ipv4();
        if !fits(client, address) {
            return self.tuple();
        }
        match self.random.below(8) {
            0..=3 => (client, address),
            4 | 5 if !backends.is_empty() => (*self.random.of(&backends), client),
            6 if !backends.is_empty() => (client, *self.random.of(&backends)),
            7 if !backends.is_empty() => {
                let own = *self.random.of(&self.model.own);
                let port = 12_288 + self.random.below(16_384) as u16;
                let backend = *self.random.of(&backends);
                let node = SocketAddr::new(own, port);
                if fits(backend, node) { (backend, node) } else { (client, address) }
            }
            _ => (client, *self.random.of(&[address, client])),
        }
    }

    /// A frame that a sender could have made.
    fn sound(&mut self) -> Frame {
        let (source, destination) = self.tuple();
        let frame = self.packet(source, destination);
        if self.random.once_in(4) {
            return self.complaint(&frame);
        }
        if self.random.once_in(10) {
            return self.with_options(frame);
        }
        match self.random.below(24) {
            0 => frame.tag(C_TAG, 5),
            1 if source.is_ipv4() => frame.fragment(*self.random.of(&[0x2000, 0x0010, 0x4000, 0x2001])),
            3 => frame.protocol(*self.random.of(&[0, 1, 33, 44, 47, 58, 60])),
            4 => frame.link([2; 6], *self.random.of(&[[1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 9], [0xff; 6]])),
            _ => frame,
        }
    }

    /// Options before the ports, most of them sound.
    fn with_options(&mut self, mut frame: Frame) -> Frame {
        if frame.destination().is_ipv4() {
            let options: &[&[u8]] = &[
                &[1, 1, 1, 0],
                &[148, 4, 0, 0],
                &[1, 7, 7, 4, 0, 0, 0, 0],
                &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9],
                &[1; 40],
                &[131, 7, 4, 10, 0, 0, 1, 0],
                &[1, 1, 137, 3, 4, 0, 0, 0],
                &[7, 1, 0, 0],
                &[1, 1, 7, 3],
                &[1, 1, 1, 7],
                &[7, 40, 4, 0],
            ];
            let chosen: &&[u8] = self.random.of(options);
            return frame.options(chosen);
        }
        for _ in 0..=self.random.below(5) {
            let number = *self.random.of(&[HOP_BY_HOP, DESTINATION_OPTIONS, DESTINATION_OPTIONS, ROUTING]);
            let words = self.random.below(3);
            let mut body = vec![0; 8 * words + 7];
            body[0] = words as u8;
            frame = frame.extension(number, &body);
            if self.random.once_in(2) {
                break;
            }
        }
        frame
    }

    /// The first fragment of a packet. Its others come next: two of them, one of them, or none, in any order.
    fn fragments(&mut self, program: Program) -> Frame {
        let (source, destination) = self.tuple();
        let size = 8 * (1 + self.random.below(4));
        let mut packet = self.packet(source, destination).id(self.random.below(4) as u16);
        if self.random.once_in(4) {
            packet = self.with_options(packet);
        }
        if self.random.once_in(8) {
            packet = packet.inner_extension(DESTINATION_OPTIONS, &[0, 1, 4, 0, 0, 0, 0]);
        }
        for at in [size, size + 8] {
            if !self.random.once_in(3) {
                let length = if self.random.once_in(2) { 8 } else { 200 };
                self.rest.push((program, packet.clone().part(at, length)));
            }
        }
        packet.part(0, size)
    }

    fn packet(&mut self, source: SocketAddr, destination: SocketAddr) -> Frame {
        let (source, destination) = (source.to_string(), destination.to_string());
        let mut frame = if self.random.once_in(8) {
            sctp(&source, &destination, *self.random.of(&[INIT, INIT_ACK, DATA, DATA, ABORT, 7, 14]))
        } else if self.random.once_in(2) {
            let flags = *self.random.of(&[SYN, SYN, ACK, ACK, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0]);
            tcp(&source, &destination).flags(flags)
        } else {
            udp(&source, &destination)
        };
        let payload: Vec<u8> = (0..self.random.below(64)).map(|_| self.random.next() as u8).collect();
        frame = frame.payload(&payload).ttl(*self.random.of(&[0, 1, 2, 64, 64, 64, 255]));
        match self.random.below(16) {
            0 => frame.without_checksum(),
            1 => frame.unfinished_checksum(),
            _ => frame,
        }
    }

    /// An ICMP error about a packet, from a router or from the packet's destination; or another message.
    fn complaint(&mut self, about: &Frame) -> Frame {
        let destination = about.destination();
        let v4 = destination.is_ipv4();
        let router = if v4 { "192.168.0.7" } else { "fd00::7" };
        let from = if self.random.once_in(2) { router.to_owned() } else { destination.ip().to_string() };
        let kinds: &[(u8, u8, u32)] = if v4 {
            &[(3, 4, 1400), (3, 3, 0), (11, 0, 0), (12, 0, 0), (8, 0, 7), (5, 1, 7)]
        } else {
            &[(2, 0, 1400), (1, 4, 0), (3, 0, 0), (4, 1, 0), (128, 0, 7), (137, 0, 0)]
        };
        let message = icmp(&from, *self.random.of(kinds), about);
        let network = if v4 { 20 } else { 40 };
        match self.random.below(6) {
            0 => message.quoting(network + 8),
            1 => message.quoting(network + self.random.below(24)),
            2 => message.sent_to(router),
            _ => message,
        }
    }
}
