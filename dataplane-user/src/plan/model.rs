//! What the API says, reduced to what the dataplane needs: the input of the plan.
//!
//! The watch turns objects into these at once and forgets the rest, so that ten thousand services stay small.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use weir_dataplane_ebpf::{Protocol, Scope};

use crate::{cidr::Cidr, config::ForwardingMode};

/// Whose frontends they are. A Service comes before a Pod: where both want an address, the Service has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OwnerKind {
    /// A Service.
    Service,
    /// A Pod with host ports.
    Pod,
}

impl OwnerKind {
    /// The kind's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Pod => "Pod",
        }
    }
}

/// The name of what is served: a Service, or a Pod whose host ports are served like one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// What it is.
    pub kind: OwnerKind,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl ServiceKey {
    /// A Service.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { kind: OwnerKind::Service, namespace: namespace.into(), name: name.into() }
    }

    /// A Pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self { kind: OwnerKind::Pod, namespace: namespace.into(), name: name.into() }
    }
}

/// `namespace/name` of a Service, `pod/namespace/name` of a Pod.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == OwnerKind::Pod { "pod/" } else { "" };
        write!(f, "{kind}{}/{}", self.namespace, self.name)
    }
}

/// A service port's name, as far as it identifies the port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name, or its number when it has none.
    pub port: Box<str>,
    /// IANA protocol number.
    pub protocol: u8,
}

/// The name that people read: `namespace/name:port`.
impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        if Protocol(self.protocol) == Protocol::TCP {
            return Ok(());
        }
        write!(f, "/{}", protocol_name(Protocol(self.protocol)))
    }
}

/// A Service that is the dataplane's to serve.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Service {
    /// Addresses inside the cluster, one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The load balancer's addresses.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use those: everyone when there is nothing, and nobody when the set is empty.
    pub source_ranges: Option<BTreeSet<Cidr>>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `healthCheckNodePort`, of a load balancer with that policy.
    pub health_check_port: Option<u16>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// How packets from outside get to backends on other nodes; nothing when the Service does not say.
    pub forwarding: Option<ForwardingMode>,
    /// `sessionAffinity: ClientIP` with this timeout, 0 without.
    pub affinity_timeout_s: u32,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty for the only port. Slices refer to it.
    pub name: Box<str>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on service addresses.
    pub port: u16,
    /// The port on node addresses, if it has one.
    pub node_port: Option<u16>,
}

/// A Pod of this node that wants ports of the node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostPorts {
    /// Its addresses, one per family.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<HostPort>,
}

/// One port of a container that is a port of the node as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `hostIP`: the address that it is served on; nothing for all of the node's.
    pub address: Option<IpAddr>,
    /// The port on that address.
    pub port: u16,
    /// TCP or UDP, by its IANA number.
    pub protocol: u8,
    /// The container's port.
    pub container_port: u16,
}

/// An `EndpointSlice` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slice {
    /// Names and numbers of its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Zones that its endpoints' hints name, in the order of the bits of [`Endpoint::zones`].
    pub zones: Vec<Box<str>>,
}

impl Slice {
    /// Zones of one slice that are told apart.
    pub const MOST_ZONES: usize = u64::BITS as usize;
}

/// One port of an `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The service port's name.
    pub name: Box<str>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The pods' port.
    pub port: u16,
}

/// One endpoint of an `EndpointSlice`.
#[expect(clippy::struct_excessive_bools, reason = "the API's conditions, each independent of the others")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// It runs on this node.
    pub local: bool,
    /// The node that it runs on.
    pub node: NodeId,
    /// `hints.forZones`: the zones whose clients should use it, one bit for each of [`Slice::zones`]. No bit, no hint.
    pub zones: u64,
}

#[cfg(test)]
impl Endpoint {
    /// As tests write one: `r`eady, `s`erving, `t`erminating, `l`ocal; with hints for the first zone `a` and the second `b`.
    pub(super) fn of(address: IpAddr, state: &str) -> Self {
        Self {
            address,
            ready: state.contains('r'),
            serving: state.contains('s'),
            terminating: state.contains('t'),
            local: state.contains('l'),
            node: NodeId::NONE,
            zones: u64::from(state.contains('a')) | u64::from(state.contains('b')) << 1,
        }
    }
}

/// A node's name, as a number that is its index in [`Node::peers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub u32);

impl NodeId {
    /// Of an endpoint whose slice names no node.
    pub const NONE: Self = Self(u32::MAX);
}

/// A node's address in each family, if it has one there: IPv4, IPv6.
pub type NodeAddresses = [Option<IpAddr>; 2];

/// What the plan must know of its own node, and of the others.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// Addresses that `NodePort`s are served on, and by which this node is a client.
    pub addresses: Vec<IpAddr>,
    /// Its `topology.kubernetes.io/zone`, if it is in one.
    pub zone: Option<Box<str>>,
    /// Where the nodes are, by [`NodeId`].
    pub peers: Vec<NodeAddresses>,
    /// How packets from outside get to backends on other nodes, where a Service does not say.
    pub forwarding: ForwardingMode,
}

impl Node {
    /// The address of a node, in a family.
    pub fn peer(&self, node: NodeId, ipv4: bool) -> Option<IpAddr> {
        self.peers.get(node.0 as usize)?[usize::from(!ipv4)]
    }
}

/// An address and port that clients may talk to, in one scope: the key of a frontend in either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAddress {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`Scope`]'s number.
    pub scope: u8,
}

impl FrontendAddress {
    /// From the ABI's types.
    pub fn new(address: IpAddr, port: u16, protocol: Protocol, scope: Scope) -> Self {
        Self { address, port, protocol: protocol.0, scope: scope.0 }
    }
}

impl fmt::Display for FrontendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, protocol, .. } = self;
        let socket = std::net::SocketAddr::new(*address, *port);
        write!(f, "{}://{socket}", protocol_name(Protocol(*protocol)))
    }
}

/// A port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodePort {
    /// IANA protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

impl From<FrontendAddress> for NodePort {
    fn from(address: FrontendAddress) -> Self {
        Self { protocol: address.protocol, port: address.port }
    }
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, protocol_name(Protocol(self.protocol)))
    }
}

/// `tcp`, `udp`, `sctp`, or the number.
pub fn protocol_name(protocol: Protocol) -> String {
    match protocol {
        Protocol::TCP => "tcp".into(),
        Protocol::UDP => "udp".into(),
        Protocol::SCTP => "sctp".into(),
        Protocol::ICMP => "icmp".into(),
        Protocol::ICMPV6 => "icmpv6".into(),
        Protocol(number) => number.to_string(),
    }
}
