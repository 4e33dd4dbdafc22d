//! Who gets what two want: addresses, ports of the node, room.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use weir_dataplane_ebpf::Protocol;

use super::{LIMITS, World, key, ports};
use crate::plan::{
    Batch, Books, Limits, Plan, Problem, Step,
    desired::{DesiredPort, MAX_ENDPOINTS, desired},
    host_ports::host_ports,
    model::{
        Endpoint, HostPort, HostPorts, Node, NodePort, Service, ServiceKey, ServicePort, Slice, SlicePort,
    },
};

#[test]
fn a_service_takes_its_node_port_from_a_pod_and_gives_it_back() {
    let pod = |n: u8| ServiceKey::pod("default", &format!("p{n}"));
    let wanted = |n: u8| {
        let port = HostPort { address: None, port: 30_001, protocol: Protocol::TCP.0, container_port: 80 };
        let pod = HostPorts { addresses: vec![IpAddr::from([10, 244, 0, n])], ports: vec![port] };
        host_ports(
            &pod,
            &Node { addresses: vec![IpAddr::from([192, 168, 0, 1])], zone: None, ..Node::default() },
        )
    };
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    world.run(&books.plan(&pod(1), &wanted(1), 0));
    let second = books.plan(&pod(2), &wanted(2), 0);
    let owners: Vec<String> = second.problems.iter().map(ToString::to_string).collect();
    assert_eq!(owners.len(), 2, "the first pod keeps it, for clients outside and inside");
    assert!(
        owners[0].starts_with("tcp://192.168.0.1:30001 is served by pod/default/p1 already"),
        "{owners:?}"
    );
    world.run(&second);

    let service = books.plan(&key(1), &ports(1, &[1]), 1);
    assert_eq!((service.problems.as_slice(), &service.again), (&[][..], &[pod(1)].into()));
    world.run(&service);
    let evicted = books.plan(&pod(1), &wanted(1), 1);
    let taken = |problem: &Problem| matches!(problem, Problem::Taken { owner, .. } if *owner == key(1));
    assert!(evicted.problems.iter().all(taken) && evicted.problems.len() == 2, "{:?}", evicted.problems);
    world.run(&evicted);
    let name = |n: u8| world.frontends.keys().filter(|a| a.port == 30_000 + u16::from(n)).count();
    assert_eq!(name(1), 2, "no write of the pod takes the Service's frontends away");

    let gone = books.plan(&key(1), &[], 2);
    assert_eq!(gone.again, [pod(1), pod(2)].into());
    world.run(&gone);
    world.run(&books.plan(&pod(1), &wanted(1), 2));
    world.run(&books.plan(&pod(2), &[], 2));
    world.expect(&BTreeMap::from([(pod(1), wanted(1))]));
}

#[test]
fn a_port_that_moves_between_owners_in_one_batch_stays_guarded() {
    let pod = |n: u8| ServiceKey::pod("default", &format!("p{n}"));
    let on = |n: u8| {
        let address = Some(IpAddr::from([192, 168, 0, n]));
        let port = HostPort { address, port: 8080, protocol: Protocol::TCP.0, container_port: 80 };
        let pod = HostPorts { addresses: vec![IpAddr::from([10, 244, 0, n])], ports: vec![port] };
        host_ports(&pod, &Node::default())
    };
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    world.run(&books.plan(&pod(1), &on(1), 0));
    let mut batch = Batch::default();
    batch.push(books.plan(&pod(1), &[], 1).steps);
    batch.push(books.plan(&pod(2), &on(2), 1).steps);
    for step in batch.into_steps() {
        world.apply(&step);
    }
    world.expect(&BTreeMap::from([(pod(2), on(2))]));
}

#[test]
fn guards_of_nobody_go_and_those_that_an_older_agent_did_not_make_come() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    world.run(&books.plan(&key(1), &ports(1, &[1]), 0));
    world.node_ports = [NodePort { protocol: Protocol::UDP.0, port: 53 }].into();
    let mut books = world.adopt();
    assert_eq!(books.plan(&key(1), &ports(1, &[1]), 0), Plan::default());
    let plan = books.sweep(0);
    assert_eq!(plan.steps.iter().map(Step::phase).collect::<Vec<_>>(), [3, 8]);
    for step in &plan.steps {
        match step {
            Step::WriteNodePort { port } => drop(world.node_ports.insert(*port)),
            Step::RemoveNodePort { port } => drop(world.node_ports.remove(port)),
            _ => unreachable!(),
        }
    }
    world.expect(&BTreeMap::from([(key(1), ports(1, &[1]))]));
}

#[test]
fn of_two_ports_of_one_service_the_first_has_the_address() {
    let node_address = IpAddr::from([192, 168, 0, 1]);
    let port = |name: &str, port: u16, node_port: Option<u16>| ServicePort {
        name: name.into(),
        protocol: Protocol::TCP,
        port,
        node_port,
    };
    let service = Service {
        cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
        // The node's own address as an external one: there a port's number may be the other's node port.
        external_ips: vec![node_address],
        ports: vec![port("a", 80, Some(30_080)), port("b", 30_080, None)],
        ..Service::default()
    };
    let node = Node { addresses: vec![node_address], zone: None, ..Node::default() };
    let wanted = desired(&service, [].iter(), &node);
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    let plan = books.plan(&key(1), &wanted, 0);
    let twice = "tcp://192.168.0.1:30080 is asked for by two ports of this object, and the first has it; give the \
                 other another number";
    let texts: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts, [twice; 2], "for clients outside and inside");
    world.run(&plan);
    let again = books.plan(&key(1), &wanted, 1);
    assert_eq!((again.steps, again.problems.len()), (vec![], 2), "nothing is written twice");
    world.run(&books.plan(&key(1), &[], 2));
    world.expect(&BTreeMap::new());
}

#[test]
fn a_million_endpoints_leave_room_for_other_services() {
    let endpoint = |n: u32| Endpoint {
        address: IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        node: crate::plan::model::NodeId::NONE,
        zones: 0,
    };
    let slices: Vec<Slice> = (0..1_000_u32)
        .map(|slice| Slice {
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::TCP, port: 80 }],
            endpoints: (0..1_000).map(|n| endpoint(slice * 1_000 + n)).collect(),
            zones: Vec::new(),
        })
        .collect();
    let service = Service {
        cluster_ips: vec![IpAddr::from([10, 96, 0, 9])],
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::TCP, port: 80, node_port: None }],
        ..Service::default()
    };
    let mut books = Books::new(Limits::default());
    let plan = books.plan(&key(9), &desired(&service, slices.iter(), &Node::default()), 0);
    let left_out = 1_000_000 - MAX_ENDPOINTS;
    assert_eq!(plan.problems, [Problem::TooManyEndpoints { left_out, bound: MAX_ENDPOINTS }]);
    assert_eq!(books.usage().backends[0] as usize, MAX_ENDPOINTS);
    assert_eq!(books.plan(&key(1), &ports(1, &[1, 3]), 0).problems, [], "the others are served");
}

/// The service's port as one of UDP.
fn datagrams(n: u8, endpoints: &[u8]) -> Vec<DesiredPort> {
    let mut ports = ports(n, endpoints);
    ports[0].protocol = Protocol::UDP;
    ports
}

#[test]
fn a_datagram_port_that_loses_an_endpoint_is_named() {
    let mut books = Books::new(LIMITS);
    let mut world = World::default();
    let lost =
        |books: &mut Books, n: u8, endpoints: &[u8]| books.plan(&key(n), &datagrams(n, endpoints), 0).lost;
    assert_eq!(lost(&mut books, 1, &[1, 3]), [].into(), "it is new");
    assert_eq!(lost(&mut books, 2, &[1]), [].into());
    assert_eq!(lost(&mut books, 1, &[1, 3, 5]), [].into(), "it has more");
    assert_eq!(lost(&mut books, 1, &[3, 5]), [1].into(), "another service has the endpoint still");
    let ids = |books: &Books, addresses: &[&str]| -> BTreeSet<u32> {
        addresses.iter().filter_map(|address| books.backend(address.parse().unwrap())).collect()
    };
    assert_eq!(books.serving(1), Some(&ids(&books, &["10.244.0.3:8080", "10.244.0.5:8080"])));
    assert_eq!(lost(&mut books, 1, &[3, 105]), [1].into(), "one that does not serve is lost as well");
    assert_eq!(books.serving(1), Some(&ids(&books, &["10.244.0.3:8080"])));
    assert_eq!(books.plan(&key(1), &ports(1, &[3]), 0).lost, [1].into(), "the port is TCP's now");
    assert_eq!(books.serving(1), None);
    assert_eq!(books.plan(&key(1), &ports(1, &[]), 0).lost, [].into(), "TCP drains");
    assert_eq!(books.plan(&key(2), &[], 0).lost, [2].into(), "the service goes");

    let mut books = Books::new(LIMITS);
    world.run(&books.plan(&key(1), &datagrams(1, &[1]), 0));
    let mut books = world.adopt();
    assert_eq!(lost(&mut books, 1, &[1]), [1].into(), "nobody knows what went while no agent ran");
    assert_eq!(lost(&mut books, 1, &[1]), [].into());
}
