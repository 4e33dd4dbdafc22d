//! A node whose kernel has no tcx: TC programs are filters of `clsact`. Agents are killed and replaced under traffic, and what
//! somebody else attached stays.

mod node;

use std::{fs, net::SocketAddr};

use aya::programs::SchedClassifier;
use node::{
    NODE_ADDRESS, TestNode, block_on,
    echo::{echo_pod, tcp, udp},
    traffic::Traffic,
};
use weir_dataplane::{
    cli::{self, Output, View, ViewArgs},
    kernel::{
        attach::{self, Tc},
        clsact::{self, Side},
    },
    programs,
};

const NODE_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 30_001);
fn cluster_ip() -> SocketAddr {
    ([10, 96, 0, 1], 80).into()
}

/// Index of the uplink.
fn uplink(node: &TestNode) -> u32 {
    node.namespace.inside(|| nix::net::if_::if_nametoindex("up0")).unwrap()
}

/// Ids of the programs on the uplink, in and out.
fn on_uplink(node: &TestNode) -> [Option<u32>; 2] {
    let ifindex = uplink(node);
    [(false, programs::TC_UPLINK), (true, programs::TC_EGRESS)].map(|(egress, name)| {
        node.namespace.inside(|| clsact::program(Side { ifindex, egress }, name)).unwrap()
    })
}

fn tc(node: &TestNode, words: &str) -> String {
    let output = node.namespace.command("tc").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A filter of somebody else on the uplink's way in. It matches nothing.
fn add_filter(node: &TestNode, place: &str) {
    let mut command = node.namespace.command("tc");
    command.args(["filter", "add", "dev", "up0", "ingress"]).args(place.split(' '));
    command.args(["bpf", "bytecode", "1,6 0 0 0,", "flowid", "1:1"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{place}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lines about filters on the uplink's way in that have this priority.
fn filters(node: &TestNode, priority: u16) -> usize {
    let shown = tc(node, "filter show dev up0 ingress");
    shown
        .lines()
        .filter(|line| line.contains(&format!(" pref {priority} ")) && line.contains("handle"))
        .count()
}

#[test]
fn agents_are_killed_and_replaced() {
    let mut node = TestNode::attaching(Tc::Clsact, false);
    let pods = [echo_pod(&node, "a"), echo_pod(&node, "b")];
    let (client, _) = node.add_pod("client");
    node.serve(1, &[pods[0].1, pods[1].1]);
    add_filter(&node, "pref 86");
    assert_eq!(udp(&client, cluster_ip()).unwrap().1, cluster_ip());
    let traffic =
        [Traffic::start(&client, cluster_ip(), "ab"), Traffic::start(&node.client, NODE_PORT, "ab")];
    for round in 0..5 {
        let before = on_uplink(&node);
        assert!(before.iter().all(Option::is_some), "{before:?}");
        node.kill();
        traffic.iter().for_each(Traffic::goes_on);
        assert_eq!(on_uplink(&node), before, "the agent is gone and its programs are not");
        if round == 4 {
            // As when bpffs was lost: filters are found by what they are.
            for name in [programs::TC_UPLINK, programs::TC_EGRESS] {
                fs::remove_file(node.paths().link(&format!("{name}_{}", uplink(&node)))).unwrap();
            }
        }
        node.start();
        traffic.iter().for_each(Traffic::goes_on);
        let after = on_uplink(&node);
        assert!(before.iter().zip(&after).all(|(before, after)| after.is_some() && before != after));
        assert_eq!((filters(&node, clsact::PRIORITY), filters(&node, 86)), (1, 1), "no packet meets two");
    }
    for traffic in traffic {
        let [exchanges, connections] = traffic.finish();
        assert!(exchanges > 0 && connections > 0);
    }
    let view = ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Json };
    let status: serde_json::Value = serde_json::from_str(&cli::view(View::Status, &view).unwrap()).unwrap();
    let modes = status["links"].as_array().unwrap().iter();
    let modes: Vec<&str> = modes.map(|link| link["mode"].as_str().unwrap()).collect();
    assert_eq!(modes.iter().filter(|mode| **mode == "clsact").count(), 8, "the uplink's, and three pods'");
    assert_eq!(modes.iter().filter(|mode| **mode == "xdp").count(), 1);
}

#[test]
fn a_pods_filters_go_with_its_link_and_the_rest_by_detaching() {
    let mut node = TestNode::attaching(Tc::Clsact, false);
    let (pod, address) = echo_pod(&node, "a");
    let (client, _) = node.add_pod("client");
    node.serve(1, &[address]);
    assert_eq!(tcp(&client, cluster_ip()).unwrap(), "a hello");
    node.cni("DEL", "client", &client);
    let pins = attach::list(&node.paths().links()).unwrap();
    assert_eq!(pins.iter().filter(|pin| pin.starts_with("pod")).count(), 2, "{pins:?}");
    add_filter(&node, "pref 86");
    // Another handle of the same priority is another's as well.
    add_filter(&node, &format!("pref {} handle 1", clsact::PRIORITY));
    node.kill();
    assert_eq!(tcp(&node.client, NODE_PORT).unwrap(), "a hello");
    // Lost pins hide nothing.
    let pin = format!("{}_{}", programs::TC_UPLINK, uplink(&node));
    fs::remove_file(node.paths().link(&pin)).unwrap();
    let run_dir = node.paths().run_dir().to_owned();
    node.namespace.inside(|| block_on(weir_dataplane::detach(&run_dir))).unwrap();
    assert_eq!(on_uplink(&node), [None, None]);
    assert_eq!((filters(&node, clsact::PRIORITY), filters(&node, 86)), (1, 1), "others' stay");
    assert!(tcp(&node.client, NODE_PORT).is_err(), "nobody serves");
    assert_eq!(tcp(&pod, SocketAddr::new(address.into(), 8080)).unwrap(), "a hello", "the pod has its link");
}

#[test]
fn a_filter_of_somebody_else_is_not_replaced() {
    let node = TestNode::attaching(Tc::Clsact, false);
    let ifindex = uplink(&node);
    let side = Side { ifindex, egress: false };
    node.namespace.inside(|| clsact::remove(side, programs::TC_UPLINK)).unwrap();
    add_filter(&node, &format!("pref {} handle {:#x}", clsact::PRIORITY, clsact::HANDLE));
    let error = node.namespace.inside(|| {
        let mut program = SchedClassifier::from_pin(node.paths().program(programs::TC_UPLINK)).unwrap();
        let pin = node.paths().link("test");
        attach::attach_tc(Tc::Clsact, &mut program, programs::TC_UPLINK, "up0", &pin).unwrap_err().to_string()
    });
    assert!(error.contains("a filter of somebody else (no name) has priority 87"), "{error}");
    node.namespace.inside(|| clsact::remove_all(ifindex)).unwrap();
    assert_eq!(filters(&node, clsact::PRIORITY), 1, "it is not removed either");
    assert!(!node.paths().link("test").exists(), "nothing says that it is Weir's");
}

#[test]
fn an_older_discipline_in_the_place_is_told() {
    let node = TestNode::attaching(Tc::Clsact, false);
    node.namespace.ip("link add pair0 type veth peer name pair1").unwrap();
    tc(&node, "qdisc add dev pair0 ingress");
    let error = node.namespace.inside(|| {
        let mut program = SchedClassifier::from_pin(node.paths().program(programs::TC_EGRESS)).unwrap();
        let pin = node.paths().link("test");
        attach::attach_tc(Tc::Clsact, &mut program, programs::TC_EGRESS, "pair0", &pin)
            .unwrap_err()
            .to_string()
    });
    assert!(error.contains("put `clsact` in its place"), "{error}");
}
