//! Who may open a connection to a load balancer's address.
//!
//! As kube-proxy does (nftables mode, chain `firewall-check`): asked before a backend is chosen and for new connections
//! only, on the way from outside and from pods alike, by the source address that the packet has. A refused packet is
//! dropped in silence.

use aya_ebpf::maps::{LpmTrie, lpm_trie::Key};
use weir_dataplane_ebpf::{Frontend, SourceRange, SourceRangeKey};

use crate::maps::Family;

/// Ranges of all services of one family.
pub type Ranges<A> = LpmTrie<SourceRange<A>, u32>;

/// Whether this client may use the frontend.
#[inline(always)]
pub fn admits<A: Family>(frontend: &Frontend, client: A) -> bool {
    if frontend.flags & Frontend::FLAG_SOURCE_RANGES == 0 {
        return true;
    }
    let range = SourceRange { service: frontend.service, address: client };
    A::source_ranges().get(Key::new(SourceRangeKey::<A>::ALL_BITS, range)).is_some()
}
