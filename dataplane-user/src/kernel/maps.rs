//! The pinned maps with their types, as everything in user space sees them.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
};
use weir_dataplane_ebpf::{
    Address, Affinity, AffinityKey, Backend, Be16, DROP_REASONS, Endpoint, Flow, FlowKey, Fragment,
    FragmentKey, Frontend, FrontendKey, Ip4, Ip6, Namespace, NodeConfig, Protocol, RangeKey, Scope,
    SocketPeer, SocketPeerKey, SourceRange, SourceRangeKey, Traffic, TrafficKey, Uplink, node_port_index,
};

use super::sys;
use crate::{
    cidr::Cidr,
    paths::Paths,
    plan::{
        Step,
        model::{FrontendAddress, NodePort},
    },
};

/// Buckets of a hash map that tell how full it is.
const SAMPLED_BUCKETS: u32 = 4_096;

/// A map that cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} map {map}: {source}")]
pub struct TableError {
    /// What was tried.
    pub operation: &'static str,
    /// On which map.
    pub map: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Entries, and where those behind them begin.
pub type Batch<K, V> = (Vec<(K, V)>, Option<Vec<u8>>);

/// A pinned hash, array or trie.
#[derive(Debug)]
pub struct Table<K, V> {
    name: String,
    map: Map,
    bound: u32,
    entry: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map that is pinned at `path`, and makes sure that its entries have the expected sizes.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| TableError {
            operation: "open",
            map: name.clone(),
            source,
        };
        let data = MapData::from_pin(path).map_err(|error| failed(error.into()))?;
        let info = data.info().map_err(|error| failed(error.into()))?;
        let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
        if (info.key_size(), info.value_size()) != (key, value) {
            let found = (info.key_size(), info.value_size());
            let text = format!(
                "its key and value have {found:?} bytes, not {:?}: another version of Weir made it",
                (key, value)
            );
            return Err(failed(text.into()));
        }
        let bound = info.max_entries();
        let map = Map::from_map_data(data).map_err(|error| failed(error.into()))?;
        Ok(Self { name, map, bound, entry: PhantomData })
    }

    /// How many entries it can hold.
    pub fn bound(&self) -> u32 {
        self.bound
    }

    /// All entries. An array has all its indexes.
    pub fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut all = Vec::new();
        for batch in self.batches() {
            all.extend(batch?);
        }
        Ok(all)
    }

    /// All entries, some thousand at a time.
    pub fn batches(&self) -> impl Iterator<Item = Result<Vec<(K, V)>, TableError>> {
        sys::Batches::new(self.fd()).map(|batch| batch.map_err(|error| self.failed("read", error)))
    }

    /// Some thousand entries of a hash map behind a place, and where to go on, if there are more.
    pub fn batch(&self, behind: Option<Vec<u8>>) -> Result<Batch<K, V>, TableError> {
        let mut batches = match behind {
            Some(cursor) => sys::Batches::behind(self.fd(), cursor),
            None => sys::Batches::new(self.fd()),
        };
        let entries = batches.next().transpose().map_err(|error| self.failed("read", error))?;
        Ok((entries.unwrap_or_default(), batches.cursor()))
    }

    /// How full a hash map is, from 0 to 1: by its last `SAMPLED_BUCKETS` buckets, over which entries lie evenly. A map that has
    /// no more is counted; of a larger one that is half full, some 2,000 entries tell the rest to two or three percent. Takes a
    /// fraction of a millisecond, however large the map is.
    pub fn fill(&self) -> Result<f64, TableError> {
        // As the kernel rounds, which takes a bucket's number for the place where a batch begins.
        let buckets = self.bound.next_power_of_two();
        let first = buckets.saturating_sub(SAMPLED_BUCKETS);
        let mut entries = 0;
        for batch in sys::Batches::<K, V>::behind(self.fd(), first.to_ne_bytes().to_vec()) {
            entries += batch.map_err(|error| self.failed("read", error))?.len();
        }
        let share = f64::from(buckets) / f64::from(buckets - first);
        Ok(entries as f64 * share / f64::from(self.bound))
    }

    /// Writes entries, in order.
    pub fn write(&self, keys: &[K], values: &[V]) -> Result<(), TableError> {
        sys::update(self.fd(), keys, values).map_err(|error| self.failed("write", error))
    }

    /// Removes entries; those that are gone already count as removed.
    pub fn remove(&self, keys: &[K]) -> Result<(), TableError> {
        sys::delete(self.fd(), keys).map_err(|error| self.failed("remove from", error))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.map {
            Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) => {
                data.fd().as_fd()
            }
            other => unreachable!("{} is no map of ours: {other:?}", self.name),
        }
    }

    fn failed(
        &self,
        operation: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> TableError {
        TableError { operation, map: self.name.clone(), source: source.into() }
    }
}

impl<K: Pod + Eq + std::hash::Hash, V: Pod> Table<K, V> {
    /// One entry of a hash map.
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let map = HashMap::<_, K, V>::try_from(&self.map).map_err(|error| self.failed("open", error))?;
        match map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }
}

impl<V: Pod> Table<u32, V> {
    /// Elements of an array from one index up to, and without, another.
    pub fn elements(&self, from: u32, end: u32) -> Result<Vec<(u32, V)>, TableError> {
        let batches = match from.checked_sub(1) {
            Some(before) => sys::Batches::behind(self.fd(), before.to_ne_bytes().to_vec()),
            None => sys::Batches::new(self.fd()),
        };
        let mut all = Vec::new();
        for batch in batches {
            let batch = batch.map_err(|error| self.failed("read", error))?;
            let inside = batch.into_iter().take_while(|(index, _)| *index < end);
            all.extend(inside);
            if all.len() as u32 >= end - from {
                break;
            }
        }
        Ok(all)
    }

    /// One element of an array.
    pub fn at(&self, index: u32) -> Result<V, TableError> {
        let map = Array::<_, V>::try_from(&self.map).map_err(|error| self.failed("open", error))?;
        map.get(&index, 0).map_err(|error| self.failed("read", error))
    }
}

impl<A: Family> Table<SourceRangeKey<A>, u32> {
    /// Whether one of the service's ranges holds the address.
    pub fn admits(&self, service: u32, client: A) -> Result<bool, TableError> {
        let trie = LpmTrie::<_, SourceRange<A>, u32>::try_from(&self.map)
            .map_err(|error| self.failed("open", error))?;
        let range = SourceRange { service, address: client };
        match trie.get(&Key::new(SourceRangeKey::<A>::ALL_BITS, range), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(self.failed("read", error)),
        }
    }
}

impl<A: Family> Table<RangeKey<A>, u32> {
    /// Whether one of the ranges holds the address.
    pub fn holds(&self, address: A) -> Result<bool, TableError> {
        let trie = LpmTrie::<_, A, u32>::try_from(&self.map).map_err(|error| self.failed("open", error))?;
        match trie.get(&Key::new(RangeKey::<A>::ALL_BITS, address), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(self.failed("read", error)),
        }
    }
}

/// An address family of the ABI, from user space.
pub trait Family: Address + Pod {
    /// The suffix of this family's maps.
    const SUFFIX: &'static str;

    /// An address of this family.
    fn of(address: IpAddr) -> Option<Self>;

    /// The address, of whichever family.
    fn ip(self) -> IpAddr;

    /// The tuple of a packet between two sockets of this family.
    fn tuple(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Option<FlowKey<Self>> {
        Some(FlowKey {
            source: Self::of(source.ip())?,
            destination: Self::of(destination.ip())?,
            source_port: Be16::new(source.port()),
            destination_port: Be16::new(destination.port()),
            protocol,
            ..FlowKey::default()
        })
    }
}

macro_rules! family {
    ($address:ident, $std:ident, $suffix:literal) => {
        impl Family for $address {
            const SUFFIX: &'static str = $suffix;

            fn of(address: IpAddr) -> Option<Self> {
                match address {
                    IpAddr::$std(address) => Some(address.into()),
                    _ => None,
                }
            }

            fn ip(self) -> IpAddr {
                IpAddr::$std(self.into())
            }
        }
    };
}

family!(Ip4, V4, "v4");
family!(Ip6, V6, "v6");

/// The maps of one address family.
#[derive(Debug)]
pub struct FamilyMaps<A> {
    /// Frontends by address.
    pub frontends: Table<FrontendKey<A>, Frontend>,
    /// Addresses that services have inside the cluster.
    pub cluster_ips: Table<A, u32>,
    /// Backends by id.
    pub backends: Table<u32, Backend<A>>,
    /// Flows that both sides have spoken of, by tuple.
    pub flows: Table<FlowKey<A>, Flow<A>>,
    /// All other flows.
    pub opening: Table<FlowKey<A>, Flow<A>>,
    /// What first fragments said.
    pub fragments: Table<FragmentKey<A>, Fragment>,
    /// Pod links by address.
    pub endpoints: Table<A, Endpoint>,
    /// What translated sockets asked for.
    pub socket_peers: Table<SocketPeerKey<A>, SocketPeer<A>>,
    /// Session affinity's choices by client address.
    pub affinity: Table<AffinityKey<A>, Affinity>,
    /// The same by the network namespace of a socket.
    pub socket_affinity: Table<AffinityKey<Namespace>, Affinity>,
    /// Who may use load balancer addresses, by service.
    pub source_ranges: Table<SourceRangeKey<A>, u32>,
    /// What pods reach with their own addresses.
    pub non_masquerade: Table<RangeKey<A>, u32>,
    /// Addresses of other nodes: whose tunnelled packets are taken, and whose node ports are answered for.
    pub tunnel_peers: Table<A, u32>,
}

/// All maps.
#[derive(Debug)]
pub struct Maps {
    /// IPv4.
    pub v4: FamilyMaps<Ip4>,
    /// IPv6.
    pub v6: FamilyMaps<Ip6>,
    /// Which addresses and ports can have to do with a service.
    pub filter: Table<u32, u64>,
    /// The tables' slots.
    pub maglev: Table<u32, u32>,
    /// The node's own facts.
    pub node_config: Table<u32, NodeConfig>,
    /// The node's addresses on its uplinks, by interface index.
    pub uplinks: Table<u32, Uplink>,
    /// Which ports of the node are services', by [`node_port_index`].
    pub node_ports: Table<u32, u32>,
    /// Packets and bytes of services and backends, which the agent adds up.
    pub traffic: Table<TrafficKey, Traffic>,
    drops: Map,
}

impl<A: Family> FamilyMaps<A> {
    fn open(paths: &Paths) -> Result<Self, TableError> {
        let path = |name: &str| paths.map(&format!("{name}_{}", A::SUFFIX));
        Ok(Self {
            frontends: Table::open(&path("frontends"))?,
            cluster_ips: Table::open(&path("cluster_ips"))?,
            backends: Table::open(&path("backends"))?,
            flows: Table::open(&path("flows"))?,
            opening: Table::open(&path("opening"))?,
            fragments: Table::open(&path("fragments"))?,
            endpoints: Table::open(&path("endpoints"))?,
            socket_peers: Table::open(&path("socket_peers"))?,
            affinity: Table::open(&path("affinity"))?,
            socket_affinity: Table::open(&path("socket_affinity"))?,
            source_ranges: Table::open(&path("source_ranges"))?,
            non_masquerade: Table::open(&path("non_masquerade"))?,
            tunnel_peers: Table::open(&path("tunnel_peers"))?,
        })
    }

    /// Makes the nodes of this family among `peers` those whose tunnelled packets are taken. More than there is room for send
    /// their packets in vain.
    pub fn write_peers(&self, peers: &BTreeSet<IpAddr>) -> Result<(), TableError> {
        let wanted: Vec<A> =
            peers.iter().filter_map(|peer| A::of(*peer)).take(self.tunnel_peers.bound() as usize).collect();
        let known = self.tunnel_peers.entries()?.into_iter().map(|(peer, _)| peer);
        let gone: Vec<A> = known.filter(|peer| !wanted.contains(peer)).collect();
        self.tunnel_peers.remove(&gone)?;
        self.tunnel_peers.write(&wanted, &vec![0; wanted.len()])
    }

    /// Makes the ranges of this family those that pods reach with their own addresses: new ones first, so that no packet
    /// leaves with another meanwhile. Returns how many there are. What there is no room for is masqueraded.
    pub fn write_inside(&self, ranges: &BTreeSet<Cidr>) -> Result<u32, TableError> {
        let keys = ranges.iter().filter_map(|range| {
            Some(RangeKey { prefix_len: range.prefix().into(), address: A::of(range.network())? })
        });
        let wanted: HashSet<RangeKey<A>> = keys.take(self.non_masquerade.bound() as usize).collect();
        let known: HashSet<RangeKey<A>> =
            self.non_masquerade.entries()?.into_iter().map(|(key, _)| key).collect();
        let new: Vec<RangeKey<A>> = wanted.difference(&known).copied().collect();
        let gone: Vec<RangeKey<A>> = known.difference(&wanted).copied().collect();
        self.non_masquerade.write(&new, &vec![0; new.len()])?;
        self.non_masquerade.remove(&gone)?;
        Ok(wanted.len() as u32)
    }

    /// The entry of a tuple, whether its flow is established or opening.
    pub fn flow(&self, key: &FlowKey<A>) -> Result<Option<Flow<A>>, TableError> {
        Ok(self.flows.get(key)?.or(self.opening.get(key)?))
    }

    /// Carries out the steps of this family, all of one kind.
    fn execute(&self, steps: &[&Step]) -> Result<(), TableError> {
        let (mut ids, mut backends) = (Vec::new(), Vec::new());
        let (mut keys, mut values, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        let (mut admitted, mut refused) = (Vec::new(), Vec::new());
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::WriteBackend { id, address, local, node } => {
                    let Some(ip) = A::of(address.ip()) else { continue };
                    let local = if *local { Backend::<A>::FLAG_LOCAL } else { 0 };
                    ids.push(*id);
                    backends.push(Backend {
                        address: ip,
                        node: node.and_then(A::of).unwrap_or_default(),
                        port: Be16::new(address.port()),
                        flags: Backend::<A>::FLAG_ACTIVE | local,
                    });
                }
                Step::RetireBackend { id, address } if A::of(address.ip()).is_some() => {
                    ids.push(*id);
                    backends.push(Backend::default());
                }
                Step::WriteFrontend { address, value } => {
                    let Some(key) = frontend_key(*address) else { continue };
                    keys.push(key);
                    values.push(*value);
                }
                Step::RemoveFrontend { address } => gone.extend(frontend_key::<A>(*address)),
                Step::WriteClusterIp { address } => known.extend(A::of(*address)),
                Step::RemoveClusterIp { address } => unknown.extend(A::of(*address)),
                Step::WriteSourceRange { service, range } => {
                    admitted.extend(source_range_key::<A>(*service, *range));
                }
                Step::RemoveSourceRange { service, range } => {
                    refused.extend(source_range_key::<A>(*service, *range));
                }
                Step::RetireBackend { .. }
                | Step::WriteRegion { .. }
                | Step::WriteNodePort { .. }
                | Step::RemoveNodePort { .. } => {}
            }
        }
        self.backends.write(&ids, &backends)?;
        self.source_ranges.write(&admitted, &vec![0; admitted.len()])?;
        self.frontends.write(&keys, &values)?;
        self.frontends.remove(&gone)?;
        self.cluster_ips.write(&known, &vec![0; known.len()])?;
        self.cluster_ips.remove(&unknown)?;
        self.source_ranges.remove(&refused)
    }
}

/// The map key of a frontend, if it is of this family.
pub fn frontend_key<A: Family>(frontend: FrontendAddress) -> Option<FrontendKey<A>> {
    Some(FrontendKey {
        address: A::of(frontend.address)?,
        port: Be16::new(frontend.port),
        protocol: Protocol(frontend.protocol),
        scope: Scope(frontend.scope),
    })
}

/// The frontend of a map key.
pub fn frontend_address<A: Family>(key: FrontendKey<A>) -> FrontendAddress {
    FrontendAddress::new(key.address.ip(), key.port.get(), key.protocol, key.scope)
}

/// The map key of a service's source range, if it is of this family.
pub fn source_range_key<A: Family>(service: u32, range: Cidr) -> Option<SourceRangeKey<A>> {
    Some(SourceRangeKey::new(service, A::of(range.network())?, range.prefix()))
}

/// The service and its range of a map key.
pub fn source_range<A: Family>(key: SourceRangeKey<A>) -> (u32, Cidr) {
    (key.range.service, Cidr::containing(key.range.address.ip(), key.prefix()))
}

/// Address and port of a backend.
pub fn backend_address<A: Family>(backend: &Backend<A>) -> SocketAddr {
    SocketAddr::new(backend.address.ip(), backend.port.get())
}

impl Maps {
    /// Opens everything that is pinned.
    pub fn open(paths: &Paths) -> Result<Self, TableError> {
        let drops = MapData::from_pin(paths.map("drops")).and_then(Map::from_map_data);
        Ok(Self {
            v4: FamilyMaps::open(paths)?,
            v6: FamilyMaps::open(paths)?,
            filter: Table::open(&paths.map("filter"))?,
            maglev: Table::open(&paths.map("maglev"))?,
            node_config: Table::open(&paths.map("node_config"))?,
            uplinks: Table::open(&paths.map("uplinks"))?,
            node_ports: Table::open(&paths.map("node_ports"))?,
            traffic: Table::open(&paths.map("traffic"))?,
            drops: drops.map_err(|error| TableError {
                operation: "open",
                map: "drops".into(),
                source: error.into(),
            })?,
        })
    }

    /// Writes elements of the filter.
    pub fn write_filter(&self, changed: &[(u32, u64)]) -> Result<(), TableError> {
        let (indexes, words): (Vec<u32>, Vec<u64>) = changed.iter().copied().unzip();
        self.filter.write(&indexes, &words)
    }

    /// Carries out steps in their order; neighbours of one kind share system calls.
    pub fn execute(&self, steps: &[Step]) -> Result<(), TableError> {
        for run in steps.chunk_by(|a, b| a.phase() == b.phase()) {
            let mut slots = (Vec::new(), Vec::new());
            let mut ports = (Vec::new(), Vec::new());
            let mut guard = |port: &NodePort, taken: u32| {
                if let Some(index) = node_port_index(Protocol(port.protocol), Be16::new(port.port)) {
                    ports.0.push(index);
                    ports.1.push(taken);
                }
            };
            for step in run {
                match step {
                    Step::WriteRegion { offset, slots: ids } => {
                        slots.0.extend(*offset..*offset + ids.len() as u32);
                        slots.1.extend_from_slice(ids);
                    }
                    Step::WriteNodePort { port } => guard(port, 1),
                    Step::RemoveNodePort { port } => guard(port, 0),
                    _ => {}
                }
            }
            self.maglev.write(&slots.0, &slots.1)?;
            self.node_ports.write(&ports.0, &ports.1)?;
            let run: Vec<&Step> = run.iter().collect();
            self.v4.execute(&run)?;
            self.v6.execute(&run)?;
        }
        Ok(())
    }

    /// Drops since the maps were made, summed over all CPUs, by reason.
    pub fn drops(&self) -> Result<Vec<(&'static str, u64)>, TableError> {
        let failed =
            |source: MapError| TableError { operation: "read", map: "drops".into(), source: source.into() };
        let counters = PerCpuArray::<_, u64>::try_from(&self.drops).map_err(failed)?;
        // A map of an older agent may know fewer reasons.
        let known = DROP_REASONS.iter().zip(0..counters.len());
        known
            .map(|((_, name), index)| Ok((*name, counters.get(&index, 0).map_err(failed)?.iter().sum())))
            .collect()
    }
}

/// An error of a map as an error of I/O, for those who retry.
impl From<TableError> for io::Error {
    fn from(error: TableError) -> Self {
        io::Error::other(error)
    }
}
