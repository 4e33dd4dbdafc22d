//! Addresses and ports of services.
//!
//! What is taken is said twice. In the store, a key for each value that a service has, written in the very transaction
//! that writes the service: this is the truth, it cannot collide, and it cannot be forgotten. In memory, a bitmap that
//! was read from those keys at the start: it only makes finding a free value quick. A value that the bitmap thinks free
//! and the store does not loses the transaction, is marked, and another is picked.

mod bitmap;
mod range;
mod service;

use weir_store::{Operation, Revision, Txn};

pub use range::{PortRange, RangeError, ServiceRange};
pub(crate) use service::ServiceAllocator;

use crate::keys;

/// Kinds of values that are given out, as they appear in keys.
pub(super) const CLUSTER_IPS: &str = "clusterips";
pub(super) const NODE_PORTS: &str = "nodeports";

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Value {
    Address(std::net::IpAddr),
    Port(u16),
}

impl Value {
    fn key(self) -> String {
        match self {
            Value::Address(address) => keys::allocated(CLUSTER_IPS, address),
            Value::Port(port) => keys::allocated(NODE_PORTS, port),
        }
    }
}

/// Values that change hands with one transaction. Dropped without [`Reservation::commit`], everything stays as it was.
pub(crate) struct Reservation<'a> {
    allocator: &'a ServiceAllocator,
    owner: String,
    taken: Vec<Value>,
    released: Vec<Value>,
}

impl Reservation<'_> {
    /// Adds to a transaction that the taken values are free and now taken, and the released ones free.
    pub(crate) fn extend(&self, mut txn: Txn) -> Txn {
        for value in &self.taken {
            txn = txn.put_if(value.key(), Revision::ABSENT, self.owner.clone());
        }
        txn.operations
            .extend(self.released.iter().map(|value| Operation::Delete { key: value.key().into() }));
        txn
    }

    /// How many compares [`Reservation::extend`] adds.
    pub(crate) fn compares(&self) -> usize {
        self.taken.len()
    }

    /// The transaction is durable.
    pub(crate) fn commit(mut self) {
        self.taken.clear();
        let released = std::mem::take(&mut self.released);
        self.allocator.free(&released);
    }

    /// The store says that one of the taken values is somebody's: all stay marked, the right ones with the wrong.
    ///
    /// Only another server on the same store can have taken it. The marks cost a few addresses until the next start.
    pub(crate) fn lost(mut self) {
        self.taken.clear();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.allocator.free(&self.taken);
    }
}
