//! Fragments: whose they are, which only the first of a packet's says.

use crate::{Be16, Protocol, family_layout, layout};

/// Key of `fragments_v4` and `fragments_v6`: what the fragments of one packet have in common, as they arrive (RFC 791, 3.2;
/// RFC 8200, 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// The packet's identification, as it stands there.
    pub identification: u32,
    /// Its protocol. Zero for IPv6, where only the first fragment says it reliably.
    pub protocol: Protocol,
    /// Zero.
    pub padding: u8,
    /// Zero.
    pub padding_word: u16,
}

/// Value of both: what the first fragment said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Source port as it arrived.
    pub source_port: Be16,
    /// Destination port as it arrived.
    pub destination_port: Be16,
    /// When it came, in seconds since boot.
    pub seen_s: u32,
    /// The transport.
    pub protocol: Protocol,
    /// Zero.
    pub padding: u8,
    /// Zero.
    pub padding_word: u16,
}

impl Fragment {
    /// How long it holds: identifications come again, and after 30 seconds Linux has given up putting an IPv4 packet
    /// together (`net.ipv4.ipfrag_time`).
    pub const LIFE_S: u32 = 30;

    /// Whether a fragment that comes now can be of the same packet.
    #[inline(always)]
    pub const fn holds(&self, now_s: u32) -> bool {
        // Another CPU may have written the entry after `now_s` was read.
        now_s.saturating_sub(self.seen_s) <= Self::LIFE_S
    }
}

layout!(Fragment = 12);
family_layout!(FragmentKey = 16, 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_is_remembered_for_its_life() {
        let fragment = Fragment { seen_s: 100, ..Fragment::default() };
        assert!(fragment.holds(100) && fragment.holds(130));
        assert!(fragment.holds(99), "written by a CPU that is ahead");
        assert!(!fragment.holds(131));
    }
}
