//! The objects of one resource and its recent events.
//!
//! Lists read the objects, watches read the events, and an exact list of the past reads both: it takes the present and
//! undoes the events that came later. Nothing here waits, and nothing touches the disk.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch as signal;
use weir_api::Resource;

use super::object::Object;

/// Events that are kept however old they are; upstream's lower bound.
const EVENTS_MIN: usize = 100;
/// Events that are kept at most; upstream's upper bound. The oldest go, and watches that still need them end.
const EVENTS_MAX: usize = 102_400;
/// Bytes of superseded objects that the events may hold on to, whatever their number.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// How long events are kept beyond the lower bound: what a client that lost its connection needs to come back.
const FRESH: Duration = Duration::from_secs(75);
/// Events that a watch takes in one go.
const READ_MAX: usize = 256;

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    /// The object as it is now, or as it last was if it is gone.
    pub(crate) object: Arc<Object>,
    /// What it was before; `None` if it is new.
    pub(crate) previous: Option<Arc<Object>>,
    pub(crate) deleted: bool,
    at: Instant,
}

/// The revision that was asked for is no longer kept.
#[derive(Debug)]
pub(crate) struct Expired {
    /// The oldest that is.
    pub(crate) oldest: u64,
}

/// Which part of a resource a list wants.
#[derive(Debug, Default)]
pub(crate) struct Selection<'a> {
    /// Only objects of this namespace.
    pub(crate) namespace: Option<&'a str>,
    /// Only objects after this key: where the page before ended.
    pub(crate) after: Option<&'a str>,
    /// The state at exactly this revision, instead of now.
    pub(crate) at: Option<u64>,
    /// At most so many; 0 means all.
    pub(crate) limit: usize,
}

/// A list, or a page of one.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) objects: Vec<Arc<Object>>,
    /// How many are left after this page.
    pub(crate) remaining: usize,
}

/// The cache of one stored resource.
pub(crate) struct ResourceCache {
    pub(crate) row: &'static Resource,
    state: RwLock<State>,
    /// Wakes the watches of this resource; carries the revision of the newest event.
    newest: signal::Sender<u64>,
}

struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    events: VecDeque<Arc<Event>>,
    /// Bytes of the previous objects of `events`.
    bytes: usize,
    /// Every event after this revision is in `events`.
    floor: u64,
}

impl ResourceCache {
    pub(super) fn new(row: &'static Resource) -> ResourceCache {
        let state = State { objects: BTreeMap::new(), events: VecDeque::new(), bytes: 0, floor: 0 };
        ResourceCache { row, state: RwLock::new(state), newest: signal::Sender::new(0) }
    }

    /// Sets the state as of `revision`, without events: the start.
    pub(super) fn reset(&self, objects: BTreeMap<Arc<str>, Arc<Object>>, revision: u64) {
        let mut state = self.write();
        *state = State { objects, events: VecDeque::new(), bytes: 0, floor: revision };
    }

    /// Takes in a write.
    pub(super) fn put(&self, object: Arc<Object>) {
        let mut state = self.write();
        let previous = state.objects.insert(Arc::clone(&object.key), Arc::clone(&object));
        state.push(Event { revision: object.revision, object, previous, deleted: false, at: Instant::now() });
    }

    /// Takes in a deletion.
    pub(super) fn delete(&self, key: &str, revision: u64) {
        let mut state = self.write();
        let Some(previous) = state.objects.remove(key) else { return };
        let object = Arc::new(previous.at(revision));
        let previous = Some(previous);
        state.push(Event { revision, object, previous, deleted: true, at: Instant::now() });
    }

    /// Wakes the watches, after a whole transaction has been taken in.
    pub(super) fn wake(&self, revision: u64) {
        self.newest.send_replace(revision);
    }

    pub(crate) fn subscribe(&self) -> signal::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// How many objects there are, and how many events are kept.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.read();
        (state.objects.len(), state.events.len())
    }

    /// The objects of `selection` that `wanted` accepts.
    pub(crate) fn list(
        &self,
        selection: &Selection<'_>,
        wanted: impl Fn(&Object) -> bool,
    ) -> Result<Listing, Expired> {
        let state = self.read();
        let past = selection.at.map(|revision| state.undo(revision)).transpose()?.unwrap_or_default();
        let prefix = selection.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let start = match selection.after {
            Some(key) => Bound::Excluded(key),
            None => Bound::Included(prefix.as_str()),
        };
        let mut listing = Listing { objects: Vec::new(), remaining: 0 };
        let mut take = |object: &Arc<Object>| {
            if !wanted(object) {
                return;
            }
            if selection.limit > 0 && listing.objects.len() == selection.limit {
                listing.remaining += 1;
            } else {
                listing.objects.push(Arc::clone(object));
            }
        };
        let range = (start, Bound::Unbounded);
        let mut past = past.range::<str, _>(range).take_while(|(key, _)| key.starts_with(&prefix)).peekable();
        for (key, object) in state.objects.range::<str, _>(range) {
            if !key.starts_with(&prefix) {
                break;
            }
            while let Some((_, was)) = past.next_if(|(other, _)| *other < key) {
                was.iter().for_each(&mut take);
            }
            match past.next_if(|(other, _)| *other == key) {
                Some((_, was)) => was.iter().for_each(&mut take),
                None => take(object),
            }
        }
        past.for_each(|(_, was)| was.iter().for_each(&mut take));
        Ok(listing)
    }

    /// The next events after `revision`, in order; whole transactions, because only those that were announced count.
    pub(crate) fn events_after(&self, revision: u64) -> Result<Vec<Arc<Event>>, Expired> {
        let newest = *self.newest.borrow();
        let state = self.read();
        if revision < state.floor {
            return Err(Expired { oldest: state.floor });
        }
        let start = state.events.partition_point(|event| event.revision <= revision);
        let announced = state.events.range(start..).take_while(|event| event.revision <= newest);
        let mut events: Vec<_> = announced.take(READ_MAX).cloned().collect();
        if let Some(last) = events.last().map(|event| event.revision) {
            let rest = state.events.range(start + events.len()..);
            events.extend(rest.take_while(|event| event.revision == last).cloned());
        }
        Ok(events)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Nothing in the critical sections can panic half-way through a change.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keys held at an earlier time; `None` for what was not there.
type Past = BTreeMap<Arc<str>, Option<Arc<Object>>>;

impl State {
    fn push(&mut self, event: Event) {
        let now = event.at;
        self.bytes += size(&event);
        self.events.push_back(Arc::new(event));
        while let Some(oldest) = self.events.front() {
            let over = self.events.len() > EVENTS_MAX || self.bytes > EVENT_BYTES_MAX;
            let stale = self.events.len() > EVENTS_MIN && now.duration_since(oldest.at) > FRESH;
            // The newest event stays: it may belong to a transaction whose other half is still to come.
            if self.events.len() == 1 || !(over || stale) {
                break;
            }
            self.floor = oldest.revision;
            while let Some(event) = self.events.pop_front_if(|event| event.revision <= self.floor) {
                self.bytes -= size(&event);
            }
        }
    }

    /// What must be different to see the state of `revision`.
    fn undo(&self, revision: u64) -> Result<Past, Expired> {
        if revision < self.floor {
            return Err(Expired { oldest: self.floor });
        }
        let mut past = Past::new();
        for event in self.events.iter().rev().take_while(|event| event.revision > revision) {
            past.insert(Arc::clone(&event.object.key), event.previous.clone());
        }
        Ok(past)
    }
}

fn size(event: &Event) -> usize {
    event.previous.as_ref().map_or(0, |object| object.json.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_api::resource;

    use super::*;

    fn cache() -> ResourceCache {
        ResourceCache::new(resource::find("", "v1", "configmaps").expect("served"))
    }

    fn put(cache: &ResourceCache, key: &str, revision: u64) {
        let (namespace, name) = key.split_once('/').expect("namespace/name");
        let value = json!({"metadata": {"namespace": namespace, "name": name}});
        cache.put(Arc::new(Object::new(cache.row, key.into(), revision, value)));
        cache.wake(revision);
    }

    fn keys(cache: &ResourceCache, selection: &Selection<'_>) -> Vec<(String, u64)> {
        let listing = cache.list(selection, |_| true).expect("kept");
        listing.objects.iter().map(|object| (object.key.to_string(), object.revision)).collect()
    }

    #[test]
    fn a_list_of_the_past_undoes_what_came_later() {
        let cache = cache();
        put(&cache, "a/one", 1);
        put(&cache, "b/two", 2);
        put(&cache, "a/one", 3);
        cache.delete("b/two", 4);
        put(&cache, "a/zero", 5);
        let at = |revision| keys(&cache, &Selection { at: Some(revision), ..Selection::default() });
        let own = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
            list.iter().map(|(key, revision)| ((*key).to_owned(), *revision)).collect()
        };
        assert_eq!(at(0), own(&[]));
        assert_eq!(at(1), own(&[("a/one", 1)]));
        assert_eq!(at(2), own(&[("a/one", 1), ("b/two", 2)]));
        assert_eq!(at(3), own(&[("a/one", 3), ("b/two", 2)]));
        assert_eq!(at(4), own(&[("a/one", 3)]));
        assert_eq!(at(9), own(&[("a/one", 3), ("a/zero", 5)]));
        assert_eq!(keys(&cache, &Selection::default()), at(5));
    }

    #[test]
    fn namespaces_do_not_bleed_and_pages_continue() {
        let cache = cache();
        for (revision, key) in ["a/x", "a-b/x", "a/y", "ab/x", "a/z"].iter().enumerate() {
            put(&cache, key, revision as u64 + 1);
        }
        let all = keys(&cache, &Selection { namespace: Some("a"), ..Selection::default() });
        assert_eq!(all.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a/x", "a/y", "a/z"]);

        let page = Selection { namespace: Some("a"), limit: 2, ..Selection::default() };
        let listing = cache.list(&page, |_| true).expect("kept");
        assert_eq!((listing.objects.len(), listing.remaining), (2, 1));
        let rest = Selection { namespace: Some("a"), after: Some("a/y"), limit: 2, ..Selection::default() };
        assert_eq!(keys(&cache, &rest), [("a/z".to_owned(), 5)]);
    }

    #[test]
    fn events_follow_a_revision_until_it_is_forgotten() {
        let cache = cache();
        for revision in 1..=5 {
            put(&cache, "a/x", revision);
        }
        let after: Vec<_> = cache.events_after(3).expect("kept").iter().map(|event| event.revision).collect();
        assert_eq!(after, [4, 5]);
        assert!(cache.events_after(5).expect("kept").is_empty());

        cache.reset(BTreeMap::new(), 7);
        assert_eq!(cache.events_after(6).expect_err("forgotten").oldest, 7);
        assert!(cache.list(&Selection { at: Some(6), ..Selection::default() }, |_| true).is_err());
    }

    #[test]
    fn a_gone_object_is_reported_at_the_revision_of_its_end() {
        let cache = cache();
        put(&cache, "a/x", 1);
        cache.delete("a/x", 2);
        assert!(
            cache.events_after(1).expect("kept").is_empty(),
            "a transaction that is still being taken in is not shown"
        );
        cache.wake(2);
        let events = cache.events_after(1).expect("kept");
        assert!(events[0].deleted);
        assert_eq!(events[0].object.value()["metadata"]["resourceVersion"], "2");
        assert_eq!(events[0].previous.as_ref().expect("was there").revision, 1);
    }
}
