//! Books of maps that an earlier agent filled.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use weir_dataplane_ebpf::Frontend;

use super::{
    Books, Retired,
    backends::{Backend, family},
    tables::{Region, fingerprint},
};
use crate::{
    cidr::Cidr,
    plan::{
        limits::Limits,
        model::{FrontendAddress, NodePort, PortName},
        outcome::Plan,
        step::Step,
    },
};

/// A backend found in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedBackend {
    /// Its id.
    pub id: u32,
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
    /// The address of the other node that it runs on, if that was known.
    pub node: Option<IpAddr>,
}

/// Everything found in the maps when the agent starts.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// All frontends.
    pub frontends: Vec<(FrontendAddress, Frontend)>,
    /// All backends in use.
    pub backends: Vec<AdoptedBackend>,
    /// Contents of the regions that frontends name, by offset and size.
    pub regions: HashMap<(u32, u32), Vec<u32>>,
    /// All source ranges, by service id.
    pub source_ranges: Vec<(u32, Cidr)>,
    /// Ports of the node that processes are kept off.
    pub node_ports: Vec<NodePort>,
    /// Addresses that are known as cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// What service ids mean.
    pub names: HashMap<u32, PortName>,
}

impl Books {
    /// Of maps that an earlier agent filled. A frontend whose region cannot be its own (damaged or foreign) is taken as
    /// it is and replaced by the next plan of its service.
    pub fn adopt(limits: Limits, adopted: Adopted) -> Self {
        let mut books = Self::new(limits);
        for backend in adopted.backends {
            if books.backend_ids[family(backend.address)].reserve(backend.id) {
                let known = Backend { id: backend.id, local: backend.local, node: backend.node, services: 0 };
                if let Some(twin) = books.backends.insert(backend.address, known) {
                    books.twins.push((backend.address, twin.id));
                }
            }
        }
        for (address, value) in adopted.frontends {
            books.next_service = books.next_service.max(value.service.saturating_add(1));
            if value.backends > 0 {
                let (offset, size) = (value.maglev_offset, value.maglev_mask.wrapping_add(1));
                let known = books.regions.get(&offset).is_some_and(|region| region.size == size);
                if known || books.slots.reserve(offset, size) {
                    let contents = adopted.regions.get(&(offset, size)).map_or(&[][..], Vec::as_slice);
                    let fingerprint = fingerprint(contents);
                    let region =
                        books.regions.entry(offset).or_insert(Region { size, fingerprint, frontends: 0 });
                    region.frontends += 1;
                }
            }
            books.frontend_counts[usize::from(!address.address.is_ipv4())] += 1;
            books.node_ports.adopt_frontend(address, &value);
            books.cluster_ips.adopt_frontend(address, &value);
            books.frontends.insert(address, value);
            if let Some(name) = adopted.names.get(&value.service) {
                books.owners.insert(value.service, name.service.clone());
                let programmed = books.services.entry(name.service.clone()).or_default();
                programmed.frontends.push(address);
            }
        }
        for port in adopted.node_ports {
            books.node_ports.adopt(port);
        }
        for address in adopted.cluster_ips {
            books.cluster_ips.adopt(address);
        }
        for (id, range) in adopted.source_ranges {
            // Also one that nobody owns: its id must not be given out while the range stands.
            books.next_service = books.next_service.max(id.saturating_add(1));
            books.source_ranges.adopt(id, range);
        }
        for (id, name) in adopted.names {
            books.next_service = books.next_service.max(id.saturating_add(1));
            books.services.entry(name.service.clone()).or_default().ports.push((name, id));
        }
        books
    }

    /// Removes what no service owns: for the end of the first pass after [`Books::adopt`].
    pub fn sweep(&mut self, now_ms: u64) -> Plan {
        let mut plan = Plan::default();
        let owned: BTreeSet<FrontendAddress> =
            self.services.values().flat_map(|service| service.frontends.iter().copied()).collect();
        let orphans: Vec<_> = self.frontends.keys().filter(|a| !owned.contains(a)).copied().collect();
        for address in orphans {
            self.remove_frontend(address, &mut plan, now_ms);
        }
        let owned: BTreeSet<u32> =
            self.services.values().flat_map(|service| service.ports.iter().map(|(_, id)| *id)).collect();
        let orphans: Vec<_> = self.source_ranges.services().filter(|id| !owned.contains(id)).collect();
        for id in orphans {
            self.admit(id, &BTreeSet::new(), &mut plan);
        }
        let unused: Vec<_> =
            self.backends.iter().filter(|(_, b)| b.services == 0).map(|(address, _)| *address).collect();
        for address in unused {
            self.retire_backend(address, &mut plan, now_ms);
        }
        for (address, id) in std::mem::take(&mut self.twins) {
            plan.steps.push(Step::RetireBackend { id, address });
            self.retired.push_back((now_ms, Retired::Backend { ipv4: address.is_ipv4(), id }));
        }
        self.node_ports.sweep(&mut plan.steps);
        self.cluster_ips.sweep(&mut plan.steps);
        plan.steps.sort_by_key(Step::phase);
        plan
    }
}
