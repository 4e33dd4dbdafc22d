//! Where a backend may stand in a lookup table: its own order of the slots (Maglev, NSDI 2016, section 3.4).
//!
//! User space fills tables by these orders and the programs ask by them whether a backend is in one, so that the order
//! stands here, once. It follows from the backend's address and port alone, never from an id that one agent gave out:
//! every node, and the same node after a restart, makes the same table from the same endpoints.

use crate::{Address, Backend, Be16, Frontend};

/// Slots that [`is_member`] looks at.
///
/// While a table is filled every backend takes the first free slot of its order before any takes a second one, and no
/// slot is taken away again. In that first round the table is at most a sixteenth full (user space makes 16 slots for each
/// backend), so that a backend's first slot lies this deep in its order with a probability of 2^-64. A table that is
/// denser, because the service has more than 4,096 backends or the map is almost full, hides more of them: half full,
/// one in 65,536.
pub const MEMBER_STEPS: u32 = 16;

/// One backend's walk over the slots of a table, each visited once: sizes are powers of two, and the steps odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    position: u32,
    skip: u32,
    mask: u32,
}

impl Order {
    /// Of this backend, in tables of `mask + 1` slots.
    #[inline(always)]
    pub fn of<A: Address>(address: &A, port: Be16, mask: u32) -> Self {
        let seed = seed(address, port);
        Self { position: seed as u32 & mask, skip: (seed >> 32) as u32 & mask | 1, mask }
    }

    /// The slot to look at, counted from the table's first.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        self.position
    }

    /// Goes on to the next slot.
    #[inline(always)]
    pub const fn advance(&mut self) {
        self.position = self.position.wrapping_add(self.skip) & self.mask;
    }
}

/// Whether new connections of this frontend may choose the backend. `slot` reads the `maglev` map.
///
/// A backend whose first slot lies deeper than [`MEMBER_STEPS`] is taken for one that is not there.
#[inline(always)]
pub fn is_member<A: Address>(
    frontend: &Frontend,
    id: u32,
    backend: &Backend<A>,
    slot: impl Fn(u32) -> Option<u32>,
) -> bool {
    let mut order = Order::of(&backend.address, backend.port, frontend.maglev_mask);
    let mut step = 0;
    while step < MEMBER_STEPS {
        if slot(frontend.maglev_offset.wrapping_add(order.slot())) == Some(id) {
            return true;
        }
        order.advance();
        step += 1;
    }
    false
}

/// The id of the backend with this address and port, if new connections of this frontend may choose it. `slot` reads the
/// `maglev` map, `holds` says whether an id is this backend's. It finds what [`is_member`] finds.
#[inline(always)]
pub fn find<A: Address>(
    frontend: &Frontend,
    (address, port): (&A, Be16),
    slot: impl Fn(u32) -> Option<u32>,
    holds: impl Fn(u32) -> bool,
) -> Option<u32> {
    let mut order = Order::of(address, port, frontend.maglev_mask);
    let mut step = 0;
    while step < MEMBER_STEPS {
        let id = slot(frontend.maglev_offset.wrapping_add(order.slot()))?;
        if holds(id) {
            return Some(id);
        }
        order.advance();
        step += 1;
    }
    None
}

/// 64 well-mixed bits of an address and port: splitmix64's finalizer over its words.
#[inline(always)]
fn seed<A: Address>(address: &A, port: Be16) -> u64 {
    let (mut high, mut low) = (0_u64, 0_u64);
    for word in address.words().as_ref() {
        high = high << 32 | low >> 32;
        low = low << 32 | u64::from(word.get());
    }
    let state = mix(mix(0x9e37_79b9_7f4a_7c15, low), high);
    mix(state, u64::from(port.get()))
}

#[inline(always)]
const fn mix(state: u64, word: u64) -> u64 {
    let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::Ip4;
    use core::net::Ipv4Addr;

    #[test]
    fn an_order_visits_every_slot_once() {
        let mut order = Order::of(&Ip4::from(Ipv4Addr::new(10, 244, 0, 7)), Be16::new(8080), 63);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..64 {
            assert!(order.slot() < 64 && seen.insert(order.slot()));
            order.advance();
        }
    }

    #[test]
    fn a_table_of_one_slot_has_one_order() {
        let mut order = Order::of(&Ip4::from(Ipv4Addr::new(10, 244, 0, 7)), Be16::new(8080), 0);
        order.advance();
        assert_eq!(order.slot(), 0);
    }
}
