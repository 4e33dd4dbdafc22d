//! What the watches have said so far, and which services the last changes concern.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{ResourceExt as _, runtime::watcher::Event};

use super::{
    Change, NodeFacts, Unserved, key, peers::Peers, pod_ranges::PodRanges, pods::Pods, service, slice,
    unserved::SliceProblem,
};
use crate::{
    cidr::Cidr,
    config::ForwardingMode,
    plan::{
        HealthCheck, PortName,
        desired::{DesiredPort, Judged, desired, judge},
        health_check,
        host_ports::{self, host_ports},
        model::{self, OwnerKind, ServiceKey, Slice},
    },
};

/// Names the Service that a slice is about.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One Service with its slices.
#[derive(Debug, Default)]
struct ServiceState {
    service: Option<model::Service>,
    slices: BTreeMap<Box<str>, Slice>,
    /// What of its slices is left out, whatever the Service is.
    left_out: BTreeMap<Box<str>, Vec<SliceProblem>>,
    uid: Option<Box<str>>,
    unserved: Vec<Unserved>,
}

impl ServiceState {
    fn unserved(&self) -> Vec<Unserved> {
        let Some(service) = &self.service else { return Vec::new() };
        let mismatches = self.slices.iter().map(|(name, slice)| (name, slice::mismatches(service, slice)));
        let left_out = self.left_out.iter().map(|(name, problems)| (name, problems.clone()));
        let of_slices = mismatches.chain(left_out).flat_map(|(name, problems)| {
            problems.into_iter().map(|problem| Unserved::Slice { slice: name.clone(), problem })
        });
        self.unserved.iter().cloned().chain(of_slices).collect()
    }
}

/// Whether a watch has been read once, and what a later full read has shown so far.
#[derive(Debug, Default)]
struct Reading {
    complete: bool,
    seen: BTreeSet<ServiceKey>,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    node_name: String,
    services: HashMap<ServiceKey, ServiceState>,
    /// Which Service a slice is about: a slice that is deleted or changes sides names only itself.
    slice_owners: HashMap<(Box<str>, Box<str>), ServiceKey>,
    pods: Pods,
    /// This node as services see it: its addresses as netlink says, its zone as its object does.
    place: model::Node,
    node: NodeFacts,
    peers: Peers,
    pod_ranges: PodRanges,
    /// Whether addresses or pod ranges of nodes changed since somebody asked.
    nodes_moved: bool,
    /// Nodes that a full read has shown so far.
    nodes_seen: BTreeSet<Box<str>>,
    dirty: BTreeSet<ServiceKey>,
    reading_services: Reading,
    reading_slices: Reading,
    node_read: bool,
}

impl Store {
    /// Of a node that nothing is known of yet.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            services: HashMap::new(),
            slice_owners: HashMap::new(),
            pods: Pods::default(),
            place: model::Node::default(),
            node: NodeFacts::default(),
            peers: Peers::default(),
            pod_ranges: PodRanges::default(),
            nodes_moved: false,
            nodes_seen: BTreeSet::new(),
            dirty: BTreeSet::new(),
            reading_services: Reading::default(),
            reading_slices: Reading::default(),
            node_read: false,
        }
    }

    /// Whether every watch has been read once. Before that an absent object means nothing.
    pub fn is_complete(&self) -> bool {
        self.reading_services.complete && self.reading_slices.complete && self.pods.complete && self.node_read
    }

    /// Takes in one event.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(event) => self.apply_service(event),
            Change::Slice(event) => self.apply_slice(event),
            Change::Node(event) => self.apply_node(event),
            Change::Pod(event) => self.dirty.extend(self.pods.apply(event)),
            Change::NoPods(error) => {
                if !self.pods.complete {
                    tracing::warn!(%error, "no host ports are served: allow list and watch of pods");
                    self.pods.complete = true;
                }
            }
            Change::Failed(error) => tracing::warn!(%error, "a watch broke; what is programmed stays"),
        }
    }

    fn apply_node(&mut self, event: Event<Node>) {
        match event {
            Event::Apply(node) => self.put_node(&node, true),
            Event::InitApply(node) => {
                self.nodes_seen.insert(node.name_any().into());
                self.put_node(&node, true);
            }
            Event::Delete(node) => self.put_node(&node, false),
            Event::Init => self.nodes_seen.clear(),
            Event::InitDone => {
                let seen = std::mem::take(&mut self.nodes_seen);
                self.nodes_moved |= self.pod_ranges.forget_others(&seen);
                if self.peers.forget_others(&seen, &mut self.place.peers) {
                    self.nodes_moved = true;
                    self.mark_all();
                }
                // A node that is not registered yet still serves.
                self.node_read = true;
            }
        }
    }

    fn put_node(&mut self, node: &Node, present: bool) {
        // What was known of the own one is served on when its object is gone.
        if node.name_any() == self.node_name && present {
            self.node = NodeFacts::from(node);
            self.set_zone();
        }
        self.nodes_moved |= self.pod_ranges.put(node, present);
        if self.peers.put(node, present, &mut self.place.peers) {
            self.nodes_moved = true;
            self.mark_all();
        }
    }

    /// Nodes come and move rarely: every service is looked at again, and those that are not concerned need no writes. While
    /// the watches are read for the first time nothing is planned anyway.
    fn mark_all(&mut self) {
        if self.node_read {
            let all: Vec<ServiceKey> = self.services().cloned().collect();
            self.dirty.extend(all);
        }
    }

    /// All addresses of all nodes.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        self.peers.addresses()
    }

    /// Pod ranges of all nodes.
    pub fn pod_ranges(&self) -> impl Iterator<Item = Cidr> {
        self.pod_ranges.all()
    }

    /// Whether either has changed since the last call.
    pub fn take_nodes_moved(&mut self) -> bool {
        std::mem::take(&mut self.nodes_moved)
    }

    /// Sets how packets from outside get to backends on other nodes, where a Service does not say. Before anything is planned.
    pub fn set_forwarding(&mut self, mode: ForwardingMode) {
        self.place.forwarding = mode;
    }

    /// What is known of the own Node.
    pub fn node(&self) -> &NodeFacts {
        &self.node
    }

    /// Sets the addresses that `NodePort`s are served on, and by which this node is a client. Only services with
    /// a `NodePort`, source ranges or a health check care, and Pods with host ports.
    pub fn set_node_addresses(&mut self, mut addresses: Vec<IpAddr>) {
        addresses.sort();
        addresses.dedup();
        if addresses != self.place.addresses {
            self.place.addresses = addresses;
            let concerned = self.services.iter().filter(|(_, state)| {
                state.service.as_ref().is_some_and(|service| {
                    service.source_ranges.is_some()
                        || service.health_check_port.is_some()
                        || service.ports.iter().any(|port| port.node_port.is_some())
                })
            });
            self.dirty.extend(concerned.map(|(key, _)| key.clone()));
            self.dirty.extend(self.pods.keys().cloned());
        }
    }

    /// Takes over the zone that the Node's object says. Only services with hints care.
    fn set_zone(&mut self) {
        if self.place.zone != self.node.zone {
            self.place.zone.clone_from(&self.node.zone);
            let hinted = |state: &ServiceState| state.slices.values().any(|slice| !slice.zones.is_empty());
            let concerned = self.services.iter().filter(|(_, state)| hinted(state));
            self.dirty.extend(concerned.map(|(key, _)| key.clone()));
        }
    }

    /// The services that changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    /// Every Service, and every Pod with host ports.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services().chain(self.pods.keys())
    }

    fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.iter().filter(|(_, state)| state.service.is_some()).map(|(key, _)| key)
    }

    /// The object's own id, which Events about it carry.
    pub fn uid(&self, key: &ServiceKey) -> Option<&str> {
        match key.kind {
            OwnerKind::Service => self.services.get(key)?.uid.as_deref(),
            OwnerKind::Pod => self.pods.get(key)?.uid.as_deref(),
        }
    }

    /// What of the object is not served, and what of its slices.
    pub fn unserved(&self, key: &ServiceKey) -> Vec<Unserved> {
        match key.kind {
            OwnerKind::Service => self.services.get(key).map_or_else(Vec::new, ServiceState::unserved),
            OwnerKind::Pod => self.pods.get(key).map_or_else(Vec::new, |state| state.unserved.clone()),
        }
    }

    /// The health check that a service wants, if it wants one.
    pub fn health_check(&self, key: &ServiceKey) -> Option<HealthCheck> {
        let state = self.services.get(key).filter(|_| key.kind == OwnerKind::Service)?;
        health_check(state.service.as_ref()?, state.slices.values())
    }

    /// Addresses that `NodePort`s are served on.
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.place.addresses
    }

    /// How a service should look; no ports when there is none, or none of ours.
    pub fn desired(&self, key: &ServiceKey) -> Vec<DesiredPort> {
        if key.kind == OwnerKind::Pod {
            return self.pods.get(key).map_or_else(Vec::new, |pod| host_ports(&pod.ports, &self.place));
        }
        let Some(state) = self.services.get(key) else { return Vec::new() };
        let Some(service) = &state.service else { return Vec::new() };
        desired(service, state.slices.values(), &self.place)
    }

    /// What becomes of each endpoint of a port, for frontends of one family and policy; nothing when there is no such port.
    pub fn judge(&self, port: &PortName, ipv4: bool, local_only: bool) -> Option<Vec<Judged>> {
        let (key, wanted) = (&port.service, (&*port.port, port.protocol));
        if key.kind == OwnerKind::Pod {
            return host_ports::judge(&self.pods.get(key)?.ports, &self.place, wanted, ipv4);
        }
        let state = self.services.get(key)?;
        let service = state.service.as_ref()?;
        judge(service, state.slices.values(), &self.place, wanted, (ipv4, local_only))
    }

    /// The zone that this node is in, if its object names one.
    pub fn zone(&self) -> Option<&str> {
        self.place.zone.as_deref()
    }

    fn apply_service(&mut self, event: Event<Service>) {
        match event {
            Event::Apply(object) => self.put_service(&object),
            Event::InitApply(object) => {
                self.reading_services.seen.insert(key(&object));
                self.put_service(&object);
            }
            Event::Delete(object) => self.remove_service(&key(&object)),
            Event::Init => self.reading_services.seen.clear(),
            Event::InitDone => {
                let seen = std::mem::take(&mut self.reading_services.seen);
                let gone: Vec<_> = self.services().filter(|key| !seen.contains(key)).cloned().collect();
                for key in &gone {
                    self.remove_service(key);
                }
                self.reading_services.complete = true;
            }
        }
    }

    fn put_service(&mut self, object: &Service) {
        let key = key(object);
        let (service, unserved) = service::service(object);
        let state = self.services.entry(key.clone()).or_default();
        state.uid = object.metadata.uid.as_deref().map(Into::into);
        if state.service != service || state.unserved != unserved {
            state.service = service;
            state.unserved = unserved;
            self.dirty.insert(key);
        }
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(state) = self.services.get_mut(key) {
            state.service = None;
            state.unserved.clear();
            self.dirty.insert(key.clone());
            self.forget_empty(key);
        }
    }

    fn apply_slice(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Apply(object) => self.put_slice(&object),
            Event::InitApply(object) => {
                self.reading_slices.seen.insert(key(&object));
                self.put_slice(&object);
            }
            Event::Delete(object) => self.remove_slice(&slice_id(&object)),
            Event::Init => self.reading_slices.seen.clear(),
            Event::InitDone => {
                let seen = std::mem::take(&mut self.reading_slices.seen);
                let gone: Vec<_> = self
                    .slice_owners
                    .keys()
                    .filter(|(namespace, name)| !seen.contains(&ServiceKey::new(namespace, name)))
                    .cloned()
                    .collect();
                for id in &gone {
                    self.remove_slice(id);
                }
                self.reading_slices.complete = true;
            }
        }
    }

    fn put_slice(&mut self, object: &EndpointSlice) {
        let id = slice_id(object);
        let owner = object.labels().get(SERVICE_NAME).map(|name| ServiceKey::new(&id.0, name));
        if self.slice_owners.get(&id) != owner.as_ref() {
            self.remove_slice(&id);
        }
        let Some(owner) = owner else { return };
        let (slice, left_out) = slice::slice(object, &self.node_name, &mut self.peers);
        let state = self.services.entry(owner.clone()).or_default();
        if state.slices.get(&id.1) != Some(&slice) {
            state.slices.insert(id.1.clone(), slice);
            self.dirty.insert(owner.clone());
        }
        let before = if left_out.is_empty() {
            state.left_out.remove(&id.1)
        } else {
            state.left_out.insert(id.1.clone(), left_out.clone())
        };
        if before.unwrap_or_default() != left_out {
            self.dirty.insert(owner.clone());
        }
        self.slice_owners.insert(id, owner);
    }

    fn remove_slice(&mut self, id: &(Box<str>, Box<str>)) {
        let Some(owner) = self.slice_owners.remove(id) else { return };
        if let Some(state) = self.services.get_mut(&owner) {
            state.slices.remove(&id.1);
            state.left_out.remove(&id.1);
            self.dirty.insert(owner.clone());
            self.forget_empty(&owner);
        }
    }

    fn forget_empty(&mut self, key: &ServiceKey) {
        if self.services.get(key).is_some_and(|state| state.service.is_none() && state.slices.is_empty()) {
            self.services.remove(key);
        }
    }
}

fn slice_id(object: &EndpointSlice) -> (Box<str>, Box<str>) {
    (object.namespace().unwrap_or_default().into(), object.name_any().into())
}

#[cfg(test)]
mod tests;
