//! The filter: which addresses and ports can have to do with a service at all.
//!
//! A packet is a service's only if it goes to a frontend or comes from a backend. One bit says so for each of them, in a
//! map that fits into a core's own cache, so that every other packet is let through after two reads of it and without a
//! look-up of its flow; one that comes from a pod and is not for a pod of its node, after a third ([`ANY_PORT`]). A bit may be set for nothing (two addresses that share it, or a backend that is gone): such a
//! packet is looked up, and passes then. It is set before anything that it stands for is visible.

use crate::{Address, Be16};

/// The port under which a cluster IP has a bit as such, whatever ports it has: packets from inside that are for none of them are
/// refused. No service has this port.
pub const ANY_PORT: Be16 = Be16::new(0);

/// Bits, a power of two. With 65,536 frontends and as many backends one packet in eight is looked up for nothing; with a
/// tenth of both, one in eighty.
pub const BITS: u32 = 1 << 20;
/// Elements of the `filter` map, which are 64 bits each.
pub const WORDS: u32 = BITS / 64;

/// An odd 64-bit constant without structure (from splitmix64).
const MULTIPLIER: u64 = 0x94d0_49bb_1331_11eb;

/// Where the bit of an address and port stands: the element of the map, and the bit in it.
#[inline(always)]
pub fn position<A: Address>(address: &A, port: Be16) -> (u32, u64) {
    let mut state = u64::from(port.get()) << 32;
    for word in address.words().as_ref() {
        // The best bits of a product are its high ones: they become the next round's low ones.
        state = (state ^ u64::from(word.get())).wrapping_mul(MULTIPLIER).rotate_left(32);
    }
    let bit = state as u32 >> (u32::BITS - BITS.trailing_zeros());
    (bit / 64, 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Ip4, Ip6};

    /// Addresses and ports of a real cluster lie side by side; each must get a bit of its own nonetheless.
    #[test]
    fn neighbours_have_bits_of_their_own() {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for n in 0..10_000_u32 {
            let address = Ip4::from(Ipv4Addr::from_bits(0x0a60_0000 + n));
            v4.insert(position(&address, Be16::new(443)));
            let address = Ip6::from(Ipv6Addr::from_bits(0xfd00_u128 << 112 | u128::from(n)));
            v6.insert(position(&address, Be16::new(443)));
        }
        // Random bits would collide about fifty times.
        assert!(v4.len() > 9_900, "{} of 10,000", v4.len());
        assert!(v6.len() > 9_900, "{} of 10,000", v6.len());
    }

    #[test]
    fn ports_of_an_address_have_bits_of_their_own() {
        let address = Ip4::from(Ipv4Addr::new(192, 0, 2, 1));
        let ports: BTreeSet<_> = (30_000..30_100).map(|port| position(&address, Be16::new(port))).collect();
        assert_eq!(ports.len(), 100);
    }

    #[test]
    fn positions_lie_in_the_map() {
        for n in 0..100_000_u32 {
            let address = Ip4::from(Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761)));
            assert!(position(&address, Be16::new(n as u16)).0 < WORDS);
        }
    }
}
