//! What the watches have said so far, and which services the last changes concern.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{ResourceExt as _, runtime::watcher::Event};

use super::{Change, NodeFacts, Unserved, key, pods::Pods, service, slice, unserved::SliceProblem};
use crate::plan::{
    HealthCheck,
    desired::{DesiredPort, desired},
    health_check,
    host_ports::host_ports,
    model::{self, OwnerKind, ServiceKey, Slice},
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
            Change::Node(Event::Apply(node) | Event::InitApply(node)) => {
                self.node = NodeFacts::from(&node);
                self.node_read = true;
                self.set_zone();
            }
            // A node that is not registered yet still serves; so does one whose object was just deleted.
            Change::Node(Event::InitDone) => self.node_read = true,
            Change::Node(Event::Init | Event::Delete(_)) => {}
            Change::Pod(event) => self.dirty.extend(self.pods.apply(event)),
            Change::Failed(error) => tracing::warn!(%error, "a watch broke; what is programmed stays"),
        }
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
        let (slice, left_out) = slice::slice(object, &self.node_name);
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
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str) -> Service {
        let spec =
            json!({"clusterIP": "10.96.0.1", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn slice(name: &str, service: &str, address: &str) -> EndpointSlice {
        let object: Value = json!({
            "metadata": {"name": name, "namespace": "n", "labels": {SERVICE_NAME: service}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [address]}],
        });
        serde_json::from_value(object).unwrap()
    }

    fn dirty(store: &mut Store) -> Vec<String> {
        store.take_dirty().iter().map(ToString::to_string).collect()
    }

    fn serving(store: &Store, name: &str) -> usize {
        store.desired(&ServiceKey::new("n", name)).first().map_or(0, |port| port.serving(true, false).len())
    }

    #[test]
    fn nothing_is_complete_before_all_watches_are() {
        let mut store = Store::new("here");
        store.apply(Change::Service(Event::InitDone));
        store.apply(Change::Slice(Event::InitDone));
        assert!(!store.is_complete());
        store.apply(Change::Node(Event::InitDone));
        assert!(!store.is_complete());
        store.apply(Change::Pod(Event::InitDone));
        assert!(store.is_complete());
    }

    #[test]
    fn slices_before_their_service_count() {
        let mut store = Store::new("here");
        store.apply(Change::Slice(Event::Apply(slice("a-1", "a", "10.0.0.1"))));
        assert_eq!((dirty(&mut store), serving(&store, "a")), (vec!["n/a".into()], 0));
        store.apply(Change::Service(Event::Apply(service("a"))));
        assert_eq!((dirty(&mut store), serving(&store, "a")), (vec!["n/a".into()], 1));
        store.apply(Change::Service(Event::Apply(service("a"))));
        store.apply(Change::Slice(Event::Apply(slice("a-1", "a", "10.0.0.1"))));
        assert!(dirty(&mut store).is_empty(), "the same again is no change");
    }

    #[test]
    fn a_slice_may_change_sides_and_everything_may_go() {
        let mut store = Store::new("here");
        for name in ["a", "b"] {
            store.apply(Change::Service(Event::Apply(service(name))));
        }
        store.apply(Change::Slice(Event::Apply(slice("s", "a", "10.0.0.1"))));
        dirty(&mut store);
        store.apply(Change::Slice(Event::Apply(slice("s", "b", "10.0.0.1"))));
        assert_eq!(dirty(&mut store), ["n/a", "n/b"]);
        assert_eq!((serving(&store, "a"), serving(&store, "b")), (0, 1));
        store.apply(Change::Slice(Event::Delete(slice("s", "b", "10.0.0.1"))));
        store.apply(Change::Service(Event::Delete(service("b"))));
        assert_eq!((dirty(&mut store), store.keys().count()), (vec!["n/b".into()], 1));
    }

    #[test]
    fn a_second_full_read_removes_what_it_does_not_show() {
        let mut store = Store::new("here");
        store.apply(Change::Service(Event::Apply(service("a"))));
        store.apply(Change::Slice(Event::Apply(slice("s", "a", "10.0.0.1"))));
        dirty(&mut store);
        store.apply(Change::Slice(Event::Init));
        store.apply(Change::Slice(Event::InitDone));
        assert_eq!((dirty(&mut store), serving(&store, "a")), (vec!["n/a".into()], 0));
        store.apply(Change::Service(Event::Init));
        store.apply(Change::Service(Event::InitApply(service("a"))));
        store.apply(Change::Service(Event::InitDone));
        assert!(dirty(&mut store).is_empty());
    }

    #[test]
    fn a_slice_that_does_not_fit_is_told_of_its_service() {
        let told = |store: &Store| -> Vec<String> {
            let unserved = store.unserved(&ServiceKey::new("n", "a"));
            unserved.iter().map(ToString::to_string).collect()
        };
        let mut store = Store::new("here");
        let mut object = slice("a-1", "a", "fd00::1");
        object.address_type = "IPv6".into();
        object.ports.as_mut().unwrap()[0].name = Some("other".into());
        store.apply(Change::Slice(Event::Apply(object.clone())));
        assert_eq!(told(&store), [""; 0], "no Service yet");
        store.apply(Change::Service(Event::Apply(service("a"))));
        assert_eq!(
            told(&store),
            [
                "EndpointSlice a-1: port `other` (tcp) is none of the Service's; give it the name and protocol of one in spec.ports",
                "EndpointSlice a-1: its endpoints get no connections: the Service has no address of their family; add it to spec.ipFamilies",
            ]
        );
        dirty(&mut store);
        store.apply(Change::Slice(Event::Apply(slice("a-2", "a", "10.0.0.1"))));
        assert_eq!((told(&store).len(), serving(&store, "a")), (2, 1), "the other slice serves");
        dirty(&mut store);
        store.apply(Change::Slice(Event::Apply(slice("a-1", "a", "127.0.0.1"))));
        assert_eq!((dirty(&mut store), told(&store).len()), (vec!["n/a".into()], 1));
        assert!(told(&store)[0].contains("1 endpoints are left out"), "{:?}", told(&store));
        let empty = EndpointSlice { endpoints: Vec::new(), ..slice("a-1", "a", "") };
        store.apply(Change::Slice(Event::Apply(empty)));
        assert_eq!(
            (dirty(&mut store), told(&store).len()),
            (vec!["n/a".into()], 0),
            "what is right is told no more"
        );
    }

    #[test]
    fn a_pod_with_a_host_port_is_served_beside_a_service_of_its_name() {
        let mut store = Store::new("here");
        store.set_node_addresses(vec![[192, 168, 0, 1].into()]);
        let pod = |phase: &str| {
            let object = json!({
                "metadata": {"name": "a", "namespace": "n", "uid": "of-pod"},
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]},
                "status": {"phase": phase, "podIP": "10.0.0.1"},
            });
            Change::Pod(Event::Apply(serde_json::from_value(object).unwrap()))
        };
        store.apply(pod("Running"));
        store.apply(Change::Service(Event::Apply(service("a"))));
        assert_eq!(dirty(&mut store), ["n/a", "pod/n/a"]);
        let key = ServiceKey::pod("n", "a");
        assert_eq!((store.keys().count(), store.uid(&key)), (2, Some("of-pod")));
        assert_eq!(store.desired(&key)[0].frontends.len(), 2);
        store.set_node_addresses(Vec::new());
        assert_eq!(dirty(&mut store), ["n/a", "pod/n/a"]);
        store.apply(pod("Failed"));
        assert_eq!((dirty(&mut store), store.keys().count()), (vec!["pod/n/a".into()], 1));
    }

    #[test]
    fn the_nodes_zone_concerns_services_with_hints() {
        let hinted = |zones: [&str; 2]| {
            let mut object = slice("a-1", "a", "10.0.0.1");
            let endpoint = |address: &str, zone: &str| {
                serde_json::from_value(
                    json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}}),
                )
            };
            object.endpoints =
                vec![endpoint("10.0.0.1", zones[0]).unwrap(), endpoint("10.0.0.2", zones[1]).unwrap()];
            object
        };
        let node = |zone: &str| -> Change {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            let node = json!({"metadata": {"name": "here", "labels": labels}});
            Change::Node(Event::Apply(serde_json::from_value(node).unwrap()))
        };
        let mut store = Store::new("here");
        for name in ["a", "b"] {
            store.apply(Change::Service(Event::Apply(service(name))));
        }
        store.apply(Change::Slice(Event::Apply(hinted(["z1", "z2"]))));
        store.apply(Change::Slice(Event::Apply(slice("b-1", "b", "10.0.0.9"))));
        assert_eq!((dirty(&mut store), serving(&store, "a")), (vec!["n/a".into(), "n/b".into()], 2));
        store.apply(node("z2"));
        assert_eq!((dirty(&mut store), serving(&store, "a")), (vec!["n/a".into()], 1));
        store.apply(node("z2"));
        assert!(dirty(&mut store).is_empty());
        store.apply(Change::Slice(Event::Apply(hinted(["z1", "z1"]))));
        assert_eq!((dirty(&mut store), serving(&store, "a")), (vec!["n/a".into()], 2));
    }

    #[test]
    fn node_addresses_concern_node_ports() {
        let mut store = Store::new("here");
        store.apply(Change::Service(Event::Apply(service("a"))));
        dirty(&mut store);
        let address: IpAddr = [192, 168, 0, 1].into();
        store.set_node_addresses(vec![address, address]);
        assert_eq!(dirty(&mut store), ["n/a"]);
        store.set_node_addresses(vec![address]);
        assert!(dirty(&mut store).is_empty());
        assert_eq!(store.desired(&ServiceKey::new("n", "a"))[0].frontends.len(), 3);
    }
}
