//! Numbers that the maps use in place of names: backend ids and service ids.

use std::collections::BTreeSet;

/// Gives out the smallest free number from 1 on. Zero means "none" in every map.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    /// Free numbers below `next`.
    free: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl Ids {
    /// Numbers from 1 up to, and without, `end`.
    pub(super) fn new(end: u32) -> Self {
        Self { free: BTreeSet::new(), next: 1, end }
    }

    /// Takes a number, or nothing when all are taken.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        if self.next >= self.end {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Takes exactly this number; `false` when it is taken or out of range.
    pub(super) fn reserve(&mut self, id: u32) -> bool {
        if id == 0 || id >= self.end {
            return false;
        }
        if id >= self.next {
            self.free.extend(self.next..id);
            self.next = id + 1;
            return true;
        }
        self.free.remove(&id)
    }

    /// Gives a number back.
    pub(super) fn release(&mut self, id: u32) {
        let fresh = self.free.insert(id);
        debug_assert!(fresh && id < self.next, "id {id} was free already");
    }

    /// Numbers in use.
    pub(super) fn used(&self) -> u32 {
        self.next - 1 - self.free.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adopted_numbers_are_not_given_out() {
        let mut ids = Ids::new(5);
        assert!(ids.reserve(3) && !ids.reserve(3) && !ids.reserve(0) && !ids.reserve(5));
        assert_eq!(
            (ids.allocate(), ids.allocate(), ids.allocate(), ids.allocate()),
            (Some(1), Some(2), Some(4), None)
        );
        ids.release(2);
        assert_eq!((ids.used(), ids.allocate()), (3, Some(2)));
    }
}
