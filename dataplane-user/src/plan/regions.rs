//! Which part of the `maglev` map belongs to which table: a buddy allocator over its slots.
//!
//! Sizes are powers of two and so are alignments, which keeps freed neighbours mergeable and the free space of a long
//! life usable. It holds no memory of its own between agents: what the adopted frontends name is what is taken.

use std::collections::BTreeSet;

/// The allocator. Offsets and sizes are in slots.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    /// Free blocks by order, the block's size being `1 << order`.
    free: Vec<BTreeSet<u32>>,
    slots: u32,
    used: u32,
}

impl Regions {
    /// All of `slots` (a power of two) free.
    pub(super) fn new(slots: u32) -> Self {
        debug_assert!(slots.is_power_of_two());
        let top = slots.trailing_zeros() as usize;
        let mut free = vec![BTreeSet::new(); top + 1];
        free[top].insert(0);
        Self { free, slots, used: 0 }
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Takes a region of `size` slots (a power of two); `None` when no block is large enough.
    pub(super) fn allocate(&mut self, size: u32) -> Option<u32> {
        debug_assert!(size.is_power_of_two());
        let order = size.trailing_zeros() as usize;
        let from = (order..self.free.len()).find(|order| !self.free[*order].is_empty())?;
        let offset = self.free[from].pop_first()?;
        for split in (order..from).rev() {
            self.free[split].insert(offset + (1 << split));
        }
        self.used += size;
        Some(offset)
    }

    /// Takes exactly this region; `false` when part of it is taken, or it is no region at all.
    pub(super) fn reserve(&mut self, offset: u32, size: u32) -> bool {
        if !size.is_power_of_two()
            || !offset.is_multiple_of(size)
            || size > self.slots
            || offset > self.slots - size
        {
            return false;
        }
        let order = size.trailing_zeros() as usize;
        let block = |order: usize| offset >> order << order;
        let Some(from) = (order..self.free.len()).find(|order| self.free[*order].contains(&block(*order)))
        else {
            return false;
        };
        self.free[from].remove(&block(from));
        for split in (order..from).rev() {
            // The half that does not hold the region stays free.
            let buddy = block(split) ^ (1 << split);
            self.free[split].insert(buddy);
        }
        self.used += size;
        true
    }

    /// Gives a region back.
    pub(super) fn release(&mut self, offset: u32, size: u32) {
        let (mut offset, mut order) = (offset, size.trailing_zeros() as usize);
        self.used -= size;
        while order + 1 < self.free.len() && self.free[order].remove(&(offset ^ (1 << order))) {
            offset &= !(1 << order);
            order += 1;
        }
        let fresh = self.free[order].insert(offset);
        debug_assert!(fresh, "region {offset} was free already");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn full_is_full_and_freed_blocks_merge() {
        let mut regions = Regions::new(8);
        let all: Vec<u32> = (0..4).map(|_| regions.allocate(2).unwrap()).collect();
        assert_eq!((all.as_slice(), regions.allocate(1)), ([0, 2, 4, 6].as_slice(), None));
        for offset in all {
            regions.release(offset, 2);
        }
        assert_eq!((regions.allocate(8), regions.used()), (Some(0), 8));
    }

    #[test]
    fn adopted_regions_are_taken_once() {
        let mut regions = Regions::new(16);
        assert!(regions.reserve(4, 4));
        assert!(!regions.reserve(4, 4) && !regions.reserve(6, 2) && !regions.reserve(0, 8));
        assert!(
            !regions.reserve(3, 2)
                && !regions.reserve(16, 1)
                && !regions.reserve(0, 32)
                && !regions.reserve(0, 3)
        );
        assert_eq!((regions.allocate(4), regions.allocate(8), regions.allocate(1)), (Some(0), Some(8), None));
    }

    proptest! {
        /// Whatever is taken and given back, no two regions overlap, and at the end everything is one block again.
        #[test]
        fn never_overlaps(steps in prop::collection::vec((0_u32..7, any::<prop::sample::Index>(), any::<bool>()), 0..200)) {
            let mut regions = Regions::new(256);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (order, index, take) in steps {
                if take || held.is_empty() {
                    let size = 1 << order;
                    if let Some(offset) = regions.allocate(size) {
                        prop_assert!(held.iter().all(|(o, s)| offset + size <= *o || o + s <= offset));
                        held.push((offset, size));
                    }
                } else {
                    let (offset, size) = held.swap_remove(index.index(held.len()));
                    regions.release(offset, size);
                }
                let mut rebuilt = Regions::new(256);
                for (offset, size) in &held {
                    prop_assert!(rebuilt.reserve(*offset, *size));
                }
                prop_assert_eq!(&rebuilt.free, &regions.free);
            }
        }
    }
}
