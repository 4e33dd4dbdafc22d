//! Rulesets of kube-proxy's shape, as peers: what Weir's figures and outcomes are compared with.
//!
//! A small model of services that knows nothing of Weir becomes the nftables ruleset ([`nftables`]) or the iptables
//! ruleset ([`iptables`]) that kube-proxy v1.33 programs for it: the same chains, maps, marks, hashes in names, and order
//! of rules. The source of every rule is `pkg/proxy/nftables/proxier.go`, `pkg/proxy/iptables/proxier.go` and
//! `pkg/proxy/topology.go`; local traffic is told by the pod range (`--detect-local-mode=ClusterCIDR`). Left out is what
//! only counts (nfacct) and what only matters on a second sync (flushes, stale chains).

pub mod iptables;
mod names;
pub mod nftables;
mod topology;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An address family; kube-proxy keeps a ruleset for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Whether the address is of this family.
    pub fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// A transport protocol that Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its name in rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// What rules must know of the node and the cluster.
#[derive(Clone, Debug)]
pub struct Node {
    /// Pods' range in each family, as `ADDRESS/PREFIX`.
    pub pod_ranges: Vec<(Family, String)>,
    /// The service range in each family.
    pub service_ranges: Vec<(Family, String)>,
    /// Addresses that `NodePort`s are served on; the first of a family is the node's primary.
    pub addresses: Vec<IpAddr>,
}

impl Node {
    fn pod_range(&self, family: Family) -> &str {
        range(&self.pod_ranges, family)
    }

    fn service_range(&self, family: Family) -> &str {
        range(&self.service_ranges, family)
    }

    fn addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied().filter(move |address| family.has(*address))
    }
}

fn range(ranges: &[(Family, String)], family: Family) -> &str {
    let range = ranges.iter().find(|(of, _)| *of == family);
    &range.unwrap_or_else(|| panic!("the node has no range of {family:?}")).1
}

/// One port of a Service in one family.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The port's name, empty for an only port.
    pub port_name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The cluster address; its family is the rules'.
    pub cluster_ip: IpAddr,
    /// The port on service addresses.
    pub port: u16,
    /// The port on node addresses.
    pub node_port: Option<u16>,
    /// `externalIPs` of the family.
    pub external_ips: Vec<IpAddr>,
    /// The load balancer's addresses of the family.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges` of the family.
    pub source_ranges: Vec<String>,
    /// Whether the node's primary address is in one of those.
    pub node_in_source_ranges: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `sessionAffinity: ClientIP` with this timeout.
    pub affinity_timeout_s: Option<u32>,
    /// `healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// Its endpoints of the family.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a service port.
#[expect(clippy::struct_excessive_bools, reason = "the API's conditions, each independent of the others")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub local: bool,
    /// `conditions.ready`, or the Service publishes addresses that are not ready.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

impl ServicePort {
    /// A TCP port 80 with a cluster address and nothing else.
    pub fn new(name: &str, cluster_ip: IpAddr) -> Self {
        Self {
            namespace: "default".into(),
            name: name.into(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
            cluster_ip,
            port: 80,
            node_port: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            node_in_source_ranges: false,
            external_local: false,
            internal_local: false,
            affinity_timeout_s: None,
            health_check_node_port: None,
            endpoints: Vec::new(),
        }
    }

    fn family(&self) -> Family {
        if self.cluster_ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As kube-proxy writes it in comments: `namespace/name:port`.
    fn label(&self) -> String {
        let Self { namespace, name, port_name, .. } = self;
        if port_name.is_empty() {
            format!("{namespace}/{name}")
        } else {
            format!("{namespace}/{name}:{port_name}")
        }
    }

    fn is_externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.load_balancer_ips.is_empty() || !self.external_ips.is_empty()
    }
}

impl Endpoint {
    /// One that is ready.
    pub fn ready(address: SocketAddr, local: bool) -> Self {
        Self { address, local, ready: true, serving: true, terminating: false }
    }
}

/// The service range of [`many`].
pub const MANY_SERVICE_RANGE: &str = "10.96.0.0/12";
/// The pod range of [`many`].
pub const MANY_POD_RANGE: &str = "10.128.0.0/9";
/// The pods' port of [`many`].
pub const MANY_POD_PORT: u16 = 8080;

/// The `n`th of [`many`] services: its cluster address.
pub fn many_cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + n)
}

/// The `e`th endpoint's address of the `n`th of [`many`] services, `endpoints` each.
pub fn many_endpoint(n: u32, e: u32, endpoints: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + n * endpoints + e)
}

/// The `NodePort` of the `n`th of [`many`] services. A cluster has 2,768 by default, so that only the first have one.
pub fn many_node_port(n: u32) -> Option<u16> {
    (n < 2_768).then(|| 30_000 + n as u16)
}

/// `services` TCP services with so many endpoints each, all different, for measurements of size.
pub fn many(services: u32, endpoints: u32) -> Vec<ServicePort> {
    (0..services).map(|n| many_one(n, endpoints)).collect()
}

/// The `n`th of them.
pub fn many_one(n: u32, endpoints: u32) -> ServicePort {
    let address = |e| SocketAddr::from((many_endpoint(n, e, endpoints), MANY_POD_PORT));
    ServicePort {
        port_name: "http".into(),
        node_port: many_node_port(n),
        endpoints: (0..endpoints).map(|e| Endpoint::ready(address(e), true)).collect(),
        ..ServicePort::new(&format!("s{n}"), many_cluster_ip(n).into())
    }
}

/// The node that serves [`many`] services.
pub fn many_node(address: IpAddr) -> Node {
    Node {
        pod_ranges: vec![(Family::V4, MANY_POD_RANGE.into())],
        service_ranges: vec![(Family::V4, MANY_SERVICE_RANGE.into())],
        addresses: vec![address],
    }
}
