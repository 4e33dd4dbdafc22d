//! Lookup tables (Maglev, NSDI 2016, section 3.4), with sizes that are powers of two.
//!
//! A slot is then `hash & mask` instead of a division. The paper wants a prime size so that every step width visits
//! every slot; with a power of two every *odd* step width does.
//!
//! Positions follow from a backend's address and port alone, never from an id that one agent gave out: every node, and
//! the same node after a restart, makes the same table from the same endpoints.

use std::net::{IpAddr, SocketAddr};

/// Slots for each backend: no two backends' shares differ by more than one slot, so by 1 in 16 at the most.
const SLOTS_PER_BACKEND: usize = 16;
/// No table is larger; beyond this, backends of one service get fewer slots each.
const MAX_TABLE: usize = 1 << 16;

/// How many slots `backends` backends should have. One backend needs no choice.
pub fn preferred_size(backends: usize) -> usize {
    if backends <= 1 { backends } else { (backends * SLOTS_PER_BACKEND).next_power_of_two().min(MAX_TABLE) }
}

/// The smallest table in which every backend has a slot.
pub fn smallest_size(backends: usize) -> usize {
    if backends == 0 { 0 } else { backends.next_power_of_two().min(MAX_TABLE) }
}

/// A slot that no backend has taken yet.
const FREE: u32 = u32::MAX;

/// Fills a table of `size` slots (a power of two) with indexes into `backends`, which must be sorted and without
/// duplicates. Backends beyond `size` get no slot.
pub fn table(backends: &[SocketAddr], size: usize) -> Vec<u32> {
    debug_assert!(backends.is_sorted() && size.is_power_of_two());
    if backends.len() <= 1 {
        return vec![0; if backends.is_empty() { 0 } else { size }];
    }
    let mask = size - 1;
    let mut next: Vec<(usize, usize)> = backends
        .iter()
        .map(|backend| {
            let hash = seed(*backend);
            (hash as usize & mask, (hash >> 32) as usize & mask | 1)
        })
        .collect();
    let mut slots = vec![FREE; size];
    let mut filled = 0;
    loop {
        for (index, (position, skip)) in next.iter_mut().enumerate() {
            while slots[*position] != FREE {
                *position = (*position + *skip) & mask;
            }
            slots[*position] = index as u32;
            filled += 1;
            if filled == size {
                return slots;
            }
        }
    }
}

/// 64 well-mixed bits of an address and port: splitmix64's finalizer over its words.
fn seed(backend: SocketAddr) -> u64 {
    let address = match backend.ip() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let words = [address as u64, (address >> 64) as u64, u64::from(backend.port())];
    words.into_iter().fold(0x9e37_79b9_7f4a_7c15, |state: u64, word| {
        let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(n: u16) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> =
            (0..n).map(|i| ([10, 244, (i >> 8) as u8, i as u8], 8080).into()).collect();
        all.sort();
        all
    }

    #[test]
    fn shares_differ_by_one_slot_at_most() {
        for n in [2, 3, 5, 17, 100, 250, 1000] {
            let all = backends(n);
            let mut shares = vec![0_usize; all.len()];
            for slot in table(&all, preferred_size(all.len())) {
                shares[slot as usize] += 1;
            }
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1 && *least >= SLOTS_PER_BACKEND / 2, "{n}: {least}..{most}");
        }
    }

    #[test]
    fn a_lost_backend_moves_few_slots_of_the_others() {
        for n in [10, 50, 250] {
            let all = backends(n);
            let size = preferred_size(all.len());
            let before = table(&all, size);
            let mut worst = 0.0_f64;
            for gone in [0, all.len() / 2, all.len() - 1] {
                let rest: Vec<_> = all.iter().copied().filter(|b| *b != all[gone]).collect();
                let after = table(&rest, size);
                let kept: Vec<_> = (0..size).filter(|s| before[*s] as usize != gone).collect();
                let moved =
                    kept.iter().filter(|s| all[before[**s] as usize] != rest[after[**s] as usize]).count();
                worst = worst.max(moved as f64 / kept.len() as f64);
            }
            assert!(worst < 0.15, "{n} backends: {:.1} % of what could stay moved", worst * 100.0);
        }
    }

    #[test]
    fn a_table_depends_on_addresses_only() {
        // Pinned: another table on a newer node would break flows that moved between nodes.
        let all = backends(3);
        assert_eq!(table(&all, 16), table(&all, 16));
        assert_eq!(table(&all[..1], 1), [0]);
        assert!(table(&[], 1).is_empty());
        assert_eq!(
            (preferred_size(0), preferred_size(1), preferred_size(3), preferred_size(5000)),
            (0, 1, 64, 65_536)
        );
    }
}
