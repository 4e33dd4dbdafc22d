use super::*;
use crate::plan::model::{Endpoint, SlicePort};

fn service() -> Service {
    let port = ServicePort { name: "http".into(), protocol: Protocol::TCP, port: 80, node_port: Some(30080) };
    Service { cluster_ips: vec!["10.96.0.1".parse().unwrap()], ports: vec![port], ..Service::default() }
}

/// `r`eady, `s`erving, `t`erminating, `l`ocal; with hints for zones `a` and `b`.
fn slice(endpoints: &[(&str, &str)]) -> Slice {
    let endpoint = |(address, state): &(&str, &str)| Endpoint {
        address: address.parse().unwrap(),
        ready: state.contains('r'),
        serving: state.contains('s'),
        terminating: state.contains('t'),
        local: state.contains('l'),
        node: crate::plan::model::NodeId::NONE,
        zones: u64::from(state.contains('a')) | u64::from(state.contains('b')) << 1,
    };
    Slice {
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::TCP, port: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        zones: vec!["zone-a".into(), "zone-b".into()],
    }
}

fn chosen(service: &Service, slices: &[Slice], local_only: bool) -> Vec<String> {
    chosen_in(None, service, slices, local_only)
}

fn chosen_in(zone: Option<&str>, service: &Service, slices: &[Slice], local_only: bool) -> Vec<String> {
    let node = Node { zone: zone.map(Into::into), ..Node::default() };
    let port = &desired(service, slices.iter(), &node)[0];
    port.serving(true, local_only).iter().map(|a| a.ip().to_string()).collect()
}

#[test]
fn ready_endpoints_serve_then_terminating_ones_then_none() {
    /// Endpoints, and who serves for the policies Cluster and Local.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

    let cases: &[Case<'_>] = &[
        (&[("1.1.1.1", "rs"), ("1.1.1.2", "rsl")], &["1.1.1.1", "1.1.1.2"], &["1.1.1.2"]),
        (&[("1.1.1.1", "rs"), ("1.1.1.2", "stl")], &["1.1.1.1"], &["1.1.1.2"]),
        (&[("1.1.1.1", "st"), ("1.1.1.2", "t")], &["1.1.1.1"], &[]),
        (&[("1.1.1.1", ""), ("1.1.1.2", "s")], &[], &[]),
    ];
    for (endpoints, cluster, local) in cases {
        let slices = [slice(endpoints)];
        assert_eq!(chosen(&service(), &slices, false), *cluster, "{endpoints:?}");
        assert_eq!(chosen(&service(), &slices, true), *local, "{endpoints:?} on this node");
    }
    let all = Service { publish_not_ready: true, ..service() };
    assert_eq!(chosen(&all, &[slice(&[("1.1.1.1", "")])], false), ["1.1.1.1"]);
}

/// The rows of kube-proxy's `TestCategorizeEndpoints` that hints decide.
#[test]
fn hints_narrow_ready_endpoints_where_no_policy_does() {
    /// What it is about, the node's zone, endpoints, and who serves.
    type Row<'a> = (&'a str, Option<&'a str>, &'a [(&'a str, &'a str)], &'a [&'a str]);

    let (a, b, c) = ("1.1.1.1", "1.1.1.2", "1.1.1.3");
    let rows: &[Row<'_>] = &[
        ("this zone's", Some("zone-a"), &[(a, "rsa"), (b, "rsb"), (c, "rsa")], &[a, c]),
        ("the other zone's", Some("zone-b"), &[(a, "rsa"), (b, "rsb"), (c, "rsa")], &[b]),
        ("for both zones", Some("zone-b"), &[(a, "rsab"), (b, "rsb"), (c, "rsa")], &[a, b]),
        ("no hints at all", Some("zone-a"), &[(a, "rs"), (b, "rs")], &[a, b]),
        ("one without", Some("zone-a"), &[(a, "rsa"), (b, "rs")], &[a, b]),
        ("none for this zone", Some("zone-c"), &[(a, "rsa"), (b, "rsb")], &[a, b]),
        ("a node without a zone", None, &[(a, "rsa"), (b, "rsb")], &[a, b]),
        ("unready ones do not count", Some("zone-a"), &[(a, "rsa"), (b, "rsb"), (c, "")], &[a]),
        ("nor do terminating ones", Some("zone-a"), &[(a, "rsa"), (b, "rsb"), (c, "st")], &[a]),
        ("this zone's is not ready", Some("zone-a"), &[(a, "a"), (b, "rsb")], &[b]),
        ("terminating ones from anywhere", Some("zone-a"), &[(a, "sta"), (b, "stb")], &[a, b]),
    ];
    for (row, zone, endpoints, cluster) in rows {
        assert_eq!(chosen_in(*zone, &service(), &[slice(endpoints)], false), *cluster, "{row}");
    }
    let here = [slice(&[(a, "rslb"), (b, "rsa")])];
    assert_eq!(chosen_in(Some("zone-a"), &service(), &here, true), [a], "policy Local");
    let families = [slice(&[(a, "rsa"), (b, "rsb"), ("fd00::1", "rs")])];
    assert_eq!(chosen_in(Some("zone-a"), &service(), &families, false), [a], "each family by its own hints");
    let all = Service { publish_not_ready: true, ..service() };
    assert_eq!(chosen_in(Some("zone-a"), &all, &[slice(&[(a, "a"), (b, "rsb")])], false), [a]);
}

#[test]
fn every_existing_endpoint_keeps_its_connections() {
    let port =
        &desired(&service(), [slice(&[("1.1.1.1", ""), ("1.1.1.2", "rs")])].iter(), &Node::default())[0];
    assert_eq!(port.backends.len(), 2);
}

#[test]
fn slices_add_up_and_duplicates_count_once() {
    let slices = [slice(&[("1.1.1.1", "rs")]), slice(&[("1.1.1.1", "t"), ("1.1.1.2", "rs")])];
    assert_eq!(chosen(&service(), &slices, false), ["1.1.1.1", "1.1.1.2"]);
    let mut other = slice(&[("1.1.1.9", "rs")]);
    other.ports[0].name = "metrics".into();
    assert!(chosen(&service(), &[other.clone()], false).is_empty(), "another port's slice");
    other.ports[0].name = "http".into();
    other.ports[0].protocol = Protocol::UDP;
    assert!(chosen(&service(), &[other], false).is_empty(), "another protocol's slice");
}

#[test]
fn only_endpoints_elsewhere_make_a_silent_drop() {
    let service = Service { internal_local: true, ..service() };
    let flags = |endpoints: &[(&str, &str)]| {
        desired(&service, [slice(endpoints)].iter(), &Node::default())[0].frontends[0].flags
    };
    let local = Frontend::FLAG_LOCAL_POLICY | Frontend::FLAG_CLUSTER_IP;
    assert_eq!(flags(&[]), local, "nobody serves: rejected");
    assert_eq!(flags(&[("1.1.1.1", "")]), local, "nobody serves: rejected");
    assert_eq!(flags(&[("1.1.1.1", "rs")]), local | Frontend::FLAG_SERVED_ELSEWHERE);
    assert_eq!(flags(&[("1.1.1.1", "rs"), ("1.1.1.2", "rsl")]), local, "served here");
}

#[test]
fn source_ranges_bind_load_balancer_addresses_and_nothing_else() {
    let restricted = |ranges: &[&str]| Service {
        load_balancer_ips: vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
        external_ips: vec!["192.0.2.2".parse().unwrap(), "192.0.2.3".parse().unwrap()],
        source_ranges: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
        ..service()
    };
    let nodes = Node { addresses: vec!["192.168.0.1".parse().unwrap()], zone: None, ..Node::default() };
    let rows = |service: &Service| -> Vec<String> {
        let port = &desired(service, [].iter(), &nodes)[0];
        let rows = port.frontends.iter();
        rows.map(|f| format!("{} scope={} flags={}", f.address, f.address.scope, f.flags)).collect()
    };
    let open = ["tcp://192.0.2.3:80 scope=0 flags=0", "tcp://192.0.2.3:80 scope=1 flags=0"];
    let node_port = ["tcp://192.168.0.1:30080 scope=0 flags=2", "tcp://192.168.0.1:30080 scope=1 flags=2"];
    let with = |ranges: &[&str], inside: u32| -> Vec<String> {
        let mut rows = vec!["tcp://10.96.0.1:80 scope=1 flags=64".to_owned()];
        for address in ["192.0.2.1", "192.0.2.2"] {
            rows.push(format!("tcp://{address}:80 scope=0 flags=8"));
            rows.push(format!("tcp://{address}:80 scope=1 flags={inside}"));
        }
        rows.extend(open.iter().chain(&node_port).map(ToString::to_string));
        assert_eq!(desired(&restricted(ranges), [].iter(), &nodes)[0].source_ranges.len(), ranges.len());
        rows
    };
    assert_eq!(rows(&restricted(&["10.0.0.0/8"])), with(&["10.0.0.0/8"], 8));
    let with_node = ["10.0.0.0/8", "192.168.0.0/24"];
    assert_eq!(rows(&restricted(&with_node)), with(&with_node, 24), "the node itself is in a range");
    assert_eq!(rows(&restricted(&[])), with(&[], 8), "nobody is not everyone");
    assert_eq!(rows(&restricted(&["fd00::/8"])), with(&["fd00::/8"], 8), "nor is the other family");

    let unused = Service { load_balancer_ips: Vec::new(), ..restricted(&["10.0.0.0/8"]) };
    assert!(desired(&unused, [].iter(), &nodes)[0].source_ranges.is_empty(), "nobody asks for them");
}

#[test]
fn policies_bind_the_scope_they_are_for() {
    let service =
        Service { external_local: true, external_ips: vec!["192.0.2.1".parse().unwrap()], ..service() };
    let addresses = vec!["192.168.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let nodes = Node { addresses, zone: None, ..Node::default() };
    let port = &desired(&service, [].iter(), &nodes)[0];
    let rows: Vec<String> = port
        .frontends
        .iter()
        .map(|f| format!("{} scope={} local={} flags={}", f.address, f.address.scope, f.local_only, f.flags))
        .collect();
    assert_eq!(
        rows,
        [
            "tcp://10.96.0.1:80 scope=1 local=false flags=64",
            "tcp://192.0.2.1:80 scope=0 local=true flags=1",
            "tcp://192.0.2.1:80 scope=1 local=false flags=0",
            "tcp://192.168.0.1:30080 scope=0 local=true flags=3",
            "tcp://192.168.0.1:30080 scope=1 local=false flags=2",
        ],
        "a service of one family has no frontends of the other"
    );
}

#[test]
fn each_endpoint_is_judged_and_those_that_serve_are_those_that_are_taken() {
    /// What it is about, the policy, endpoints, and their verdicts.
    type Row<'a> = (&'a str, bool, &'a [(&'a str, &'a str)], &'a [&'a str]);

    let (a, b, c, six) = ("1.1.1.1", "1.1.1.2", "1.1.1.3", "fd00::1");
    let rows: &[Row<'_>] = &[
        ("ready and not", false, &[(a, "rs"), (b, ""), (c, "s")], &["ready", "not-ready", "not-ready"]),
        ("terminating", false, &[(a, "rs"), (b, "st"), (c, "t")], &["ready", "terminating", "ended"]),
        ("none is ready", false, &[(a, "st"), (b, "t"), (c, "")], &["last-resort", "ended", "not-ready"]),
        ("policy Local", true, &[(a, "rs"), (b, "rsl"), (c, "l")], &["not-local", "ready", "not-ready"]),
        ("nothing here", true, &[(a, "rs"), (b, "l")], &["not-local", "not-ready"]),
        ("zones", false, &[(a, "rsa"), (b, "rsb"), (c, "st")], &["near", "other-zone", "terminating"]),
        ("half the hints", false, &[(a, "rsa"), (b, "rs")], &["ready", "ready"]),
        ("policy before zones", true, &[(a, "rsla"), (b, "rslb")], &["ready", "ready"]),
        ("families", false, &[(a, "rs"), (six, "rs")], &["ready", "other-family"]),
    ];
    let node = Node { zone: Some("zone-a".into()), ..Node::default() };
    let judged = |service: &Service, slices: &[Slice], ipv4: bool, local_only: bool| {
        judge(service, slices.iter(), &node, ("http", Protocol::TCP.0), (ipv4, local_only)).unwrap()
    };
    let text = |verdict: Verdict| serde_json::to_value(verdict).unwrap().as_str().unwrap().to_owned();
    for (row, local_only, endpoints, verdicts) in rows {
        let slices = [slice(endpoints)];
        let found = judged(&service(), &slices, true, *local_only);
        assert_eq!(found.iter().map(|it| text(it.verdict)).collect::<Vec<_>>(), *verdicts, "{row}");
        for (ipv4, local_only) in [(true, false), (true, true), (false, false), (false, true)] {
            let found = judged(&service(), &slices, ipv4, local_only);
            let taken = found.iter().filter(|it| it.verdict.takes()).map(|it| it.address);
            let port = &desired(&service(), slices.iter(), &node)[0];
            assert_eq!(taken.collect::<Vec<_>>(), port.serving(ipv4, local_only), "{row}");
        }
    }
    let all = Service { publish_not_ready: true, ..service() };
    assert_eq!(judged(&all, &[slice(&[(a, "")])], true, false)[0].verdict, Verdict::Ready);
    let twice = [slice(&[(a, "t")]), slice(&[(a, "rs")])];
    let once = judged(&service(), &twice, true, false);
    assert_eq!(once.len(), 1);
    assert_eq!((once[0].verdict, once[0].listed), (Verdict::Ready, 2), "as its best entry");
    let wanted = [("web", Protocol::TCP.0), ("http", Protocol::UDP.0)];
    for wanted in wanted {
        assert_eq!(judge(&service(), [].iter(), &node, wanted, (true, false)), None, "no such port");
    }
}

#[test]
fn what_has_no_room_is_judged_too() {
    let address = |n: usize| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
    let addresses: Vec<String> = (0..MAX_ENDPOINTS + 2).map(address).collect();
    let slices = [slice(&addresses.iter().map(|it| (it.as_str(), "rs")).collect::<Vec<_>>())];
    let judged =
        judge(&service(), slices.iter(), &Node::default(), ("http", Protocol::TCP.0), (true, false)).unwrap();
    let left_out: Vec<String> = judged
        .iter()
        .filter(|it| it.verdict == Verdict::NoRoom)
        .map(|it| it.address.ip().to_string())
        .collect();
    assert_eq!(left_out, addresses[MAX_ENDPOINTS..]);
    assert_eq!(judged.len(), MAX_ENDPOINTS + 2);
}

#[test]
fn forwarding_modes_are_for_clients_outside() {
    use ForwardingMode::{Dsr, DsrOption, Snat};

    let flags = |node: ForwardingMode, service_says: Option<ForwardingMode>, endpoints: &[(&str, &str)]| {
        let service = Service {
            forwarding: service_says,
            external_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..service()
        };
        let node = Node { forwarding: node, ..Node::default() };
        let port = &desired(&service, [slice(endpoints)].iter(), &node)[0];
        let of = |address: &str, scope: Scope| {
            let address = address.parse::<IpAddr>().unwrap();
            let wanted = |it: &&DesiredFrontend| it.address.address == address && it.address.scope == scope.0;
            port.frontends.iter().find(wanted).unwrap().flags
        };
        assert_eq!(of("192.0.2.1", Scope::INTERNAL), 0, "clients inside are masqueraded");
        [of("192.0.2.1", Scope::EXTERNAL), of("2001:db8::1", Scope::EXTERNAL)]
    };
    let (tunnel, option) = (Frontend::FLAG_DIRECT_RETURN, Frontend::FLAG_OPTION);
    let plain: &[_] = &[("1.1.1.1", "rs")];
    let hinted: &[_] = &[("1.1.1.1", "rsa"), ("1.1.1.2", "rs")];
    assert_eq!(flags(Snat, None, plain), [0, 0]);
    assert_eq!(flags(Dsr, None, plain), [tunnel, tunnel]);
    assert_eq!(flags(DsrOption, None, plain), [tunnel | option, tunnel], "IPv6 has no such option");
    assert_eq!(flags(DsrOption, None, hinted), [tunnel, tunnel], "nodes need not agree");
    assert_eq!(flags(DsrOption, Some(Snat), plain), [0, 0], "the Service decides");
    assert_eq!(flags(Snat, Some(DsrOption), plain), [tunnel | option, tunnel]);
}
