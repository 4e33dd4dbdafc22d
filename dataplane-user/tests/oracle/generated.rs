//! Services that nobody thought of.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::{prelude::*, sample::subsequence, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Value, json};

use super::{
    case::{Client, Outcome, Protocol, Question, Source, Try},
    place::NODE_ADDRESSES,
};

/// Services of a set.
const SERVICES: usize = 3;
/// Connections that are tried of each set.
const QUESTIONS: usize = 6;

/// Endpoints, by address in each family and by node.
const ENDPOINTS: [(&str, &str, &str); 4] = [
    ("10.244.7.2", "fd00:244:7::2", "here"),
    ("10.244.7.3", "fd00:244:7::3", "here"),
    ("10.244.8.5", "fd00:244:8::5", "elsewhere"),
    ("10.244.8.6", "fd00:244:8::6", "elsewhere"),
];
/// Ready, serving, terminating: what a pod can be.
const CONDITIONS: [(bool, bool, bool); 4] =
    [(true, true, false), (false, true, true), (false, false, false), (false, false, true)];

/// A cluster, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
    pub(crate) questions: Vec<Asked>,
}

/// A question, and what the answer may differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) question: Question,
    /// Policy Cluster serves it at an external address: the API does not say whom the endpoint sees.
    open_source: bool,
}

impl Asked {
    /// The outcome without what may differ: see the corpus for the reasons.
    pub(crate) fn comparable(&self, outcome: &Outcome) -> Outcome {
        let one = |one: &Try| match one {
            Try::Delivered { endpoint, .. } if self.open_source => {
                Try::Delivered { endpoint: endpoint.clone(), seen_as: Source::Node }
            }
            // A process of the node may be told by its own system call.
            Try::Failed(_) if self.question.from == Client::Node => Try::Failed(super::Failure::Refused),
            other => other.clone(),
        };
        outcome.iter().map(one).collect()
    }
}

/// What a Service is made of.
#[derive(Clone, Debug)]
struct Parts {
    kind: &'static str,
    families: &'static [bool],
    protocol: Protocol,
    external_local: bool,
    internal_local: bool,
    external_ip: bool,
    /// Indexes into [`ENDPOINTS`], with indexes into [`CONDITIONS`].
    endpoints: Vec<(usize, usize)>,
}

fn parts() -> impl Strategy<Value = Parts> {
    const FAMILIES: [&[bool]; 3] = [&[true], &[false], &[true, false]];
    let kind = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
    let families = prop::sample::select(FAMILIES.to_vec());
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let some = subsequence((0..ENDPOINTS.len()).collect::<Vec<_>>(), 0..=ENDPOINTS.len());
    // Half of them are ready.
    let condition = prop::sample::select(vec![0, 0, 0, 1, 2, 3]);
    let conditions = prop::collection::vec(condition, ENDPOINTS.len());
    (kind, families, protocol, any::<[bool; 3]>(), some, conditions).prop_map(
        |(kind, families, protocol, [external_local, internal_local, external_ip], some, conditions)| Parts {
            kind,
            families,
            protocol,
            external_local,
            internal_local,
            external_ip,
            endpoints: some.into_iter().zip(conditions).collect(),
        },
    )
}

/// So many sets, the same in each run.
pub(crate) fn sets(count: usize) -> Vec<Set> {
    let mut runner = TestRunner::deterministic();
    let strategy = (prop::collection::vec(parts(), SERVICES), any::<[prop::sample::Index; QUESTIONS]>());
    let mut one = || strategy.new_tree(&mut runner).expect("nothing is refused").current();
    (0..count).map(|_| one()).map(|(parts, indexes)| set(&parts, &indexes)).collect()
}

fn set(parts: &[Parts], indexes: &[prop::sample::Index]) -> Set {
    let (mut services, mut slices, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    for (n, parts) in (1..).zip(parts) {
        services.push(service(n, parts));
        slices.extend(parts.families.iter().map(|ipv4| slice(n, *ipv4, parts)));
        for ipv4 in parts.families {
            asked.extend(questions(n, *ipv4, parts));
        }
    }
    let questions = indexes.iter().map(|index| *index.get(&asked)).collect();
    Set { services, slices, questions }
}

fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

fn cluster_ip(n: u16, ipv4: bool) -> IpAddr {
    if ipv4 { [10, 96, 0, n as u8].into() } else { format!("fd00:96::{n}").parse().expect("an address") }
}

fn outside_ip(kind: u8, n: u16, ipv4: bool) -> IpAddr {
    if ipv4 {
        [203, 0, 113, kind + n as u8].into()
    } else {
        format!("2001:db8:{kind}::{n}").parse().expect("an address")
    }
}

/// Third octets, so to say, of external IPs and of load balancers' addresses.
const EXTERNAL: u8 = 10;
const BALANCER: u8 = 20;

fn protocol(parts: &Parts) -> &'static str {
    match parts.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

fn service(n: u16, parts: &Parts) -> Service {
    let of_families = |address: &dyn Fn(bool) -> IpAddr| -> Vec<IpAddr> {
        parts.families.iter().map(|ipv4| address(*ipv4)).collect()
    };
    let cluster_ips = of_families(&|ipv4| cluster_ip(n, ipv4));
    let mut port = json!({"name": "p", "port": 80, "protocol": protocol(parts)});
    if parts.kind != "ClusterIP" {
        port["nodePort"] = json!(30_000 + n);
    }
    let mut spec = json!({
        "type": parts.kind, "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": [port],
        "internalTrafficPolicy": if parts.internal_local { "Local" } else { "Cluster" },
    });
    if parts.external_ip {
        spec["externalIPs"] = json!(of_families(&|ipv4| outside_ip(EXTERNAL, n, ipv4)));
    }
    if parts.external_local && (parts.kind != "ClusterIP" || parts.external_ip) {
        spec["externalTrafficPolicy"] = json!("Local");
    }
    let mut status = json!({});
    if parts.kind == "LoadBalancer" {
        let balancers = of_families(&|ipv4| outside_ip(BALANCER, n, ipv4));
        let ingress: Vec<Value> = balancers.iter().map(|ip| json!({"ip": ip})).collect();
        status = json!({"loadBalancer": {"ingress": ingress}});
    }
    from_json(
        json!({"metadata": {"name": format!("s{n}"), "namespace": "n"}, "spec": spec, "status": status}),
    )
}

fn slice(n: u16, ipv4: bool, parts: &Parts) -> EndpointSlice {
    let endpoint = |(which, condition): &(usize, usize)| {
        let (v4, v6, node) = ENDPOINTS[*which];
        let (ready, serving, terminating) = CONDITIONS[*condition];
        json!({
            "addresses": [if ipv4 { v4 } else { v6 }], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        })
    };
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    from_json(json!({
        "metadata": {
            "name": format!("s{n}-{family}"), "namespace": "n",
            "labels": {"kubernetes.io/service-name": format!("s{n}")},
        },
        "addressType": family,
        "ports": [{"name": "p", "port": 8080, "protocol": protocol(parts)}],
        "endpoints": parts.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    }))
}

/// Every client at every address that serves it.
fn questions(n: u16, ipv4: bool, parts: &Parts) -> Vec<Asked> {
    let mut outside: Vec<SocketAddr> = Vec::new();
    if parts.external_ip {
        outside.push((outside_ip(EXTERNAL, n, ipv4), 80).into());
    }
    if parts.kind == "LoadBalancer" {
        outside.push((outside_ip(BALANCER, n, ipv4), 80).into());
    }
    if parts.kind != "ClusterIP" {
        let node: IpAddr = NODE_ADDRESSES[usize::from(!ipv4)].parse().expect("an address");
        outside.push((node, 30_000 + n).into());
    }
    let cluster = SocketAddr::from((cluster_ip(n, ipv4), 80));
    let mut all = Vec::new();
    for from in [Client::Outside, Client::Pod, Client::PodA, Client::Node] {
        let ask = |to, open_source| Asked {
            question: Question { from, to, protocol: parts.protocol },
            open_source,
        };
        if from != Client::Outside {
            all.push(ask(cluster, false));
        }
        all.extend(outside.iter().map(|to| ask(*to, !parts.external_local)));
    }
    all
}
