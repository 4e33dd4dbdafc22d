//! Source ranges: who may use a service's load balancer addresses (`loadBalancerSourceRanges`).

use crate::family_layout;

/// What the tries `source_ranges_v4` and `source_ranges_v6` compare, bit by bit from the front.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceRange<A> {
    /// [`crate::Frontend::service`].
    pub service: u32,
    /// A client, or the first address of a range.
    pub address: A,
}

/// Key of both tries (`struct bpf_lpm_trie_key`). The values mean nothing: an entry is there or not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceRangeKey<A> {
    /// How many bits of `range` count: those of the service, always all of them, and then the prefix of the address.
    pub prefix_len: u32,
    /// See there.
    pub range: SourceRange<A>,
}

impl<A> SourceRangeKey<A> {
    /// Bits of the service, which stands before the address.
    pub const SERVICE_BITS: u32 = u32::BITS;
    /// Bits of a question: the service and a whole address.
    pub const ALL_BITS: u32 = size_of::<SourceRange<A>>() as u32 * u8::BITS;

    /// The first `prefix` bits of `address`, for one service.
    pub const fn new(service: u32, address: A, prefix: u8) -> Self
    where
        A: Copy,
    {
        Self { prefix_len: Self::SERVICE_BITS + prefix as u32, range: SourceRange { service, address } }
    }

    /// Bits of the address's prefix.
    pub const fn prefix(&self) -> u8 {
        self.prefix_len.saturating_sub(Self::SERVICE_BITS) as u8
    }
}

family_layout!(SourceRange = 8, 20; SourceRangeKey = 12, 24);
