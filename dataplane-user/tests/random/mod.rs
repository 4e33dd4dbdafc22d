//! Random frames for the programs, and a judge of what becomes of them that shares no code with them.

mod generate;
mod judge;
mod model;

pub(crate) use generate::Generator;
pub(crate) use judge::{Judge, Outcome, Run};
pub(crate) use model::Model;

/// xorshift64: the same numbers for the same seed.
pub(crate) struct Random(u64);

impl Random {
    /// From any seed; zero, of which nothing would come, counts as one.
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds shall not begin alike.
        Self((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
