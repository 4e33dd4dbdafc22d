//! Ranges of addresses.

use crate::family_layout;

/// Key of the tries `non_masquerade_v4` and `non_masquerade_v6` (`struct bpf_lpm_trie_key`). The values mean nothing: an
/// entry is there or not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RangeKey<A> {
    /// How many bits of the address count.
    pub prefix_len: u32,
    /// The range's first address, or the one that is asked for.
    pub address: A,
}

impl<A> RangeKey<A> {
    /// Bits of a whole address.
    pub const ALL_BITS: u32 = size_of::<A>() as u32 * u8::BITS;
}

family_layout!(RangeKey = 8, 20);
