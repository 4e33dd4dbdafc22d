//! The watch cache: everything that is stored, in memory, as the bytes that clients read.
//!
//! One task follows the store and takes in every change; all reads and watches of the API are served from here. The
//! cache is complete up to its [`Cache::revision`]; a reader that must not see anything older than its own last write
//! waits until that has reached the store's head, which takes as long as one task switch.

mod object;
mod resource;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch as signal;
use weir_api::{Resource, resource as rows};
use weir_store::{Change, Event as StoreEvent, Range, Revision, Store, Watch};

pub(crate) use object::Object;
pub(crate) use resource::{Event, Expired, ResourceCache, Selection};

use crate::keys;

/// How long a request waits for a revision that the cache has not reached; upstream's bound.
pub(crate) const FRESH_WAIT: Duration = Duration::from_secs(3);

/// Entries that are read from the store in one go at the start.
const LOAD_PAGE: usize = 1000;

/// The cache of every stored resource.
pub(crate) struct Cache {
    // A dozen: comparing two short names each is as quick as hashing them.
    resources: Vec<ResourceCache>,
    revision: signal::Sender<u64>,
}

impl Cache {
    /// Reads the whole store, and answers the cache and the watch that keeps it fresh: give that to [`Cache::follow`].
    pub(crate) async fn load(store: &dyn Store) -> Result<(Cache, Watch), weir_store::Error> {
        let resources = rows::resources()
            .iter()
            .filter(|row| keys::is_own_storage(row))
            .map(ResourceCache::new)
            .collect();
        let cache = Cache { resources, revision: signal::Sender::new(0) };

        let head = store.head().await?;
        let mut loaded: HashMap<_, BTreeMap<_, _>> = HashMap::new();
        let mut range = Range { limit: LOAD_PAGE, ..Range::prefix(keys::REGISTRY) };
        loop {
            let page = store.range(range.clone()).await?;
            for entry in &page.entries {
                let Some((resource, key)) = cache.locate(&entry.key) else { continue };
                if let Some(object) = decode(resource.row, key, entry.mod_revision, &entry.value) {
                    let row = resource.row;
                    loaded
                        .entry((row.group, row.plural))
                        .or_default()
                        .insert(Arc::clone(&object.key), object);
                }
            }
            if !page.more {
                break;
            }
            range.after = page.entries.last().map(|entry| entry.key.clone());
        }
        // Changes after `head` may be in the pages already; taking them in once more comes to the same state.
        for resource in &cache.resources {
            let objects = loaded.remove(&(resource.row.group, resource.row.plural)).unwrap_or_default();
            resource.reset(objects, head.0);
        }
        cache.revision.send_replace(head.0);
        let watch = store.watch(keys::REGISTRY.into(), head).await?;
        Ok((cache, watch))
    }

    /// Takes in what the store reports until it ends, which is never but for a failure or a shutdown.
    pub(crate) async fn follow(&self, mut watch: Watch) -> weir_store::Error {
        while let Some(batch) = watch.next().await {
            match batch {
                Ok(batch) => {
                    self.take_in(&batch.events);
                    self.revision.send_replace(batch.revision.0);
                }
                Err(error) => return error,
            }
        }
        weir_store::Error::Closed
    }

    fn take_in(&self, events: &[StoreEvent]) {
        let mut touched: Vec<(&ResourceCache, u64)> = Vec::new();
        for event in events {
            let Some((resource, key)) = self.locate(event.key()) else { continue };
            match &event.change {
                Change::Put(entry) => {
                    let Some(object) = decode(resource.row, key, event.revision, &entry.value) else {
                        continue;
                    };
                    resource.put(object);
                }
                Change::Delete { .. } => resource.delete(key, event.revision.0),
            }
            match touched.iter_mut().find(|(other, _)| std::ptr::eq(*other, resource)) {
                Some((_, revision)) => *revision = event.revision.0,
                None => touched.push((resource, event.revision.0)),
            }
        }
        for (resource, revision) in touched {
            resource.wake(revision);
        }
    }

    /// The resource and the key within it of a store's key.
    fn locate<'c, 'k>(&'c self, key: &'k [u8]) -> Option<(&'c ResourceCache, &'k str)> {
        let (group, plural, key) = keys::parse(key)?;
        Some((self.find(group, plural)?, key))
    }

    /// The cache that holds the objects of `row`; `None` for reviews, which are not stored.
    pub(crate) fn of(&self, row: &Resource) -> Option<&ResourceCache> {
        let storage = row.storage?;
        self.find(storage.group, storage.plural)
    }

    fn find(&self, group: &str, plural: &str) -> Option<&ResourceCache> {
        self.resources.iter().find(|cache| cache.row.group == group && cache.row.plural == plural)
    }

    pub(crate) fn resources(&self) -> impl Iterator<Item = &ResourceCache> {
        self.resources.iter()
    }

    /// The revision up to which the cache is complete.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Waits until the cache is complete up to `revision`; false if that took longer than [`FRESH_WAIT`].
    pub(crate) async fn wait_for(&self, revision: u64) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut current = self.revision.subscribe();
        let reached = current.wait_for(|current| *current >= revision);
        matches!(tokio::time::timeout(FRESH_WAIT, reached).await, Ok(Ok(_)))
    }
}

/// A stored value that does not parse was not written by this program; it is skipped, loudly, so that one damaged
/// object does not take the others with it.
fn decode(row: &'static Resource, key: &str, revision: Revision, value: &[u8]) -> Option<Arc<Object>> {
    match serde_json::from_slice(value) {
        Ok(value) => Some(Arc::new(Object::new(row, key.into(), revision.0, value))),
        Err(error) => {
            tracing::error!(resource = row.plural, key, %revision, %error, "a stored object is damaged and is not served");
            None
        }
    }
}
