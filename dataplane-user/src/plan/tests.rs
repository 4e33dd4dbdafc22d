//! Plans, carried out on maps made of plain values, looked at after every single step.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use proptest::prelude::*;
use weir_dataplane_ebpf::{Frontend, Protocol};

use super::{
    Adopted, AdoptedBackend, Batch, Books, GRACE_MS, Limits, Plan, PortName, Problem, Step,
    desired::{DesiredFrontend, DesiredPort, desired},
    model::{Endpoint, FrontendAddress, Node, NodePort, Service, ServiceKey, ServicePort, Slice, SlicePort},
};
use crate::cidr::Cidr;

mod owners;

const LIMITS: Limits = Limits { frontends: 64, backends: 64, slots: 1 << 10, source_ranges: 64 };

/// The maps.
#[derive(Clone, Default)]
struct World {
    backends: BTreeMap<u32, (SocketAddr, bool)>,
    slots: BTreeMap<u32, u32>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    source_ranges: BTreeSet<(u32, Cidr)>,
    node_ports: BTreeSet<NodePort>,
    cluster_ips: BTreeSet<IpAddr>,
    names: HashMap<u32, PortName>,
}

impl World {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::WriteBackend { id, address, local, .. } => {
                let old = self.backends.insert(*id, (*address, *local));
                assert!(old.is_none_or(|(known, _)| known == *address), "id {id} was in use for {old:?}");
            }
            Step::WriteRegion { offset, slots } => {
                let used = self.frontends.values().any(|f| {
                    f.backends > 0
                        && f.maglev_offset < offset + slots.len() as u32
                        && *offset <= f.maglev_offset + f.maglev_mask
                });
                assert!(!used, "region {offset} was in use");
                self.slots.extend((*offset..).zip(slots.iter().copied()));
            }
            Step::WriteFrontend { address, value } => drop(self.frontends.insert(*address, *value)),
            Step::RemoveFrontend { address } => assert!(self.frontends.remove(address).is_some()),
            Step::WriteSourceRange { service, range } => {
                assert!(self.source_ranges.insert((*service, *range)), "{range} was there");
            }
            Step::RemoveSourceRange { service, range } => {
                assert!(self.source_ranges.remove(&(*service, *range)), "{range} was not there");
            }
            Step::WriteNodePort { port } => assert!(self.node_ports.insert(*port), "{port} was there"),
            Step::RemoveNodePort { port } => assert!(self.node_ports.remove(port), "{port} was not there"),
            Step::WriteClusterIp { address } => {
                assert!(self.cluster_ips.insert(*address), "{address} was there");
            }
            Step::RemoveClusterIp { address } => {
                assert!(self.cluster_ips.remove(address), "{address} was not there");
            }
            Step::RetireBackend { id, .. } => assert!(self.backends.remove(id).is_some()),
        }
        self.check();
    }

    /// Cluster IPs that have a frontend.
    fn with_cluster_ips(&self) -> BTreeSet<IpAddr> {
        let of_cluster_ips =
            |(_, f): &(&FrontendAddress, &Frontend)| f.flags & Frontend::FLAG_CLUSTER_IP != 0;
        self.frontends.iter().filter(of_cluster_ips).map(|(address, _)| address.address).collect()
    }

    /// No frontend points at anything half-programmed, and no address refuses all ports.
    fn check(&self) {
        assert!(self.cluster_ips.is_subset(&self.with_cluster_ips()), "{:?}", self.cluster_ips);
        for (address, frontend) in &self.frontends {
            if frontend.flags & Frontend::FLAG_SOURCE_RANGES != 0 {
                let admits = self.source_ranges.iter().any(|(service, _)| *service == frontend.service);
                assert!(admits, "{address} refuses everyone");
            }
            if frontend.flags & Frontend::FLAG_NODE_PORT != 0 {
                assert!(self.node_ports.contains(&(*address).into()), "a process may have {address}");
            }
            if frontend.backends > 0 {
                let chosen = self.chosen(frontend);
                assert_eq!(chosen.len() as u32, frontend.backends, "{address}");
                assert!(chosen.iter().all(|b| b.is_ipv4() == address.address.is_ipv4()), "{address}");
            }
        }
    }

    /// Backends that a frontend's slots lead to.
    fn chosen(&self, frontend: &Frontend) -> BTreeSet<SocketAddr> {
        if frontend.backends == 0 {
            return BTreeSet::new();
        }
        (0..=frontend.maglev_mask)
            .map(|slot| {
                let id = self.slots.get(&(frontend.maglev_offset + slot)).expect("a written slot");
                self.backends.get(id).expect("an active backend").0
            })
            .collect()
    }

    fn run(&mut self, plan: &Plan) {
        for (id, name) in &plan.names {
            match name {
                Some(name) => drop(self.names.insert(*id, name.clone())),
                None => drop(self.names.remove(id)),
            }
        }
        for step in &plan.steps {
            self.apply(step);
        }
    }

    /// What an agent finds that starts now.
    fn adopt(&self) -> Books {
        let regions = self
            .frontends
            .values()
            .filter(|f| f.backends > 0)
            .map(|f| {
                let size = f.maglev_mask + 1;
                let slots = (f.maglev_offset..f.maglev_offset + size).map(|s| self.slots[&s]).collect();
                ((f.maglev_offset, size), slots)
            })
            .collect();
        let backends = self.backends.iter().map(|(id, (address, local))| AdoptedBackend {
            id: *id,
            address: *address,
            local: *local,
            node: None,
        });
        let frontends = self.frontends.iter().map(|(a, f)| (*a, *f)).collect();
        Books::adopt(
            LIMITS,
            Adopted {
                frontends,
                backends: backends.collect(),
                regions,
                source_ranges: self.source_ranges.iter().copied().collect(),
                node_ports: self.node_ports.iter().copied().collect(),
                cluster_ips: self.cluster_ips.iter().copied().collect(),
                names: self.names.clone(),
            },
        )
    }

    /// Everything is as desired, and nothing else is there.
    fn expect(&self, services: &BTreeMap<ServiceKey, Vec<DesiredPort>>) {
        let mut frontends = 0;
        for port in services.values().flatten() {
            for frontend in &port.frontends {
                frontends += 1;
                let value = self.frontends.get(&frontend.address).expect("the frontend exists");
                let serving = port.serving(frontend.address.address.is_ipv4(), frontend.local_only);
                assert_eq!(self.chosen(value), serving.iter().copied().collect(), "{}", frontend.address);
                assert_eq!(value.flags, frontend.flags);
            }
        }
        assert_eq!(self.frontends.len(), frontends);
        let listed: BTreeSet<SocketAddr> =
            services.values().flatten().flat_map(|p| p.backends.keys().copied()).collect();
        assert_eq!(self.backends.values().map(|(a, _)| *a).collect::<BTreeSet<_>>(), listed);
        assert_eq!(self.backends.len(), listed.len(), "one id each");
        let is_node_port = |f: &&DesiredFrontend| f.flags & Frontend::FLAG_NODE_PORT != 0;
        let wanted = services.values().flatten().flat_map(|port| &port.frontends).filter(is_node_port);
        assert_eq!(self.node_ports, wanted.map(|f| f.address.into()).collect());
        assert_eq!(self.cluster_ips, self.with_cluster_ips());
        let ranges = services.values().flatten().map(|port| port.source_ranges.len()).sum::<usize>();
        assert_eq!(self.source_ranges.len(), ranges);
        for port in services.values().flatten() {
            let service = self.frontends[&port.frontends[0].address].service;
            assert!(port.source_ranges.iter().all(|range| self.source_ranges.contains(&(service, *range))));
        }
    }
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::new("default", &format!("s{n}"))
}

/// A service with one port, and endpoints by last byte of their addresses; those from 100 on are not ready.
fn ports(n: u8, endpoints: &[u8]) -> Vec<DesiredPort> {
    ports_for(n, endpoints, &[])
}

/// The same with a load balancer's address for clients of these ranges, if there are any.
fn ports_for(n: u8, endpoints: &[u8], ranges: &[&str]) -> Vec<DesiredPort> {
    let restricted = !ranges.is_empty();
    let service = Service {
        cluster_ips: vec![IpAddr::from([10, 96, 0, n])],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::TCP,
            port: 80,
            node_port: Some(30_000 + u16::from(n)),
        }],
        load_balancer_ips: restricted.then_some(IpAddr::from([192, 0, 2, n])).into_iter().collect(),
        source_ranges: restricted.then(|| ranges.iter().map(|range| range.parse().unwrap()).collect()),
        external_local: n.is_multiple_of(2),
        ..Service::default()
    };
    let endpoint = |n: &u8| Endpoint {
        address: IpAddr::from([10, 244, 0, *n]),
        ready: *n < 100,
        serving: *n < 100,
        terminating: false,
        local: n.is_multiple_of(2),
        node: crate::plan::model::NodeId::NONE,
        zones: 0,
    };
    let slice = Slice {
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::TCP, port: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        zones: Vec::new(),
    };
    let node = Node { addresses: vec![IpAddr::from([192, 168, 0, 1])], zone: None, ..Node::default() };
    desired(&service, [slice].iter(), &node)
}

#[test]
fn backends_and_table_come_before_the_frontend_and_leave_after_it() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    let phases = |plan: &Plan| plan.steps.iter().map(Step::phase).collect::<Vec<_>>();

    let plan = books.plan(&key(1), &ports(1, &[1, 3]), 0);
    assert_eq!(
        phases(&plan),
        [0, 0, 1, 3, 4, 4, 4, 5],
        "two backends, one table for all, a node port, three frontends, a cluster IP"
    );
    world.run(&plan);
    let same = books.plan(&key(1), &ports(1, &[1, 3]), 1);
    assert_eq!(same, Plan::default(), "nothing changed, nothing is written");

    let plan = books.plan(&key(1), &ports(1, &[3]), 2);
    assert_eq!(phases(&plan), [1, 4, 4, 4, 10]);
    world.run(&plan);
    let plan = books.plan(&key(1), &ports(1, &[103]), 2);
    assert_eq!(phases(&plan), [0, 4, 4, 4, 10], "none is ready: the frontends stay and say so");
    world.run(&plan);
    let plan = books.plan(&key(1), &[], 3);
    assert_eq!(phases(&plan), [6, 7, 7, 7, 8, 10]);
    assert_eq!(plan.names, [(1, None)]);
    world.run(&plan);
    world.expect(&BTreeMap::new());
}

#[test]
fn source_ranges_come_before_the_frontends_that_ask_for_them_and_leave_after_them() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    let range_steps = |plan: &Plan| -> Vec<String> {
        let steps = plan.steps.iter().filter_map(|step| match step {
            Step::WriteSourceRange { range, .. } => Some(format!("write {range}")),
            Step::RemoveSourceRange { range, .. } => Some(format!("remove {range}")),
            Step::WriteFrontend { value, .. } => Some(format!("frontend {}", value.flags)),
            _ => None,
        });
        steps.collect()
    };
    let mut plan = |ranges: &[&str]| {
        let wanted = ports_for(1, &[1], ranges);
        let plan = books.plan(&key(1), &wanted, 0);
        world.run(&plan);
        world.expect(&BTreeMap::from([(key(1), wanted)]));
        range_steps(&plan)
    };
    let opened = plan(&[]);
    assert_eq!(opened, ["frontend 64", "frontend 2", "frontend 2"]);
    let restricted = plan(&["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(restricted, ["write 10.0.0.0/8", "write fd00::/8", "frontend 8", "frontend 8"]);
    assert!(plan(&["fd00::/8", "10.0.0.0/8"]).is_empty(), "nothing changed, nothing is written");
    assert_eq!(plan(&["10.1.0.0/16", "fd00::/8"]), ["write 10.1.0.0/16", "remove 10.0.0.0/8"]);
    assert_eq!(plan(&[]), ["remove 10.1.0.0/16", "remove fd00::/8"], "with the address");
}

#[test]
fn a_range_without_room_admits_nobody() {
    let tight = Limits { source_ranges: 1, ..LIMITS };
    let mut books = Books::new(tight);
    let wanted = ports_for(1, &[1], &["10.0.0.0/8", "11.0.0.0/8", "fd00::/8"]);
    let plan = books.plan(&key(1), &wanted, 0);
    assert_eq!(plan.problems, [Problem::SourceRangesFull { left_out: 1, bound: 1 }], "each family has one");
    assert_eq!(books.usage().source_ranges, [1, 1]);
    let plan = books.plan(&key(1), &ports_for(1, &[1], &["11.0.0.0/8"]), 0);
    assert_eq!(plan.problems, [Problem::SourceRangesFull { left_out: 1, bound: 1 }], "it goes after it came");
    let plan = books.plan(&key(1), &ports_for(1, &[1], &["11.0.0.0/8"]), 0);
    assert_eq!((plan.problems, books.usage().source_ranges), (vec![], [1, 0]));
}

#[test]
fn a_restriction_does_not_wait_for_room_in_the_tables() {
    let mut open = ports_for(1, &[1], &["10.0.0.0/8"]);
    for frontend in &mut open[0].frontends {
        frontend.flags &= !Frontend::FLAG_SOURCE_RANGES;
    }
    open[0].source_ranges.clear();
    let mut books = Books::new(Limits { slots: 2, ..LIMITS });
    assert_eq!(books.plan(&key(1), &open, 0).problems, []);
    let plan = books.plan(&key(1), &ports_for(1, &[1, 3, 5], &["10.0.0.0/8"]), 1);
    assert_eq!(plan.problems, [Problem::SlotsFull { bound: 2 }]);
    let restricted = |step: &&Step| {
        matches!(step, Step::WriteFrontend { value, .. }
            if value.flags & Frontend::FLAG_SOURCE_RANGES != 0 && value.backends == 1)
    };
    assert_eq!(plan.steps.iter().filter(restricted).count(), 2, "{:?}", plan.steps);
}

#[test]
fn what_was_freed_rests_before_it_is_used_again() {
    let tight = Limits { backends: 3, slots: 2, ..LIMITS };
    let mut books = Books::new(tight);
    books.plan(&key(1), &ports(1, &[1]), 0);
    books.plan(&key(1), &ports(1, &[3]), 10);
    let early = books.plan(&key(1), &ports(1, &[5]), 10 + GRACE_MS - 1);
    assert_eq!(
        early.problems,
        [Problem::BackendsFull { left_out: 1, bound: 3 }],
        "both ids are taken or at rest, and a frontend without backends needs no table"
    );
    let late = books.plan(&key(1), &ports(1, &[5]), 10 + 3 * GRACE_MS);
    assert_eq!(late.problems, []);
    assert!(late.steps.contains(&Step::WriteBackend {
        id: 1,
        address: "10.244.0.5:8080".parse().unwrap(),
        local: false,
        node: None
    }));
}

#[test]
fn without_room_for_a_new_table_the_old_one_serves_on() {
    let tight = Limits { slots: 2, ..LIMITS };
    let mut books = Books::new(tight);
    let first = books.plan(&key(1), &ports(1, &[1]), 0);
    assert_eq!(first.problems, []);
    let next = books.plan(&key(1), &ports(1, &[1, 3, 5]), 1);
    assert_eq!(next.problems, [Problem::SlotsFull { bound: 2 }]);
    assert!(next.steps.iter().all(|step| step.phase() == 0), "{:?}", next.steps);
}

#[test]
fn the_first_owner_keeps_an_address_and_the_second_gets_it_afterwards() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    world.run(&books.plan(&key(1), &ports(1, &[1]), 0));
    let mut second = ports(1, &[3]);
    second[0].frontends.truncate(1);
    let plan = books.plan(&key(2), &second, 0);
    let frontend = second[0].frontends[0].address;
    assert_eq!(plan.problems, [Problem::Taken { frontend, owner: key(1) }]);
    world.run(&plan);

    // Both plans in one batch: the removal must not overtake the write.
    let gone = books.plan(&key(1), &[], 1);
    assert_eq!(gone.again, [key(2)].into());
    let taken = books.plan(&key(2), &second, 1);
    let mut batch = Batch::default();
    batch.push(gone.steps);
    batch.push(taken.steps);
    for step in batch.into_steps() {
        world.apply(&step);
    }
    world.expect(&BTreeMap::from([(key(2), second)]));
}

#[test]
fn an_adopted_world_needs_no_writes() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    let ranges = |n: u8| if n < 2 { &["10.0.0.0/8", "fd00::/8"][..] } else { &[] };
    let services: BTreeMap<_, _> =
        (0..4).map(|n| (key(n), ports_for(n, &[n, n + 2, 7], ranges(n)))).collect();
    for (key, ports) in &services {
        world.run(&books.plan(key, ports, 0));
    }
    let mut books = world.adopt();
    for (key, ports) in &services {
        assert_eq!(books.plan(key, ports, 0), Plan::default());
    }
    assert_eq!(books.sweep(0), Plan::default());
}

#[test]
fn a_lost_name_table_costs_writes_but_nothing_else() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    let wanted = ports_for(1, &[1, 2], &["10.0.0.0/8"]);
    world.run(&books.plan(&key(1), &wanted, 0));
    world.run(&books.plan(&key(2), &ports_for(2, &[3], &["10.0.0.0/8"]), 0));
    world.names.clear();
    let mut books = world.adopt();
    let plan = books.plan(&key(1), &wanted, 0);
    assert!(
        plan.names.iter().all(|(id, _)| *id > 2),
        "an id that may still be in flows is not given out again"
    );
    world.run(&plan);
    world.run(&books.sweep(0));
    world.expect(&BTreeMap::from([(key(1), wanted)]));
}

/// What happens to one service, and after how many writes the agent dies, if it does.
type Change = (u8, Vec<u8>, Vec<&'static str>, bool, Option<usize>);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let endpoints = prop::collection::vec(prop_oneof![0_u8..9, 100_u8..103], 0..6);
    let ranges = prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"], 0..=3);
    prop::collection::vec(
        (0_u8..5, endpoints, ranges, prop::bool::weighted(0.8), prop::option::weighted(0.2, 0_usize..8)),
        0..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to services, and wherever the agent dies in between, no moment is half-programmed, and
    /// in the end the maps say what the services do.
    #[test]
    fn every_moment_is_whole(changes in changes()) {
        let (mut books, mut world) = (Books::new(LIMITS), World::default());
        let mut services = BTreeMap::new();
        for (now, (n, endpoints, ranges, exists, dies)) in changes.into_iter().enumerate() {
            let now = now as u64 * 400;
            let wanted = if exists { ports_for(n, &endpoints, &ranges) } else { Vec::new() };
            if exists { services.insert(key(n), wanted.clone()); } else { services.remove(&key(n)); }
            let mut plan = books.plan(&key(n), &wanted, now);
            prop_assert_eq!(&plan.problems, &[]);
            if let Some(after) = dies {
                plan.steps.truncate(after);
            }
            world.run(&plan);
            if dies.is_some() {
                books = world.adopt();
                let stale: Vec<_> = books.services().filter(|key| !services.contains_key(*key)).cloned().collect();
                for key in stale {
                    world.run(&books.plan(&key, &[], now));
                }
                for (key, ports) in &services {
                    world.run(&books.plan(key, ports, now));
                }
                world.run(&books.sweep(now));
            }
            world.expect(&services);
        }
    }
}
