//! Whoever programs the services: Weir, and then rules of kube-proxy's shape over the same links.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::runtime::watcher::Event;
use prometheus_client::registry::Registry;
use weir_dataplane::{
    Config, Metrics, Uplinks, cni, flows,
    kernel::{
        attach::{Programs, Targets, Tc},
        maps::Maps,
        xdp::Acceleration,
    },
    netlink::Netlink,
    node,
    reconcile::Reconciler,
    takeover::Takeover,
    watch::{Change, Store},
};
use weir_dataplane_ebpf::NodeConfig;
use weir_tests::rules::{Family, Node, nftables};

use super::{
    objects,
    place::{CLUSTER_CIDRS, NODE_ADDRESSES, POD_CIDRS, Place, SERVICE_CIDRS},
};

/// Something that programs services on the node of a place.
pub(crate) trait Side {
    /// Makes these objects the whole cluster.
    fn program(&mut self, place: &Place, services: &[Service], slices: &[EndpointSlice]);
}

/// A runtime inside the node's namespace: netlink sockets belong to the thread's.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Weir's programs and its reconciler.
pub(crate) struct Weir {
    _programs: Programs,
    reconciler: Reconciler,
    store: Store,
    known: (Vec<Service>, Vec<EndpointSlice>),
}

impl Weir {
    /// What an agent does when it starts.
    pub(crate) fn start(place: &Place) -> Self {
        let (paths, cgroup) = (place.paths(), place.cgroup.path());
        let uplinks = Uplinks::Named(vec!["up0".into(), "up2".into()]);
        let ranges = |texts: [&str; 2]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let config = Config {
            pod_cidr: ranges(CLUSTER_CIDRS),
            service_cidr: ranges(SERVICE_CIDRS),
            ..Config::default()
        };
        let (programs, reconciler) = place.node.inside(|| {
            block_on(async {
                let netlink = Netlink::connect().unwrap();
                let uplinks = node::uplinks(&netlink, &uplinks).await.unwrap();
                let mut programs = Programs::load(&paths, false).unwrap_or_else(|error| panic!("{error}"));
                let maps = Maps::open(&paths).unwrap();
                let mut value = NodeConfig { flags: NodeConfig::FLAG_SOCKET_LB, ..NodeConfig::default() };
                for gateway in node::ensure_gateway(&netlink, &ranges(POD_CIDRS)).await.unwrap() {
                    match gateway {
                        IpAddr::V4(gateway) => value.gateway_v4 = gateway.into(),
                        IpAddr::V6(gateway) => value.gateway_v6 = gateway.into(),
                    }
                }
                maps.node_config.write(&[0], &[value]).unwrap();
                node::write_uplinks(&maps, &node::uplink_addresses(&netlink, &uplinks).await.unwrap())
                    .unwrap();
                programs
                    .attach(&Targets {
                        uplinks: &uplinks,
                        acceleration: Acceleration::Generic,
                        cgroup: Some(cgroup),
                        tc: Tc::of_kernel(),
                    })
                    .unwrap_or_else(|error| panic!("{error}"));
                node::enable_forwarding(&paths).unwrap();
                node::keep_inside(&netlink, &config).await.unwrap();
                let metrics = Metrics::new(&mut Registry::default());
                let mut reconciler = Reconciler::new(&paths, Arc::new(maps), metrics).unwrap();
                let pods = cni::pod_links(&paths).await.unwrap();
                let addresses = netlink.addresses(None).await.unwrap();
                let node_addresses = addresses.into_iter().map(|(_, address, _)| address).collect();
                reconciler.take_over(Takeover { pods, node_addresses });
                (programs, reconciler)
            })
        });
        let mut store = Store::new("here");
        store.set_node_addresses(NODE_ADDRESSES.map(|address| address.parse().unwrap()).to_vec());
        Self { _programs: programs, reconciler, store, known: (Vec::new(), Vec::new()) }
    }

    /// Gives Services on the node back.
    pub(crate) fn leave(self, place: &Place) {
        drop(self);
        place.node.inside(|| block_on(weir_dataplane::detach(place.run_dir.path()))).unwrap();
    }
}

impl Side for Weir {
    fn program(&mut self, place: &Place, services: &[Service], slices: &[EndpointSlice]) {
        let (old_services, old_slices) = std::mem::take(&mut self.known);
        for slice in old_slices {
            self.store.apply(Change::Slice(Event::Delete(slice)));
        }
        for service in old_services {
            self.store.apply(Change::Service(Event::Delete(service)));
        }
        for service in services {
            self.store.apply(Change::Service(Event::Apply(service.clone())));
        }
        for slice in slices {
            self.store.apply(Change::Slice(Event::Apply(slice.clone())));
        }
        self.known = (services.to_vec(), slices.to_vec());
        let dirty = self.store.take_dirty();
        // The first round takes connections over, and those are the namespace's.
        let (reconciler, store) = (&mut self.reconciler, &self.store);
        let outcome =
            place.node.inside(|| reconciler.sync(store, dirty)).unwrap_or_else(|error| panic!("{error}"));
        assert!(outcome.complaints.is_empty(), "{:?}", outcome.complaints);
        // What the agent does after a round.
        let maps = Maps::open(&place.paths()).unwrap();
        flows::forget(&maps, &self.reconciler.lost(&outcome.lost)).unwrap();
    }
}

/// The rules.
pub(crate) struct Rules;

impl Side for Rules {
    fn program(&mut self, place: &Place, services: &[Service], slices: &[EndpointSlice]) {
        let ranges = |texts: [&str; 2]| vec![(Family::V4, texts[0].into()), (Family::V6, texts[1].into())];
        let node = Node {
            pod_ranges: ranges(CLUSTER_CIDRS),
            service_ranges: ranges(SERVICE_CIDRS),
            addresses: NODE_ADDRESSES.map(|address| address.parse().unwrap()).to_vec(),
        };
        let ports = objects::service_ports(services, slices, "here");
        nftables::unload(&place.node).unwrap();
        // kube-proxy forgets datagram flows to endpoints that are gone. The kernel does not forget streams that have just
        // ended, and leads a client that uses the same port again to the endpoint of the case before.
        let status = place.node.command("conntrack").arg("-F").output().unwrap().status;
        assert!(status.success(), "conntrack -F: {status}");
        for family in [Family::V4, Family::V6] {
            nftables::load(&place.node, &nftables::render(&node, family, &ports)).unwrap();
        }
    }
}
