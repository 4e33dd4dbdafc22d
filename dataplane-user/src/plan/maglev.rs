//! Lookup tables (Maglev, NSDI 2016, section 3.4), with sizes that are powers of two.
//!
//! A slot is then `hash & mask` instead of a division. The paper wants a prime size so that every step width visits
//! every slot; with a power of two every *odd* step width does. The order in which a backend asks for slots is the ABI's
//! ([`weir_dataplane_ebpf::maglev`]): programs find out by it whether a backend is in a table.

use std::net::{IpAddr, SocketAddr};

use weir_dataplane_ebpf::{Be16, Ip4, Ip6, maglev::Order};

/// Slots for each backend: no two backends' shares differ by more than one slot, so by 1 in 16 at the most. Session
/// affinity counts on it as well, see [`weir_dataplane_ebpf::maglev::MEMBER_STEPS`].
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
    let mut next: Vec<Order> = backends.iter().map(|backend| order(*backend, size as u32 - 1)).collect();
    let mut slots = vec![FREE; size];
    let mut filled = 0;
    loop {
        for (index, order) in next.iter_mut().enumerate() {
            while slots[order.slot() as usize] != FREE {
                order.advance();
            }
            slots[order.slot() as usize] = index as u32;
            filled += 1;
            if filled == size {
                return slots;
            }
        }
    }
}

/// In which order a backend asks for the slots of a table.
fn order(backend: SocketAddr, mask: u32) -> Order {
    let port = Be16::new(backend.port());
    match backend.ip() {
        IpAddr::V4(address) => Order::of(&Ip4::from(address), port, mask),
        IpAddr::V6(address) => Order::of(&Ip6::from(address), port, mask),
    }
}

#[cfg(test)]
mod tests {
    use weir_dataplane_ebpf::{Backend, Frontend, maglev};

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

    /// A backend's id is its index and one more.
    fn is_member(backend: SocketAddr, id: u32, slots: &[u32]) -> bool {
        let frontend = Frontend { maglev_mask: slots.len() as u32 - 1, ..Frontend::default() };
        let IpAddr::V4(address) = backend.ip() else { panic!("{backend} is of the other family") };
        let backend =
            Backend { address: Ip4::from(address), port: Be16::new(backend.port()), ..Backend::default() };
        maglev::is_member(&frontend, id, &backend, |slot| slots.get(slot as usize).map(|index| index + 1))
    }

    #[test]
    fn programs_find_every_backend_of_a_table_and_no_other() {
        for n in [1, 2, 3, 17, 250, 4096] {
            let all = backends(n);
            let slots = table(&all, preferred_size(all.len()));
            for (backend, id) in all.iter().zip(1..) {
                assert!(is_member(*backend, id, &slots), "{backend} of {n}");
            }
            let other = SocketAddr::from(([10, 245, 0, 1], 8080));
            assert!(!is_member(other, u32::from(n) + 1, &slots), "{n} backends");
        }
    }

    #[test]
    fn a_dense_table_hides_few_of_its_backends() {
        let all = backends(1000);
        let hidden = |size: usize| {
            let slots = table(&all, size);
            all.iter().zip(1..).filter(|(backend, id)| !is_member(**backend, *id, &slots)).count()
        };
        assert_eq!(hidden(2048), 0, "half full after the first round");
        assert!(hidden(smallest_size(all.len())) < all.len() / 4, "{}", hidden(smallest_size(all.len())));
    }

    #[test]
    fn a_table_depends_on_addresses_only() {
        // Pinned: another table on a newer node would break flows that moved between nodes.
        let all = backends(3);
        assert_eq!(table(&all, 16), [2, 2, 0, 2, 2, 0, 0, 1, 1, 0, 0, 0, 1, 2, 1, 1]);
        let v6 = [1, 2, 3].map(|n| format!("[fd00:244:0:1::{n}]:8080").parse().unwrap());
        assert_eq!(table(&v6, 16), [2, 1, 2, 2, 2, 0, 1, 0, 1, 0, 0, 0, 1, 0, 2, 1]);
        assert_eq!(table(&all[..1], 1), [0]);
        assert!(table(&[], 1).is_empty());
        assert_eq!(
            (preferred_size(0), preferred_size(1), preferred_size(3), preferred_size(5000)),
            (0, 1, 64, 65_536)
        );
    }
}
