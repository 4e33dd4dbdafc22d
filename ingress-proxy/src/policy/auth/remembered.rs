//! Passwords that were right lately, as keyed digests.
//!
//! A digest is made of the hash and the password, so that a changed hash forgets the old password by itself, and the
//! key lives and dies with the process. Two generations bound the memory: when the young one is full it becomes the
//! old one, and what was not asked for since is gone.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use ring::hmac;
use ring::rand::SystemRandom;

use super::Hash;

/// Digests of one generation.
const GENERATION: usize = 2_048;

pub(super) type Digest = [u8; 32];

#[derive(Debug)]
pub(super) struct Remembered {
    key: hmac::Key,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Remembered {
    pub(super) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        Self { key: key.expect("the system has randomness"), generations: Mutex::default() }
    }

    pub(super) fn digest(&self, hash: &Hash, password: &[u8]) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(hash.text().as_bytes());
        context.update(&[0]); // no hash has one
        context.update(password);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    pub(super) fn knows(&self, digest: &Digest) -> bool {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.young.contains(digest) {
            return true;
        }
        let known = generations.old.remove(digest);
        if known {
            generations.insert(*digest);
        }
        known
    }

    pub(super) fn remember(&self, digest: Digest) {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }
}

impl Generations {
    fn insert(&mut self, digest: Digest) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_bounded() {
        let remembered = Remembered::new();
        let hash = Hash::parse("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=").unwrap();
        let digest = |n: usize| remembered.digest(&hash, n.to_string().as_bytes());
        remembered.remember(digest(0));
        for n in 1..=(GENERATION * 3) {
            remembered.remember(digest(n));
            if n % 100 == 0 {
                assert!(remembered.knows(&digest(0)), "{n}");
            }
        }
        assert!(!remembered.knows(&digest(1)));
        let generations = remembered.generations.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= GENERATION * 2);
    }
}
