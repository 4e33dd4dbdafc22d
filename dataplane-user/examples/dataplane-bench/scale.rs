//! How services become map entries: many from nothing, one more, and what all of them weigh.
//!
//! From the API's object to the last map write, in this process and with the real maps: what a round trip to an API
//! server adds is not Weir's part.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use weir_tests::{
    Goal, Namespace, Row,
    rules::{self, Endpoint, Family, ServicePort, iptables, nftables},
};

use crate::{
    node::TestNode,
    objects::{self, Objects},
};

/// Runs of each figure.
const RUNS: usize = 5;
/// Services that are added one by one.
const CHANGES: u32 = 1_000;
/// Endpoints of a service.
const ENDPOINTS: u32 = 3;
/// Services that rulesets are loaded with.
const RULES: u32 = 10_000;

/// The word that makes this executable an agent's state: `remember SERVICES ENDPOINTS`.
pub(crate) const WORD: &str = "remember";

/// Milliseconds that the work takes.
fn time<T>(work: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    work();
    milliseconds(started.elapsed())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn measure() -> Vec<Row> {
    let rules = rules_rows();
    let mut rows = Vec::new();
    for (size, goal_ms, peer) in [(10_000, 1_000.0, Some(&rules[0])), (50_000, 5_000.0, None)] {
        let row = Row::of(format!("load {size} services from empty"), "ms", &load(size));
        let row = peer.map_or_else(|| row.clone(), |peer| row.clone().beside(peer));
        rows.push(row.goal(Goal::AtMost(goal_ms)));
    }
    let changes = one_more(RULES);
    let name = format!("one more service at {RULES}, own part");
    rows.push(Row::of(format!("{name}, median"), "ms", &changes).beside(&rules[1]));
    rows.push(Row::high(format!("{name}, p99"), "ms", &changes).beside(&rules[1]).goal(Goal::AtMost(1.0)));
    for (services, endpoints, bound_mib) in [(10_000, 3, 80.0), (5_000, 50, 200.0)] {
        rows.extend(weigh(services, endpoints, bound_mib));
    }
    rows.extend(rules);
    rows
}

fn all(size: u32, endpoints: u32) -> Vec<Objects> {
    rules::many(size, endpoints).iter().map(objects::of).collect()
}

/// Loads so many services into empty maps, again and again.
fn load(size: u32) -> Vec<f64> {
    let all = all(size, ENDPOINTS);
    let one = |_| {
        let mut node = TestNode::new(false);
        let copy = all.clone();
        time(|| {
            for objects in copy {
                objects::apply(&mut node.store, objects);
            }
            node.sync();
        })
    };
    (0..RUNS).map(one).collect()
}

/// Adds services one by one to so many.
fn one_more(size: u32) -> Vec<f64> {
    let mut node = TestNode::new(false);
    let mut all = all(size + CHANGES, ENDPOINTS);
    let more = all.split_off(size as usize);
    for objects in all {
        objects::apply(&mut node.store, objects);
    }
    node.sync();
    let one = |objects| {
        time(|| {
            objects::apply(&mut node.store, objects);
            node.sync();
        })
    };
    more.into_iter().map(one).collect()
}

/// Rulesets: loaded from empty, and one more service. Nftables first.
fn rules_rows() -> Vec<Row> {
    let facts = rules::many_node([192, 0, 2, 1].into());
    let services = rules::many(RULES, ENDPOINTS);
    let extra = |n: u32| ServicePort {
        endpoints: vec![Endpoint::ready((rules::many_endpoint(n, 0, ENDPOINTS), 80).into(), true)],
        ..ServicePort::new(&format!("extra{n}"), rules::many_cluster_ip(n).into())
    };
    let (mut load_nft, mut load_iptables) = (Vec::new(), Vec::new());
    let (mut more_nft, mut more_iptables) = (Vec::new(), Vec::new());
    for run in 0..RUNS as u32 {
        let node = Namespace::new().expect("a namespace");
        let transactions = nftables::render(&facts, Family::V4, &services);
        load_nft.push(time(|| nftables::load(&node, &transactions).expect("the kernel takes the rules")));
        let one = nftables::render(&facts, Family::V4, &[extra(RULES + run)]);
        // What every node has is there already.
        more_nft.push(time(|| nftables::load(&node, &one[1..]).expect("the kernel takes the rules")));

        let node = Namespace::new().expect("a namespace");
        let text = iptables::render(&facts, Family::V4, &services);
        let load = |text: &str| iptables::load(&node, Family::V4, text).expect("the kernel takes the rules");
        load_iptables.push(time(|| load(&text)));
        let mut more = services.clone();
        more.push(extra(RULES + run));
        let text = iptables::render_change(&facts, Family::V4, &more, more.len() - 1);
        more_iptables.push(time(|| load(&text)));
    }
    vec![
        Row::of(format!("load {RULES} services from empty, nftables in chunks"), "ms", &load_nft),
        Row::of(format!("one more service at {RULES}, nftables"), "ms", &more_nft),
        Row::of(format!("load {RULES} services from empty, iptables"), "ms", &load_iptables),
        Row::of(format!("one more service at {RULES}, iptables"), "ms", &more_iptables),
    ]
}

/// What a process weighs that holds an agent's state of so many services, and what its maps do.
fn weigh(services: u32, endpoints: u32, bound_mib: f64) -> [Row; 2] {
    let own = std::env::current_exe().expect("this executable");
    let one = |_| {
        let words = [WORD.to_owned(), services.to_string(), endpoints.to_string()];
        let output = Command::new(&own).args(words).output().expect("this executable starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let (pss, maps) = text.trim().split_once(' ').unwrap_or_else(|| panic!("`{text}`: {errors}"));
        (pss.parse::<f64>().expect("a number"), maps.parse::<f64>().expect("a number"))
    };
    let (pss, maps): (Vec<f64>, Vec<f64>) = (0..RUNS).map(one).unzip();
    let name = format!("{services} services × {endpoints}");
    [
        Row::of(format!("agent memory (PSS), {name}"), "MiB", &pss).goal(Goal::AtMost(bound_mib)),
        Row::of(format!("memory of the maps, {name}"), "MiB", &maps),
    ]
}

/// The child's whole life: an agent's state, made as the watch makes it, one object at a time.
pub(crate) fn remember(words: &[String]) {
    let [services, endpoints] = words else { panic!("{WORD} SERVICES ENDPOINTS") };
    let (services, endpoints) = (services.parse().expect("a number"), endpoints.parse().expect("a number"));
    let mut node = TestNode::new(false);
    for n in 0..services {
        objects::apply(&mut node.store, objects::of(&rules::many_one(n, endpoints)));
    }
    node.sync();
    println!("{} {}", pss_mib(), maps_mib());
}

fn kibibytes(text: &str, field: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field}"));
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("`{line}`"))
}

fn pss_mib() -> f64 {
    kibibytes(&fs::read_to_string("/proc/self/smaps_rollup").expect("Linux 4.14"), "Pss:") / 1024.0
}

/// Every map that this process holds a descriptor of, once.
fn maps_mib() -> f64 {
    let mut maps = std::collections::BTreeMap::new();
    for file in fs::read_dir("/proc/self/fdinfo").expect("one's own descriptors").flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        if text.contains("map_id:") {
            maps.insert(kibibytes(&text, "map_id:") as u64, kibibytes(&text, "memlock:"));
        }
    }
    maps.values().sum::<f64>() / f64::from(1 << 20)
}
