//! A map from hosts to what belongs to them, of which a copy costs next to nothing.
//!
//! Names are spread over shards, and copies share every shard that has not changed since: to change a copy is to copy the
//! shards of the hosts that change. A map in service is never changed, so the reader needs no lock, and the writer no
//! second map of the same size.
//!
//! **Cost.** A look at a host is one keyed hash of its name, one probe and one comparison. Wildcards have a second hash,
//! if there are any. A changed host costs the references to all shards and one copied shard: with 5,000 hosts those of
//! some twenty. The hash is fast rather than strong: it is seeded at random, clients only look and put nothing in, and
//! who writes rules cannot see what collides.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};

use super::HostPattern;

/// What the names are spread over.
const SHARDS: usize = 256;

/// Values by host, exact and wildcard ones apart.
#[derive(Debug, Clone)]
pub struct HostMap<V> {
    hasher: DefaultHashBuilder,
    exact: Names<V>,
    wildcard: Names<V>,
    any: Option<V>,
}

#[derive(Debug, Clone)]
struct Names<V> {
    shards: Box<[Shard<V>; SHARDS]>,
    len: usize,
}

type Shard<V> = Arc<HashTable<Named<V>>>;

#[derive(Debug, Clone)]
struct Named<V> {
    name: Arc<str>,
    value: V,
}

impl<V> Default for HostMap<V> {
    fn default() -> Self {
        let hasher = DefaultHashBuilder::default();
        Self { hasher, exact: Names::default(), wildcard: Names::default(), any: None }
    }
}

impl<V> HostMap<V> {
    /// The value of this very host.
    pub fn exact(&self, host: &str) -> Option<&V> {
        self.exact.get(self.hasher.hash_one(host), host)
    }

    /// The value of the wildcard that covers the host: `*.foo.com` stands for exactly one label, so only the part after
    /// the first dot can be one's.
    pub fn wildcard(&self, host: &str) -> Option<&V> {
        if self.wildcard.len == 0 {
            return None;
        }
        let (_, parent) = host.split_once('.')?;
        self.wildcard.get(self.hasher.hash_one(parent), parent)
    }

    /// The value of all hosts.
    pub fn any(&self) -> Option<&V> {
        self.any.as_ref()
    }

    /// The value of the pattern itself.
    pub fn get(&self, host: &HostPattern) -> Option<&V> {
        match host {
            HostPattern::Any => self.any.as_ref(),
            HostPattern::Exact(name) => self.exact(name),
            HostPattern::Wildcard(parent) => self.wildcard.get(self.hasher.hash_one(&**parent), parent),
        }
    }

    /// Names in the map.
    pub fn len(&self) -> usize {
        self.exact.len + self.wildcard.len
    }

    /// Whether there is no name in the map.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All hosts with their values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (HostPattern, &V)> {
        let exact = self.exact.iter().map(|(name, value)| (HostPattern::Exact(name.to_owned()), value));
        let wildcard =
            self.wildcard.iter().map(|(name, value)| (HostPattern::Wildcard(name.to_owned()), value));
        exact.chain(wildcard).chain(self.any.iter().map(|value| (HostPattern::Any, value)))
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.exact.values().chain(self.wildcard.values()).chain(&self.any)
    }
}

impl<V: Clone> HostMap<V> {
    /// Puts, replaces or removes a value. Copies keep what they have.
    pub fn set(&mut self, host: &HostPattern, value: Option<V>) {
        match host {
            HostPattern::Any => self.any = value,
            HostPattern::Exact(name) => self.exact.set(&self.hasher, name, value),
            HostPattern::Wildcard(parent) => self.wildcard.set(&self.hasher, parent, value),
        }
    }
}

impl<V> Default for Names<V> {
    fn default() -> Self {
        let empty = Shard::default();
        Self { shards: Box::new(std::array::from_fn(|_| Arc::clone(&empty))), len: 0 }
    }
}

/// The table within a shard goes by the lowest and the highest bits.
fn shard(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

impl<V> Names<V> {
    fn get(&self, hash: u64, name: &str) -> Option<&V> {
        let found = self.shards[shard(hash)].find(hash, |named| *named.name == *name);
        found.map(|named| &named.value)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|named| (&*named.name, &named.value))
    }

    fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<V: Clone> Names<V> {
    fn set(&mut self, hasher: &DefaultHashBuilder, name: &str, value: Option<V>) {
        let hash = hasher.hash_one(name);
        let rehash = |named: &Named<V>| hasher.hash_one(&*named.name);
        let shard = Arc::make_mut(&mut self.shards[shard(hash)]);
        match (shard.entry(hash, |named| *named.name == *name, rehash), value) {
            (Entry::Occupied(mut known), Some(value)) => known.get_mut().value = value,
            (Entry::Vacant(place), Some(value)) => {
                place.insert(Named { name: name.into(), value });
                self.len += 1;
            }
            (Entry::Occupied(known), None) => {
                known.remove();
                self.len -= 1;
                if shard.len() <= shard.capacity() / 4 {
                    shard.shrink_to_fit(rehash);
                }
            }
            (Entry::Vacant(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pattern() -> impl Strategy<Value = HostPattern> {
        prop_oneof![
            1 => Just(HostPattern::Any),
            9 => "[a-d]{1,2}\\.[a-d]".prop_map(HostPattern::Exact),
            5 => "[a-d]".prop_map(HostPattern::Wildcard),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_copies_keep_what_they_had(
            steps in prop::collection::vec((pattern(), prop::option::of(any::<u8>())), 1..200),
        ) {
            let mut map = HostMap::default();
            let mut model = BTreeMap::new();
            for (host, value) in steps {
                let (before, modelled) = (map.clone(), model.clone());
                map.set(&host, value);
                match value {
                    Some(value) => model.insert(host, value),
                    None => model.remove(&host),
                };
                for (map, model) in [(&before, &modelled), (&map, &model)] {
                    prop_assert!(model.iter().all(|(host, value)| map.get(host) == Some(value)));
                    let all: BTreeMap<HostPattern, u8> = map.iter().map(|(host, value)| (host, *value)).collect();
                    prop_assert_eq!(&all, model);
                    prop_assert_eq!(map.values().count(), model.len());
                    let any = usize::from(model.contains_key(&HostPattern::Any));
                    prop_assert_eq!(map.len() + any, model.len());
                }
            }
        }
    }

    #[test]
    fn shards_of_other_hosts_stay_shared() {
        let mut map = HostMap::default();
        for number in 0..5_000 {
            map.set(&HostPattern::Exact(format!("shop-{number}.example")), Some(number));
        }
        let mut changed = map.clone();
        changed.set(&HostPattern::Exact("one-more.example".to_owned()), Some(0));
        let shared = |(a, b): (&Shard<i32>, &Shard<i32>)| Arc::ptr_eq(a, b);
        let same = map.exact.shards.iter().zip(changed.exact.shards.iter()).filter(|pair| shared(*pair));
        assert_eq!(same.count(), SHARDS - 1);
        assert!(map.wildcard.shards.iter().zip(changed.wildcard.shards.iter()).all(shared));
        let fullest = map.exact.shards.iter().map(|shard| shard.len()).max().unwrap();
        assert!(fullest < 60, "{fullest} of 5,000 names in one of {SHARDS} shards");
    }

    #[test]
    fn what_goes_leaves_no_room_behind() {
        let mut map = HostMap::default();
        let host = |number: u32| HostPattern::Exact(format!("{number}.example"));
        (0..50_000).for_each(|number| map.set(&host(number), Some(number)));
        (0..50_000).for_each(|number| map.set(&host(number), None));
        assert!(map.is_empty());
        assert_eq!(map.exact.shards.iter().map(|shard| shard.capacity()).sum::<usize>(), 0);
    }
}
