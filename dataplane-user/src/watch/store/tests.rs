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
fn without_the_right_to_read_pods_everything_else_is_served() {
    let refused = |code: u16| {
        let status = json!({"status": "Failure", "reason": "Forbidden", "code": code});
        let status: kube::core::Status = serde_json::from_value(status).unwrap();
        kube::runtime::watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    };
    assert!(crate::watch::is_forbidden(&refused(403)) && !crate::watch::is_forbidden(&refused(500)));
    let mut store = Store::new("here");
    store.apply(Change::Service(Event::InitDone));
    store.apply(Change::Slice(Event::InitDone));
    store.apply(Change::Node(Event::InitDone));
    store.apply(Change::Failed(refused(500)));
    assert!(!store.is_complete(), "it may answer soon");
    store.apply(Change::NoPods(refused(403)));
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
            serde_json::from_value(json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}}))
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

#[test]
fn nodes_and_their_pod_ranges_are_known_while_they_are_there() {
    let node = |name: &str, address: &str, range: &str| -> Node {
        let object = json!({
            "metadata": {"name": name}, "spec": {"podCIDR": range},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        serde_json::from_value(object).unwrap()
    };
    let ranges = |store: &Store| store.pod_ranges().map(|range| range.to_string()).collect::<Vec<_>>();
    let mut store = Store::new("here");
    store.apply(Change::Node(Event::Apply(node("here", "192.0.2.1", "10.9.1.0/24"))));
    store.apply(Change::Node(Event::Apply(node("there", "192.0.2.2", "10.9.2.0/24"))));
    assert_eq!(ranges(&store), ["10.9.1.0/24", "10.9.2.0/24"]);
    assert!(store.take_nodes_moved() && !store.take_nodes_moved());
    store.apply(Change::Node(Event::Apply(node("there", "192.0.2.2", "10.9.2.0/24"))));
    assert!(!store.take_nodes_moved(), "no news");
    store.apply(Change::Node(Event::Apply(node("there", "192.0.2.2", "10.9.3.0/24"))));
    assert!(store.take_nodes_moved(), "another range");
    store.apply(Change::Node(Event::Delete(node("there", "192.0.2.2", "10.9.3.0/24"))));
    assert!(store.take_nodes_moved());
    assert_eq!((ranges(&store), store.peers().len()), (vec!["10.9.1.0/24".into()], 1));
    // A watch that is read anew without it.
    store.apply(Change::Node(Event::Init));
    store.apply(Change::Node(Event::InitDone));
    assert!(store.take_nodes_moved() && ranges(&store).is_empty());
}
