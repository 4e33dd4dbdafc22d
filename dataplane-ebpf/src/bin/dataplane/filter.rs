//! The first question about a packet: can it have to do with a service at all?

use weir_dataplane_ebpf::{Be16, FlowKey, filter};

use crate::maps::{FILTER, Family};

/// Whether the packet goes to what may be a frontend, or comes from what may be a backend. Two reads of an array at the
/// most.
#[inline(always)]
pub fn concerns<A: Family>(key: &FlowKey<A>) -> bool {
    is_set(&key.destination, key.destination_port) || answers(key)
}

/// Whether the packet comes from what may be a backend.
#[inline(always)]
pub fn answers<A: Family>(key: &FlowKey<A>) -> bool {
    is_set(&key.source, key.source_port)
}

/// Whether the address may be a cluster IP. One read.
#[inline(always)]
pub fn names_cluster_ip<A: Family>(address: &A) -> bool {
    is_set(address, filter::ANY_PORT)
}

#[inline(always)]
fn is_set<A: Family>(address: &A, port: Be16) -> bool {
    let (word, bit) = filter::position(address, port);
    FILTER.get(word).is_some_and(|word| word & bit != 0)
}
