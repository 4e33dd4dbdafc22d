//! What services and backends are said to have carried, against what was sent over real links.

mod node;

use std::{collections::HashSet, net::SocketAddr, thread::sleep, time::Duration};

use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, tcp, udp},
};
use serde_json::Value;
use weir_dataplane::{
    cli::{self, Output, View, ViewArgs},
    flows::{self, Lost, TickClock},
    kernel::maps::Maps,
    names,
    traffic::Ledger,
};

/// One view of the live maps, as JSON.
fn rows(node: &TestNode, view: View) -> Vec<Value> {
    let args = ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Json };
    serde_json::from_str(&cli::view(view, &args).unwrap()).unwrap()
}

/// The agent's pass over the flows.
fn pass(node: &TestNode, ledger: &mut Ledger) {
    let clock = TickClock::start().unwrap();
    sleep(Duration::from_millis(450));
    let (now, rate) = clock.read().unwrap().expect("long enough");
    let services: HashSet<u32> = names::read(&node.paths().names()).unwrap().into_keys().collect();
    flows::pass(&Maps::open(&node.paths()).unwrap(), now, rate, ledger, &services, &Lost::default()).unwrap();
}

/// Packets of the only service's UDP port, and of its backend over both ports: requests and replies.
fn packets(node: &TestNode, backend: &str) -> ((u64, u64), (u64, u64)) {
    let pair = |row: &Value| {
        let count = |name: &str| row["traffic"][name].as_u64().unwrap_or_else(|| panic!("{row}"));
        (count("requestPackets"), count("replyPackets"))
    };
    let services = rows(node, View::Services);
    let udp: Vec<_> = services.iter().filter(|row| row["service"] == "default/s1:u/udp").map(pair).collect();
    assert!(udp.len() > 1 && udp.iter().all(|it| *it == udp[0]), "one for all its frontends: {udp:?}");
    let backends = rows(node, View::Backends);
    let of_backend: Vec<_> = backends.iter().filter(|row| row["address"] == backend).map(pair).collect();
    assert_eq!(of_backend.len(), 1, "{backends:?}");
    (udp[0], of_backend[0])
}

#[test]
fn traffic_is_counted_by_service_and_backend_across_agents_and_ends_of_flows() {
    let mut node = TestNode::new(false);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let (node_port, backend) = (SocketAddr::from((NODE_ADDRESS, 30_001)), format!("{address}:8080"));
    let open = |node: &TestNode| Ledger::adopt(&Maps::open(&node.paths()).unwrap()).unwrap();
    let mut ledger = open(&node);
    for _ in 0..3 {
        assert_eq!(udp(&node.client, node_port).unwrap().0, "a hello");
    }
    pass(&node, &mut ledger);
    assert_eq!(packets(&node, &format!("{address}:8080")), ((3, 3), (3, 3)));
    let row = rows(&node, View::Services).into_iter().find(|row| row["service"] == "default/s1:u/udp");
    let row = row.unwrap();
    // IPv4 and UDP headers, and " hello" or "a hello".
    assert_eq!(row["traffic"]["requestBytes"], 3 * (28 + 6), "{row}");
    assert_eq!(row["traffic"]["replyBytes"], 3 * (28 + 7), "{row}");

    pass(&node, &mut ledger);
    assert_eq!(packets(&node, &backend), ((3, 3), (3, 3)), "nothing is counted twice");

    // Another agent, which never saw what these flows counted before.
    assert_eq!(udp(&node.client, node_port).unwrap().0, "a hello");
    let mut ledger = open(&node);
    pass(&node, &mut ledger);
    assert_eq!(packets(&node, &backend), ((4, 4), (4, 4)));

    // TCP counts for the backend and not for the UDP port.
    assert_eq!(tcp(&node.client, node_port).unwrap(), "a hello");
    pass(&node, &mut ledger);
    let (udp_port, of_backend) = packets(&node, &backend);
    assert_eq!(udp_port, (4, 4));
    // Each side sends its greeting, a FIN, and SYN or what acknowledges it.
    assert!(of_backend.0 >= 4 + 4 && of_backend.1 >= 4 + 3, "{of_backend:?}");

    // A backend that goes leaves its share with the service.
    node.serve(1, &[]);
    let maps = Maps::open(&node.paths()).unwrap();
    for table in [&maps.v4.flows, &maps.v4.opening] {
        let keys: Vec<_> = table.entries().unwrap().into_iter().map(|(key, _)| key).collect();
        table.remove(&keys).unwrap();
    }
    pass(&node, &mut ledger);
    let services = rows(&node, View::Services);
    let udp_rows = services.iter().filter(|row| row["service"] == "default/s1:u/udp");
    for row in udp_rows {
        assert_eq!(row["traffic"]["requestPackets"], 4, "{row}");
    }
    assert!(
        maps.traffic
            .entries()
            .unwrap()
            .iter()
            .all(|(key, _)| weir_dataplane::traffic::backend(key).is_none())
    );
}
