//! Random frames: a program passes, drops with a reason, or rewrites rightly; it never makes a good checksum bad.

mod packets;

use packets::{
    Dataplane, Program, Verdict,
    frame::{ICMP, ICMPV6, SYN, TCP, UDP, icmp, sum, tcp, udp},
};
use weir_dataplane_ebpf::{Ip4, Ip6, Scope};

/// Frames per program; a second or two.
const FRAMES: u32 = 4_000;

/// xorshift64: the same frames on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Whether header and transport checksum of a whole, unfragmented TCP, UDP or ICMP packet are right; `None` for others.
fn checksums_hold(frame: &[u8]) -> Option<bool> {
    let (network, transport, pseudo) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = frame.get(14..34)?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if header[0] != 0x45 || header[6] & 0x3f != 0 || header[7] != 0 || length < 28 {
                return None;
            }
            let transport = frame.get(34..14 + length)?;
            let pseudo = if header[9] == ICMP {
                Vec::new()
            } else {
                [&header[12..20], &[0, header[9]], &(transport.len() as u16).to_be_bytes()].concat()
            };
            (sum(header, 0) == 0xffff, transport, (header[9], pseudo))
        }
        [0x86, 0xdd] => {
            let header = frame.get(14..54)?;
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let transport = frame.get(54..54 + length)?;
            let pseudo = [&header[8..40], &[0, header[6]], &(transport.len() as u16).to_be_bytes()].concat();
            (true, transport, (header[6], pseudo))
        }
        _ => return None,
    };
    let (protocol, pseudo) = pseudo;
    match protocol {
        TCP if transport.len() >= 20 => {}
        ICMP | ICMPV6 if transport.len() >= 4 => {}
        UDP if transport.len() >= 8 => {
            if transport[6..8] == [0, 0] {
                return Some(network);
            }
        }
        _ => return None,
    }
    Some(network && sum(transport, sum(&pseudo, 0)) == 0xffff)
}

#[test]
fn no_frame_is_spoilt() {
    let mut dataplane = Dataplane::new();
    for scope in [Scope::EXTERNAL, Scope::INTERNAL] {
        for protocol in [TCP, UDP] {
            dataplane.service::<Ip4>(
                scope,
                protocol,
                "192.168.0.1:30080",
                &["10.244.0.5:80", "10.244.7.6:8080"],
                true,
            );
            dataplane.service::<Ip6>(scope, protocol, "[fd00::1]:30080", &["[fd00:244::5]:80"], true);
        }
    }
    dataplane.endpoint::<Ip4>("10.244.0.5");
    let seeds = [
        tcp("192.168.0.9:40000", "192.168.0.1:30080").flags(SYN).bytes(),
        udp("192.168.0.9:40000", "192.168.0.1:30080").bytes(),
        tcp("[fd00::9]:40000", "[fd00::1]:30080").bytes(),
        udp("[fd00::9]:40000", "[fd00::1]:30080").bytes(),
        icmp("192.168.0.7", (3, 4, 1400), &tcp("192.168.0.1:30080", "192.168.0.9:40000")).bytes(),
        icmp("192.168.0.9", (3, 3, 0), &udp("192.168.0.1:30080", "192.168.0.9:40000")).bytes(),
        icmp("fd00::7", (2, 0, 1400), &tcp("[fd00::1]:30080", "[fd00::9]:40000")).bytes(),
        icmp("fd00::9", (1, 4, 0), &udp("[fd00::1]:30080", "[fd00::9]:40000")).bytes(),
    ];
    let mut random = Random(0x5eed_0000_0000_0001);
    let mut rewritten = 0;
    for program in [Program::XdpUplink, Program::TcUplink, Program::TcPod] {
        for _ in 0..FRAMES {
            let mut frame = seeds[random.below(seeds.len())].clone();
            for _ in 0..random.below(4) {
                let at = random.below(frame.len());
                frame[at] = random.next() as u8;
            }
            if random.below(8) == 0 {
                // A socket buffer of a test run holds at least an IPv4 header.
                let shortest = if program == Program::XdpUplink { 14 } else { 54 };
                if frame.len() > shortest {
                    frame.truncate(shortest + random.below(frame.len() - shortest));
                }
            }
            let before = checksums_hold(&frame);
            let drops: u64 = dataplane.drops().iter().map(|it| it.1).sum();
            let (verdict, output) = dataplane.run(program, &frame);
            let counted = dataplane.drops().iter().map(|it| it.1).sum::<u64>() - drops;
            assert_eq!(counted, u64::from(verdict == Verdict::Drop), "{program:?} {frame:02x?}");
            if verdict == Verdict::Drop {
                continue;
            }
            assert_eq!(output.len(), frame.len(), "{program:?} {frame:02x?}");
            rewritten += u32::from(output != frame);
            if before == Some(true) {
                assert_eq!(checksums_hold(&output), Some(true), "{program:?} {frame:02x?} -> {output:02x?}");
            }
        }
    }
    assert!(rewritten > FRAMES / 4, "only {rewritten} frames reached a rewrite");
}
