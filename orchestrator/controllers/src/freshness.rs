//! Has the cache seen our own writes? Acting on a cache that has not creates twice and deletes twice.
//!
//! Each key remembers the marks of its writes and the objects it deleted. Unlike counted expectations this
//! cannot drift: a mark is compared with the cache itself, so nothing depends on every event being counted.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weir_client::{Mark, ObjectKey};

/// An event of the cache wakes the key when the write shows. This is the net below, for a write that is never shown
/// because its object was gone again before a new list.
pub(crate) const STALE_RECHECK: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Writes {
    marks: Vec<Mark>,
    deleted: BTreeSet<String>,
}

/// The writes of each key that the cache may not show yet. Bounded by the keys, and per key by one reconcile's
/// writes: the next does not begin before they show.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    // A blocking lock, never held across an await.
    writes: Mutex<HashMap<ObjectKey, Writes>>,
}

impl Freshness {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Writes>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an acknowledged write.
    pub(crate) fn wrote(&self, key: &ObjectKey, mark: Mark) {
        self.lock().entry(key.clone()).or_default().marks.push(mark);
    }

    /// Notes an acknowledged deletion of the object with this UID.
    pub(crate) fn deleted(&self, key: &ObjectKey, uid: &str) {
        self.lock().entry(key.clone()).or_default().deleted.insert(uid.to_owned());
    }

    /// Forgets a key whose object is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    /// Whether all writes of the key show: `seen` says so of a mark, `alive` whether the cache still has an
    /// object with this UID that is not being deleted.
    pub(crate) fn is_fresh(
        &self,
        key: &ObjectKey,
        seen: impl Fn(&Mark) -> bool,
        alive: impl Fn(&str) -> bool,
    ) -> bool {
        let mut all = self.lock();
        let Some(writes) = all.get_mut(key) else { return true };
        writes.marks.retain(|mark| !seen(mark));
        writes.deleted.retain(|uid| alive(uid));
        let fresh = writes.marks.is_empty() && writes.deleted.is_empty();
        if fresh {
            all.remove(key);
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use weir_client::Cache;

    use super::*;

    #[test]
    fn a_key_is_fresh_once_all_its_writes_show() {
        let (freshness, key) = (Freshness::default(), ObjectKey::new("ns", "a"));
        assert!(freshness.is_fresh(&key, |_| false, |_| true), "without writes there is nothing to wait for");
        freshness.wrote(&key, Cache::<()>::fixed([]).mark(Some("5")));
        freshness.deleted(&key, "uid");
        assert!(!freshness.is_fresh(&key, |_| true, |_| true));
        assert!(!freshness.is_fresh(&key, |_| false, |_| true));
        assert!(freshness.is_fresh(&key, |_| true, |_| false));
        assert!(freshness.lock().is_empty());
    }
}
