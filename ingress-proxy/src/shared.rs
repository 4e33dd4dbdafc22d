//! Things that are shared by those who use them, and go with the last of these.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By name, with how many use each.
#[derive(Debug)]
pub(crate) struct Shared<K, V>(pub(crate) BTreeMap<K, (V, usize)>);

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, V> Shared<K, V> {
    pub(crate) fn hold(&mut self, key: &K) {
        if let Some((_, uses)) = self.0.get_mut(key) {
            *uses += 1;
        }
    }

    /// The thing, if it went.
    pub(crate) fn release(&mut self, key: &K) -> Option<V> {
        let (_, uses) = self.0.get_mut(key)?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        self.0.remove(key).map(|(thing, _)| thing)
    }
}

/// What is behind a lock is whole whenever it is free, also after a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
