//! What the books say the maps hold, for those who compare.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::Frontend;

use super::Books;
use crate::{
    cidr::Cidr,
    plan::model::{FrontendAddress, NodePort, ServiceKey},
};

impl Books {
    /// A frontend's value.
    pub fn frontend(&self, address: FrontendAddress) -> Option<&Frontend> {
        self.frontends.get(&address)
    }

    /// All frontends.
    pub fn frontends(&self) -> impl Iterator<Item = (FrontendAddress, &Frontend)> {
        self.frontends.iter().map(|(address, value)| (*address, value))
    }

    /// All backends in use: address, id, and whether it runs on this node.
    pub fn backends(&self) -> impl Iterator<Item = (SocketAddr, u32, bool)> {
        self.backends.iter().map(|(address, backend)| (*address, backend.id, backend.local))
    }

    /// First slots of all lookup tables in use.
    pub fn tables(&self) -> impl Iterator<Item = u32> {
        self.regions.keys().copied()
    }

    /// Size of the lookup table that begins at a slot.
    pub fn table_size(&self, offset: u32) -> Option<u32> {
        self.regions.get(&offset).map(|region| region.size)
    }

    /// Whether these are the ids that the lookup table was made of.
    pub fn is_table(&self, offset: u32, slots: &[u32]) -> bool {
        self.regions.get(&offset).is_some_and(|region| {
            region.size as usize == slots.len() && region.fingerprint == super::tables::fingerprint(slots)
        })
    }

    /// Ports of the node that processes are kept off.
    pub fn guarded(&self) -> &BTreeSet<NodePort> {
        self.node_ports.written()
    }

    /// Addresses that services have inside the cluster.
    pub fn cluster_ips(&self) -> &BTreeSet<IpAddr> {
        self.cluster_ips.written()
    }

    /// All source ranges, by service id.
    pub fn source_ranges(&self) -> impl Iterator<Item = (u32, Cidr)> {
        self.source_ranges.all()
    }

    /// Ids of the backends that serve a UDP port; nothing when its service id means nothing any more.
    pub fn serving(&self, service: u32) -> Option<&BTreeSet<u32>> {
        self.services.get(self.owner(service)?)?.serving.get(&service)
    }

    /// Whose port a service id is.
    pub fn owner(&self, service: u32) -> Option<&ServiceKey> {
        self.owners.get(&service)
    }

    /// A service that lists this endpoint.
    pub fn service_of(&self, backend: SocketAddr) -> Option<&ServiceKey> {
        self.services.iter().find(|(_, it)| it.backends.contains(&backend)).map(|(key, _)| key)
    }
}
