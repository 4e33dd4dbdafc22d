//! Which of a row of numbers are taken.

use ring::rand::{SecureRandom, SystemRandom};

/// A set of taken numbers out of `0..size`, that can pick a free one at random.
///
/// Random, so that an address that was just released is not at once somebody else's: connections and caches outlive it.
#[derive(Debug)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    size: usize,
    taken: usize,
}

impl Bitmap {
    pub(super) fn new(size: usize) -> Bitmap {
        Bitmap { words: vec![0; size.div_ceil(64)], size, taken: 0 }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    fn is_taken(&self, number: usize) -> bool {
        self.words[number / 64] & (1 << (number % 64)) != 0
    }

    /// Takes `number`; false if it was taken.
    pub(super) fn take(&mut self, number: usize) -> bool {
        let free = !self.is_taken(number);
        if free {
            self.words[number / 64] |= 1 << (number % 64);
            self.taken += 1;
        }
        free
    }

    pub(super) fn release(&mut self, number: usize) {
        if self.is_taken(number) {
            self.words[number / 64] &= !(1 << (number % 64));
            self.taken -= 1;
        }
    }

    /// Takes a free number, from `preferred..size` if there is one, else from below; `None` if all are taken.
    pub(super) fn take_any(&mut self, preferred: usize, random: &SystemRandom) -> Option<usize> {
        let number =
            self.free_in(preferred..self.size, random).or_else(|| self.free_in(0..preferred, random))?;
        self.take(number);
        Some(number)
    }

    /// The first free number at or after a random place of the range, going round.
    fn free_in(&self, range: std::ops::Range<usize>, random: &SystemRandom) -> Option<usize> {
        if range.is_empty() {
            return None;
        }
        let mut bytes = [0; 8];
        // Without randomness the search starts at the front, which is as correct.
        let start = random.fill(&mut bytes).map_or(0, |()| u64::from_le_bytes(bytes) as usize % range.len());
        (0..range.len())
            .map(|step| range.start + (start + step) % range.len())
            .find(|number| !self.is_taken(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_given_once_the_preferred_first() {
        let random = SystemRandom::new();
        let mut bitmap = Bitmap::new(100);
        assert!(bitmap.take(70));
        assert!(!bitmap.take(70));
        let given: Vec<_> = std::iter::from_fn(|| bitmap.take_any(64, &random)).collect();
        assert_eq!(given.len(), 99);
        assert!(given[..35].iter().all(|number| (64..100).contains(number)));
        let mut sorted = given.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((sorted.len(), bitmap.taken()), (99, 100));

        bitmap.release(3);
        bitmap.release(3);
        assert_eq!(bitmap.taken(), 99);
        assert_eq!(bitmap.take_any(64, &random), Some(3));
    }
}
