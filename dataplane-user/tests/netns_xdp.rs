//! Where XDP runs on an uplink: as it is configured, changed by the next start, and harming no traffic.

mod node;

use node::{NODE_ADDRESS, TestNode, echo::echo_pod, traffic::Traffic};
use weir_dataplane::{
    cli::{self, Output, View, ViewArgs},
    kernel::xdp::Acceleration,
};

/// What status says of the uplink, and whether the kernel has it in the driver and in the stack.
fn running(node: &TestNode) -> (String, [bool; 2]) {
    let args = ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Json };
    let status = node.namespace.inside(|| cli::view(View::Status, &args).unwrap());
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let link = node.namespace.ip("link show dev up0").unwrap();
    let has = |word: &str| link.split_whitespace().any(|it| it == word);
    (status["uplinks"][0]["xdp"].as_str().unwrap().to_owned(), [has("xdp"), has("xdpgeneric")])
}

#[test]
fn each_start_may_run_it_elsewhere() {
    let mut node = TestNode::new(false);
    let (_pod, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let traffic = Traffic::start(&node.client, (NODE_ADDRESS, 30_001).into(), "a");
    for (acceleration, said, seen) in [
        (Acceleration::Generic, "generic", [false, true]),
        // What a veth would keep, it is not given.
        (Acceleration::Auto, "none", [false, false]),
        (Acceleration::Native, "native", [true, false]),
        (Acceleration::Native, "native", [true, false]),
        (Acceleration::Generic, "generic", [false, true]),
        (Acceleration::Off, "none", [false, false]),
    ] {
        node.kill();
        node.acceleration = acceleration;
        node.start();
        assert_eq!(running(&node), (said.to_owned(), seen), "{acceleration:?}");
        traffic.goes_on();
    }
    traffic.finish();
}
