//! Internet checksums by their change (RFC 1624), never by the full sum.
//!
//! A one's complement sum does not care for byte order as long as all of it is read the same way, so everything here
//! works on the bits as they stand in the packet.

use crate::{Address, Be16, Be32};

/// A one's complement sum that is still growing: 32-bit words are added, carries pile up in the high half.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds the words of an address.
    #[inline(always)]
    pub fn add_address<A: Address>(mut self, address: &A) -> Self {
        for word in address.words().as_ref() {
            self.0 += u64::from(word.bits());
        }
        self
    }

    /// Adds a port or any other 16-bit word.
    #[inline(always)]
    pub fn add_word(mut self, word: Be16) -> Self {
        self.0 += u64::from(word.bits());
        self
    }

    /// Adds two 16-bit words at once.
    #[inline(always)]
    pub fn add_words(mut self, words: Be32) -> Self {
        self.0 += u64::from(words.bits());
        self
    }

    /// Adds what changes when `from` becomes `to`.
    #[inline(always)]
    pub fn replace<A: Address>(mut self, from: &A, to: &A) -> Self {
        for word in from.words().as_ref() {
            self.0 += u64::from(!word.bits());
        }
        self.add_address(to)
    }

    /// Adds what changes when the port `from` becomes `to`.
    #[inline(always)]
    pub fn replace_word(mut self, from: Be16, to: Be16) -> Self {
        self.0 += u64::from(!from.bits());
        self.add_word(to)
    }

    /// The sum in 16 bits. Not complemented.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }
}

/// The checksum field after a change of the data by `delta` (RFC 1624, equation 3).
#[inline(always)]
pub fn apply(checksum: u16, delta: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(delta);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// What is left of `whole` when `part` of it is taken out.
#[inline(always)]
pub fn without(whole: u16, part: u16) -> u16 {
    let sum = u32::from(whole) + u32::from(!part);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;

    /// RFC 1071, from scratch.
    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn halves(address: Ip4) -> [u16; 2] {
        let bits = address.0.bits();
        [bits as u16, (bits >> 16) as u16]
    }

    #[test]
    fn delta_equals_full_sum() {
        let addresses = [
            core::net::Ipv4Addr::new(10, 96, 0, 1),
            core::net::Ipv4Addr::new(255, 255, 255, 255),
            core::net::Ipv4Addr::new(0, 0, 0, 1),
            core::net::Ipv4Addr::new(192, 168, 255, 254),
        ]
        .map(Ip4::from);
        for from in addresses {
            for to in addresses {
                for (old_port, new_port) in [(80, 8080), (65535, 1), (0, 65535), (443, 443)] {
                    let (old_port, new_port) = (Be16::new(old_port), Be16::new(new_port));
                    let [a, b] = halves(from);
                    let [c, d] = halves(to);
                    let before = checksum(&[a, b, old_port.bits(), 0x1234]);
                    let after = checksum(&[c, d, new_port.bits(), 0x1234]);
                    let delta = Sum::default().replace(&from, &to).replace_word(old_port, new_port).fold();
                    assert_eq!(apply(before, delta), after, "{from:?}:{old_port:?} -> {to:?}:{new_port:?}");
                }
            }
        }
    }

    #[test]
    fn without_leaves_the_rest() {
        let (from, to) = (
            Ip4::from(core::net::Ipv4Addr::new(10, 0, 0, 1)),
            Ip4::from(core::net::Ipv4Addr::new(10, 1, 2, 3)),
        );
        let addresses = Sum::default().replace(&from, &to);
        let ports = Sum::default().replace_word(Be16::new(80), Be16::new(8080));
        let both = addresses.replace_word(Be16::new(80), Be16::new(8080));
        assert_eq!(without(both.fold(), addresses.fold()), ports.fold());
    }
}
