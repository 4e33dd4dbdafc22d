//! Answers of authentication servers that are still good, by keyed digests of what they depend on.
//!
//! The keys hold credentials, so only digests are kept, whose key lives and dies with the process. Two generations bound the
//! memory: when the young one is full it becomes the old one, and what was not asked for since is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::time::Instant;

use crate::policy::AuthAnswer;

/// Answers of one generation, and bytes of them.
const GENERATION: usize = 4_096;
const GENERATION_BYTES: usize = 4 << 20;
/// The largest answer that is remembered.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

pub(super) type Digest = [u8; 32];

#[derive(Debug)]
pub(super) struct Cache {
    key: OnceLock<hmac::Key>,
    generations: Mutex<Generations>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Generations {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    answers: HashMap<Digest, Remembered>,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Remembered {
    until: Instant,
    answer: Arc<AuthAnswer>,
}

impl Cache {
    /// `gauge` shows how many there are.
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { key: OnceLock::new(), generations: Mutex::default(), gauge }
    }

    pub(super) fn digest(&self, text: &[u8]) -> Digest {
        let key = self.key.get_or_init(|| {
            let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
            key.expect("the system has randomness")
        });
        let mut digest = [0; 32];
        digest.copy_from_slice(hmac::sign(key, text).as_ref());
        digest
    }

    /// The answer, if it is still good.
    pub(super) fn get(&self, digest: &Digest, now: Instant) -> Option<Arc<AuthAnswer>> {
        let mut generations = self.lock();
        let found = if let Some(found) = generations.young.answers.get(digest) {
            found.clone()
        } else {
            let found = generations.old.remove(digest)?;
            generations.put(*digest, found.clone());
            found
        };
        if found.until > now {
            return Some(found.answer);
        }
        generations.young.remove(digest);
        self.gauge.set(generations.len());
        None
    }

    pub(super) fn put(&self, digest: Digest, until: Instant, answer: &Arc<AuthAnswer>) {
        if answer.size() > MAX_ANSWER_BYTES {
            return;
        }
        let mut generations = self.lock();
        generations.old.remove(&digest);
        generations.put(digest, Remembered { until, answer: Arc::clone(answer) });
        self.gauge.set(generations.len());
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn put(&mut self, digest: Digest, remembered: Remembered) {
        if self.young.answers.len() >= GENERATION || self.young.bytes >= GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.remove(&digest);
        self.young.bytes += remembered.answer.size();
        self.young.answers.insert(digest, remembered);
    }

    fn len(&self) -> i64 {
        (self.young.answers.len() + self.old.answers.len()) as i64
    }
}

impl Generation {
    fn remove(&mut self, digest: &Digest) -> Option<Remembered> {
        let removed = self.answers.remove(digest)?;
        self.bytes -= removed.answer.size();
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;

    use super::*;

    fn answer(bytes: usize) -> Arc<AuthAnswer> {
        let value = "x".repeat(bytes).parse().unwrap();
        let fields = HeaderMap::from_iter([(http::HeaderName::from_static("x-user"), value)]);
        Arc::new(AuthAnswer { status: 200, fields })
    }

    #[test]
    fn an_answer_is_good_for_its_time() {
        let (cache, now) = (Cache::new(Gauge::default()), Instant::now());
        let digest = cache.digest(b"ann");
        assert_ne!(digest, cache.digest(b"bob"));
        let later = |seconds| now + Duration::from_secs(seconds);
        cache.put(digest, later(10), &answer(3));
        assert_eq!(cache.get(&digest, later(9)), Some(answer(3)));
        assert_eq!((cache.get(&digest, later(10)), cache.gauge.get()), (None, 0));
        cache.put(digest, later(10), &answer(MAX_ANSWER_BYTES));
        assert_eq!(cache.get(&digest, now), None, "it is too large");
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_bounded() {
        for (size, most) in [(3, 2 * GENERATION), (16_000, 2 * GENERATION_BYTES / 16_000 + 2)] {
            let (cache, now) = (Cache::new(Gauge::default()), Instant::now());
            let until = now + Duration::from_secs(1);
            let digest = |n: usize| cache.digest(&n.to_be_bytes());
            cache.put(digest(0), until, &answer(size));
            for n in 1..3 * GENERATION {
                cache.put(digest(n), until, &answer(size));
                if n % 100 == 0 {
                    assert!(cache.get(&digest(0), now).is_some(), "{n}");
                }
            }
            assert!(cache.get(&digest(1), now).is_none());
            assert!(cache.gauge.get() <= most as i64, "{size}: {}", cache.gauge.get());
            let generations = cache.lock();
            let counted: usize = generations.young.answers.values().map(|found| found.answer.size()).sum();
            assert_eq!(generations.young.bytes, counted);
        }
    }
}
