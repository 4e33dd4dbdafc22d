//! Rulesets of kube-proxy's shape load at every size that is measured, and really forward: what Weir is compared with
//! is no straw man.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use weir_tests::{
    Namespace, Routed, ask_tcp, ask_udp,
    rules::{self, Endpoint, Family, Node, Protocol, ServicePort},
};

/// Longer than anything here takes, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(400);
/// Services of the rulesets. The bench goes on to 50,000 of nftables.
const SIZES: [u32; 3] = [1, 1_000, 10_000];
/// Connections that find each of three endpoints but once in 10^8 runs.
const MANY_TRIES: u32 = 48;

/// A way to program services.
struct Mode {
    name: &'static str,
    load: fn(&Namespace, &Node, &[ServicePort]),
}

const MODES: [Mode; 2] = [
    Mode {
        name: "nftables",
        load: |node, facts, services| {
            let transactions = rules::nftables::render(facts, Family::V4, services);
            rules::nftables::load(node, &transactions).expect("the kernel takes the rules");
        },
    },
    Mode {
        name: "iptables",
        load: |node, facts, services| {
            let text = rules::iptables::render(facts, Family::V4, services);
            rules::iptables::load(node, Family::V4, &text).expect("the kernel takes the rules");
        },
    },
];

/// Endpoint and client, as the endpoint tells them.
fn told(answer: &str) -> (IpAddr, IpAddr) {
    let (endpoint, client) = answer.split_once(' ').unwrap_or_else(|| panic!("`{answer}`"));
    (endpoint.parse().expect("an address"), client.parse().expect("an address"))
}

fn tcp(from: &Namespace, source: Ipv4Addr, to: SocketAddr) -> std::io::Result<(IpAddr, IpAddr)> {
    from.inside(|| ask_tcp(source.into(), to, PATIENCE)).map(|answer| told(&answer))
}

fn node_port(service: u32) -> SocketAddr {
    (Routed::NODE, rules::many_node_port(service).expect("one of the first")).into()
}

#[test]
fn rulesets_of_every_size_forward_to_every_endpoint() {
    for mode in &MODES {
        for size in SIZES {
            let routed = Routed::new().unwrap();
            routed.tell().unwrap();
            let facts = rules::many_node(Routed::NODE.into());
            (mode.load)(&routed.node, &facts, &rules::many(size, 3));
            let what = format!("{}, {size} services", mode.name);
            let last = size - 1;
            let service = SocketAddr::from((rules::many_cluster_ip(last), 80));
            let mut reached = Vec::new();
            for _ in 0..MANY_TRIES {
                let (endpoint, client) = tcp(&routed.client, Routed::POD, service).expect(&what);
                assert_eq!(client, Routed::POD, "{what}: pods are not masqueraded");
                reached.push(endpoint);
            }
            reached.sort();
            reached.dedup();
            let all: Vec<IpAddr> = (0..3).map(|e| rules::many_endpoint(last, e, 3).into()).collect();
            assert_eq!(reached, all, "{what}");
            let outside = tcp(&routed.client, Routed::OUTSIDE, service).expect(&what);
            assert_eq!(outside.1, Routed::TOWARDS_PODS, "{what}: others are");
            let by_port = tcp(&routed.client, Routed::OUTSIDE, node_port(0)).expect(&what);
            assert_eq!(by_port.1, Routed::TOWARDS_PODS, "{what}: NodePort");
            let by_node = tcp(&routed.node, Routed::NODE, service).expect(&what);
            assert!(all.contains(&by_node.0), "{what}: from the node itself");
        }
    }
}

/// Services of every kind, small enough to know what each must do.
fn services() -> Vec<ServicePort> {
    let one: Endpoint = Endpoint::ready("10.128.0.1:8080".parse().unwrap(), true);
    let far = Endpoint { local: false, ..Endpoint::ready("10.128.0.2:8080".parse().unwrap(), false) };
    let service = |n: u8| ServicePort {
        endpoints: vec![one],
        node_port: Some(30_000 + u16::from(n)),
        ..ServicePort::new(&format!("s{n}"), [10, 96, 0, n].into())
    };
    vec![
        ServicePort { protocol: Protocol::Udp, ..service(1) },
        ServicePort { endpoints: Vec::new(), ..service(2) },
        ServicePort { external_local: true, internal_local: true, endpoints: vec![far], ..service(3) },
        ServicePort { external_local: true, ..service(4) },
        ServicePort {
            load_balancer_ips: vec![[203, 0, 113, 5].into()],
            source_ranges: vec!["10.255.255.1/32".into()],
            ..service(5)
        },
        ServicePort { affinity_timeout_s: Some(60), endpoints: vec![one, far], ..service(6) },
        ServicePort {
            endpoints: vec![
                Endpoint { ready: false, terminating: true, ..one },
                Endpoint { ready: false, ..far },
            ],
            ..service(7)
        },
    ]
}

#[test]
fn rules_do_what_kube_proxy_promises() {
    for mode in &MODES {
        let routed = Routed::new().unwrap();
        routed.tell().unwrap();
        routed.tell_udp([10, 128, 0, 1].into()).unwrap();
        (mode.load)(&routed.node, &rules::many_node(Routed::NODE.into()), &services());
        let name = mode.name;
        let cluster = |n: u8| SocketAddr::from(([10, 96, 0, n], 80));
        let port = |n: u16| SocketAddr::from((Routed::NODE, 30_000 + n));
        let refused = |result: std::io::Result<(IpAddr, IpAddr)>| result.map_err(|error| error.kind());
        let silent = |source: Ipv4Addr, to: SocketAddr| {
            let result = routed.client.inside(|| ask_tcp(source.into(), to, SILENCE));
            assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::TimedOut), "{name}: {to}");
        };

        let udp =
            routed.client.inside(|| ask_udp((Routed::POD, 0).into(), cluster(1), PATIENCE)).expect(name);
        assert_eq!(told(&udp), ([10, 128, 0, 1].into(), Routed::POD.into()), "{name}: UDP");
        for to in [cluster(2), port(2)] {
            let outcome = refused(tcp(&routed.client, Routed::OUTSIDE, to));
            assert_eq!(outcome, Err(ErrorKind::ConnectionRefused), "{name}: no endpoints: {to}");
        }
        silent(Routed::OUTSIDE, port(3));
        silent(Routed::POD, cluster(3));
        let pod = tcp(&routed.client, Routed::POD, port(3)).expect(name);
        assert_eq!(pod.0, IpAddr::from([10, 128, 0, 2]), "{name}: a pod is not bound by the external policy");
        let local = tcp(&routed.client, Routed::OUTSIDE, port(4)).expect(name);
        assert_eq!(local.1, Routed::OUTSIDE, "{name}: Local keeps the source");
        let balancer = SocketAddr::from(([203, 0, 113, 5], 80));
        assert!(tcp(&routed.client, Routed::POD, balancer).is_ok(), "{name}: in the source range");
        silent(Routed::OUTSIDE, balancer);
        let first = tcp(&routed.client, Routed::POD, cluster(6)).expect(name).0;
        for _ in 0..MANY_TRIES {
            let again = tcp(&routed.client, Routed::POD, cluster(6)).expect(name).0;
            assert_eq!(again, first, "{name}: session affinity");
        }
        let ending = tcp(&routed.client, Routed::POD, cluster(7)).expect(name).0;
        assert_eq!(ending, IpAddr::from([10, 128, 0, 1]), "{name}: none is ready, one serves on");
    }
}
