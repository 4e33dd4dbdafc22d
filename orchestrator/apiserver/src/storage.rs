//! Objects in the store: the transactions that create, change and remove them.
//!
//! A stored object is the JSON that clients read, but for `metadata.resourceVersion`, which is the revision of its last
//! change and is put in when the object is read. Changes are optimistic: they start from the cache and say in the
//! transaction which revision they saw. If that was old, the store answers with the newest state, and they start again
//! from there.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use weir_api::{Resource, Status, object};
use weir_store::{Entry, Revision, Store, Txn, TxnOutcome};

use crate::allocate::ServiceAllocator;
use crate::cache::Cache;
use crate::keys;

/// How often a change starts again when others change the same object meanwhile; then the client is told of a conflict.
const ATTEMPTS: usize = 32;

/// What a change makes of an object.
#[derive(Debug)]
pub(crate) enum Change {
    /// This.
    Put(Value),
    /// Nothing: it is removed. The value is how it is reported.
    Remove(Value),
    /// What it was.
    Keep,
}

/// What became of a change.
#[derive(Debug)]
pub(crate) enum Changed {
    /// The object is there; its state.
    Kept(Value),
    /// The object is gone; its last state.
    Removed(Value),
}

impl Changed {
    /// The state, whichever it is.
    pub(crate) fn into_value(self) -> Value {
        match self {
            Changed::Kept(value) | Changed::Removed(value) => value,
        }
    }
}

/// The store with the cache before it.
pub(crate) struct Storage {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) services: ServiceAllocator,
}

impl Storage {
    /// Waits until the cache holds every write that was acknowledged before now.
    pub(crate) async fn catch_up(&self) -> Result<u64, Status> {
        let head = self.store.head().await.map_err(|error| failed(&error))?;
        if self.cache.wait_for(head.0).await {
            Ok(self.cache.revision())
        } else {
            Err(Status::too_large_resource_version(head.0, self.cache.revision()))
        }
    }

    /// The newest state of an object, in the form of `row`.
    pub(crate) async fn get(&self, row: &Resource, namespace: &str, name: &str) -> Result<Value, Status> {
        self.catch_up().await?;
        self.cached(row, namespace, name).ok_or_else(|| Status::not_found(row, name))
    }

    /// What the cache holds now.
    pub(crate) fn cached(&self, row: &Resource, namespace: &str, name: &str) -> Option<Value> {
        let found = self.cache.of(row)?.get(&keys::object(namespace, name))?;
        Some(from_stored(row, found.value()))
    }

    /// Creates an object, which is complete and valid. `expect` names what else must be so for it to come to be.
    ///
    /// `None` if what was expected is no longer so: the caller looks again.
    pub(crate) async fn create(
        &self,
        row: &Resource,
        value: Value,
        expect: Option<(String, u64)>,
        dry_run: bool,
    ) -> Result<Option<Value>, Status> {
        let (namespace, name) = (object::namespace(&value).to_owned(), object::name(&value).to_owned());
        let key = keys::stored(row, &namespace, &name);
        for _ in 0..ATTEMPTS {
            let mut complete = value.clone();
            let reservation = self.services.reserve(row, None, &mut complete)?;
            if dry_run {
                let there = self.cached(row, &namespace, &name).is_some();
                return if there { Err(Status::already_exists(row, &name)) } else { Ok(Some(complete)) };
            }
            let mut txn = Txn::create(key.clone(), to_stored(row, complete.clone()));
            if let Some((key, revision)) = &expect {
                txn = txn.expect(key.clone(), Revision(*revision));
            }
            match self.commit(reservation.extend(txn), reservation.compares()).await? {
                Ok(revision) => {
                    reservation.commit();
                    return Ok(Some(with_version(complete, revision)));
                }
                Err(Raced::Object(Some(_))) => return Err(Status::already_exists(row, &name)),
                Err(Raced::Allocation) => reservation.lost(),
                Err(Raced::Object(None) | Raced::Expectation) => return Ok(None),
            }
        }
        Err(Status::conflict(row, &name, "too many others are creating objects at the same time; try again"))
    }

    /// Changes an object: `change` gets its newest state and says what becomes of it. It is asked again if somebody
    /// else was faster.
    pub(crate) async fn change(
        &self,
        row: &Resource,
        (namespace, name): (&str, &str),
        dry_run: bool,
        mut change: impl FnMut(&Value) -> Result<Change, Status>,
    ) -> Result<Changed, Status> {
        let key = keys::stored(row, namespace, name);
        let mut current = self.get(row, namespace, name).await?;
        for _ in 0..ATTEMPTS {
            let revision = revision(&current);
            let (mut next, removed) = match change(&current)? {
                Change::Keep => return Ok(Changed::Kept(current)),
                Change::Put(next) => (next, false),
                Change::Remove(next) => (next, true),
            };
            if !removed && is_same(&next, &current) {
                return Ok(Changed::Kept(current));
            }
            let reservation = if removed {
                self.services.release(row, &current)
            } else {
                self.services.reserve(row, Some(&current), &mut next)?
            };
            let txn = if removed {
                Txn::delete(key.clone(), Revision(revision))
            } else {
                Txn::update(key.clone(), Revision(revision), to_stored(row, next.clone()))
            };
            let outcome = if dry_run {
                Ok(revision)
            } else {
                self.commit(reservation.extend(txn), reservation.compares()).await?
            };
            match outcome {
                Ok(revision) => {
                    if !dry_run {
                        reservation.commit();
                    }
                    let value = with_version(next, revision);
                    return Ok(if removed { Changed::Removed(value) } else { Changed::Kept(value) });
                }
                Err(Raced::Object(None)) => return Err(Status::not_found(row, name)),
                Err(Raced::Object(Some(entry))) => current = read(row, &entry)?,
                Err(Raced::Allocation) => reservation.lost(),
                Err(Raced::Expectation) => {}
            }
        }
        Err(Status::stale(row, name))
    }

    /// Commits a transaction whose first compare is the object's, and whose last ones are those of allocations.
    async fn commit(&self, txn: Txn, allocations: usize) -> Result<Result<u64, Raced>, Status> {
        let expected: Vec<Revision> = txn.compares.iter().map(|compare| compare.mod_revision).collect();
        let allocations = txn.compares.len() - allocations;
        match self.store.txn(txn).await.map_err(|error| failed(&error))? {
            TxnOutcome::Committed { revision } => Ok(Ok(revision.0)),
            TxnOutcome::Mismatch { current } => {
                let found =
                    current.iter().map(|entry| entry.as_ref().map_or(Revision::ABSENT, |e| e.mod_revision));
                let raced = found.zip(&expected).position(|(found, expected)| found != *expected);
                Ok(Err(match raced {
                    Some(0) => Raced::Object(current.into_iter().next().flatten()),
                    Some(index) if index >= allocations => Raced::Allocation,
                    _ => Raced::Expectation,
                }))
            }
        }
    }
}

/// Which compare of a transaction did not hold.
enum Raced {
    /// The object's own: what it is now.
    Object(Option<Entry>),
    /// That of an address or port.
    Allocation,
    /// That of something else the object depends on.
    Expectation,
}

/// The revision of an object that was read.
pub(crate) fn revision(value: &Value) -> u64 {
    object::resource_version(value).parse().expect("what was read has the revision that was put in")
}

/// Whether a change comes to nothing.
fn is_same(next: &Value, current: &Value) -> bool {
    let without_version = |value: &Value| {
        let mut value = value.clone();
        object::remove(&mut value, &["metadata", "resourceVersion"]);
        value
    };
    without_version(next) == without_version(current)
}

fn with_version(mut value: Value, revision: u64) -> Value {
    object::set(&mut value, &["metadata", "resourceVersion"], revision.to_string());
    value
}

fn to_stored(row: &Resource, mut value: Value) -> Bytes {
    object::remove(&mut value, &["metadata", "resourceVersion"]);
    if let Some(storage) = row.storage {
        (storage.to_stored)(&mut value);
    }
    value.to_string().into()
}

/// A stored object in the form of `row`.
pub(crate) fn from_stored(row: &Resource, mut value: Value) -> Value {
    if let Some(storage) = row.storage
        && !keys::is_own_storage(row)
    {
        (storage.from_stored)(&mut value);
    }
    value
}

fn read(row: &Resource, entry: &Entry) -> Result<Value, Status> {
    let value = serde_json::from_slice(&entry.value).map_err(Status::internal)?;
    Ok(from_stored(row, with_version(value, entry.mod_revision.0)))
}

/// What a client is told when the store fails.
pub(crate) fn failed(error: &weir_store::Error) -> Status {
    match error {
        weir_store::Error::TooLarge { limit, .. } => Status::too_large(*limit),
        weir_store::Error::Closed => Status::unavailable("the store has stopped"),
        error => {
            tracing::error!(%error, "the store failed a request");
            Status::internal(error)
        }
    }
}
