//! One watch of one kind, and the cache that it fills.
//!
//! kube's reflector keeps whole objects and tells subscribers only names. A control loop wants less and
//! more: less memory, so objects are *projected* to what the role needs before they are kept; and more to
//! go by, so handlers see the old and the new value. A list that restarts the watch is compared with the
//! cache, so that objects which vanished meanwhile are reported as deleted.
//!
//! [`Mark`] answers the question that "expectations" answer elsewhere: has this cache seen my own write?
//! Resource versions of one kind rise along a watch, so a write is visible once the cache has passed its
//! version, or once a list that began after the write has been taken in whole.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as flag;
use tokio_util::sync::CancellationToken;

use crate::ObjectKey;
use crate::observe::{Observed, observe};

/// What happened to one object, as the cache saw it.
#[derive(Debug)]
pub struct Change<'a, V> {
    /// Which object.
    pub key: &'a ObjectKey,
    /// The value before; `None` when it is new.
    pub old: Option<&'a Arc<V>>,
    /// The value now; `None` when it is gone.
    pub new: Option<&'a Arc<V>>,
}

type Handler<V> = Box<dyn Fn(Change<'_, V>) + Send + Sync>;
type MetaHandler = Box<dyn Fn(&ObjectKey, Option<&ObjectMeta>) + Send + Sync>;

/// Proof of a write, to be shown to [`Cache::has_seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    revision: u64,
    lists_started: u64,
}

#[derive(Debug)]
struct Inner<V> {
    // A blocking lock, held only for map operations and never across an await.
    objects: RwLock<BTreeMap<ObjectKey, Arc<V>>>,
    revision: AtomicU64,
    lists_started: AtomicU64,
    list_finished: AtomicU64,
}

/// The objects of one kind, as last seen. Cheap to clone; all clones are one cache.
#[derive(Debug)]
pub struct Cache<V> {
    inner: Arc<Inner<V>>,
    synced: flag::Receiver<bool>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), synced: self.synced.clone() }
    }
}

impl<V> Cache<V> {
    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<V>> {
        self.inner.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// All objects of a namespace, by name. Costs O(log n + result).
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<V>> {
        let first = ObjectKey::new(namespace, "");
        let objects = self.inner.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// All objects, by namespace and name.
    pub fn all(&self) -> Vec<Arc<V>> {
        self.inner.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.inner.objects.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Waits until the first list is complete. `false` when the informer ended before that.
    pub async fn synced(&self) -> bool {
        self.synced.clone().wait_for(|synced| *synced).await.is_ok()
    }

    /// A mark for a write that the API server has just acknowledged with this resource version.
    pub fn mark(&self, resource_version: Option<&str>) -> Mark {
        Mark {
            revision: resource_version.and_then(|version| version.parse().ok()).unwrap_or_default(),
            lists_started: self.inner.lists_started.load(Ordering::Acquire),
        }
    }

    /// Whether the write behind the mark shows in this cache.
    pub fn has_seen(&self, mark: &Mark) -> bool {
        self.inner.revision.load(Ordering::Acquire) >= mark.revision
            || self.inner.list_finished.load(Ordering::Acquire) > mark.lists_started
    }

    /// A cache of these values that nothing updates, for tests of what reads caches.
    pub fn fixed(objects: impl IntoIterator<Item = (ObjectKey, V)>) -> Self {
        let (sender, synced) = flag::channel(true);
        // The receiver keeps answering after the sender is gone, because the value is already there.
        drop(sender);
        let objects = objects.into_iter().map(|(key, value)| (key, Arc::new(value))).collect();
        Self {
            inner: Arc::new(Inner {
                objects: RwLock::new(objects),
                revision: AtomicU64::new(0),
                lists_started: AtomicU64::new(1),
                list_finished: AtomicU64::new(1),
            }),
            synced,
        }
    }
}

/// Fills one [`Cache`] and tells handlers what changed.
pub struct Informer<K, V> {
    api: Api<K>,
    config: watcher::Config,
    project: Box<dyn Fn(K) -> Option<V> + Send + Sync>,
    cache: Cache<V>,
    synced: flag::Sender<bool>,
    handlers: Vec<Handler<V>>,
    meta_handlers: Vec<MetaHandler>,
}

impl<K, V> Informer<K, V>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Send + Sync + 'static,
{
    /// Watches what `api` sees and keeps what `project` makes of it. An object that `project` turns into
    /// `None` is treated as if it were not there.
    pub fn new(
        api: Api<K>,
        config: watcher::Config,
        project: impl Fn(K) -> Option<V> + Send + Sync + 'static,
    ) -> Self {
        let (sender, synced) = flag::channel(false);
        let inner = Inner {
            objects: RwLock::new(BTreeMap::new()),
            revision: AtomicU64::new(0),
            lists_started: AtomicU64::new(0),
            list_finished: AtomicU64::new(0),
        };
        Self {
            api,
            config,
            project: Box::new(project),
            cache: Cache { inner: Arc::new(inner), synced },
            synced: sender,
            handlers: Vec::new(),
            meta_handlers: Vec::new(),
        }
    }

    /// The cache that this informer fills.
    pub fn cache(&self) -> Cache<V> {
        self.cache.clone()
    }

    /// Calls `handler` after each change of the cache, in order. It must not block.
    pub fn on_change(&mut self, handler: impl Fn(Change<'_, V>) + Send + Sync + 'static) {
        self.handlers.push(Box::new(handler));
    }

    /// Calls `handler` with the metadata of each object that is seen, before projection, and with `None`
    /// for each that is gone. It must not block.
    pub fn on_meta(&mut self, handler: impl Fn(&ObjectKey, Option<&ObjectMeta>) + Send + Sync + 'static) {
        self.meta_handlers.push(Box::new(handler));
    }

    /// Watches until `shutdown`. Failures are logged and retried with backoff (50 ms to 10 s).
    pub async fn run(self, shutdown: CancellationToken) {
        let stream = observe(self.api.clone(), self.config.clone());
        tokio::pin!(stream);
        loop {
            let seen = tokio::select! {
                () = shutdown.cancelled() => return,
                seen = stream.next() => seen,
            };
            match seen {
                None => return,
                Some(Observed::Listing) => {
                    self.cache.inner.lists_started.fetch_add(1, Ordering::AcqRel);
                }
                Some(Observed::Applied(object)) => self.apply(object),
                Some(Observed::Gone { key, revision }) => {
                    self.saw(revision.as_deref());
                    self.remove(&key);
                }
                Some(Observed::Synced) => {
                    let started = self.cache.inner.lists_started.load(Ordering::Acquire);
                    self.cache.inner.list_finished.store(started, Ordering::Release);
                    self.synced.send_replace(true);
                }
            }
        }
    }

    fn saw(&self, revision: Option<&str>) {
        let revision = revision.and_then(|version| version.parse().ok());
        self.cache.inner.revision.fetch_max(revision.unwrap_or_default(), Ordering::AcqRel);
    }

    fn apply(&self, object: K) {
        let key = ObjectKey::of(object.meta());
        let meta = object.meta().clone();
        let new = (self.project)(object).map(Arc::new);
        let old = {
            let mut objects = self.cache.inner.objects.write().unwrap_or_else(PoisonError::into_inner);
            match &new {
                Some(new) => objects.insert(key.clone(), new.clone()),
                None => objects.remove(&key),
            }
        };
        // After the cache has changed: who has seen the mark must find the write.
        self.saw(meta.resource_version.as_deref());
        for handler in &self.meta_handlers {
            handler(&key, Some(&meta));
        }
        self.tell(&key, old.as_ref(), new.as_ref());
    }

    fn remove(&self, key: &ObjectKey) {
        let old = self.cache.inner.objects.write().unwrap_or_else(PoisonError::into_inner).remove(key);
        for handler in &self.meta_handlers {
            handler(key, None);
        }
        self.tell(key, old.as_ref(), None);
    }

    fn tell(&self, key: &ObjectKey, old: Option<&Arc<V>>, new: Option<&Arc<V>>) {
        if old.is_none() && new.is_none() {
            return;
        }
        for handler in &self.handlers {
            handler(Change { key, old, new });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_a_range() {
        let cache = Cache::fixed(
            ["a/1", "a/2", "ab/1", "b/1"]
                .map(|path| path.split_once('/').expect("has a slash"))
                .map(|(namespace, name)| (ObjectKey::new(namespace, name), format!("{namespace}/{name}"))),
        );
        let names: Vec<_> = cache.in_namespace("a").iter().map(std::string::ToString::to_string).collect();
        assert_eq!(names, ["a/1", "a/2"]);
        assert!(cache.in_namespace("c").is_empty());
    }

    #[test]
    fn a_write_is_seen_at_its_revision_or_after_a_later_list() {
        let cache: Cache<()> = Cache::fixed([]);
        let mark = cache.mark(Some("7"));
        assert!(!cache.has_seen(&mark));
        cache.inner.revision.store(7, Ordering::Release);
        assert!(cache.has_seen(&mark));

        let mark = cache.mark(Some("9"));
        cache.inner.list_finished.store(1, Ordering::Release);
        assert!(!cache.has_seen(&mark), "that list began before the write");
        cache.inner.list_finished.store(2, Ordering::Release);
        assert!(cache.has_seen(&mark));
    }
}
