//! `weir dataplane monitor`, the executable itself, beside real packets.

#[path = "../../../dataplane-user/tests/node/mod.rs"]
mod node;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use node::{
    NODE_ADDRESS, TestNode,
    echo::{echo_pod, tcp, udp},
};
use serde_json::Value;
use weir_dataplane::{cli, kernel::maps::Table};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running monitor, killed on drop.
struct Monitor {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

/// Until when the programs tell, in nanoseconds since boot.
fn until(node: &TestNode) -> u64 {
    Table::<u32, u64>::open(&node.paths().map("monitor")).unwrap().at(0).unwrap()
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

impl Monitor {
    /// Starts one, and waits until the programs know of it.
    fn start(node: &TestNode, flags: &[&str]) -> Self {
        let before = until(node);
        let mut command = node.namespace.command(env!("CARGO_BIN_EXE_weir"));
        command.args(["dataplane", "--run-dir"]).arg(node.paths().run_dir()).arg("monitor").args(flags);
        command.env_remove("KUBECONFIG").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        wait_for("the programs are told of a listener", || until(node) > before);
        Self { process, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("it goes on").unwrap()
    }

    /// The next event, as JSON.
    fn event(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn flows_and_drops_are_shown_with_names_until_it_is_interrupted() {
    let mut node = TestNode::new(false);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    node.serve(2, &[]);
    let served: SocketAddr = (NODE_ADDRESS, 30_001).into();
    let empty: SocketAddr = (NODE_ADDRESS, 30_002).into();
    let mut monitor = Monitor::start(&node, &["-o", "json"]);
    assert_eq!(udp(&node.client, served).unwrap().0, "a hello");
    let backend = format!("{address}:8080");
    for event in ["opened", "established"] {
        let row = monitor.event();
        assert_eq!(row["event"], event, "{row}");
        assert_eq!(row["service"], "default/s1:u/udp", "{row}");
        assert_eq!(
            (&row["protocol"], &row["destination"]),
            (&"udp".into(), &served.to_string().into()),
            "{row}"
        );
        assert_eq!(row["backend"], backend, "{row}");
        assert!(row["source"].as_str().unwrap().starts_with("192.0.2.2:"), "{row}");
        assert!(row["time"].as_str().unwrap().ends_with('Z'), "{row}");
    }
    tcp(&node.client, empty).unwrap_err();
    let row = monitor.event();
    assert_eq!((&row["event"], &row["reason"]), (&"dropped".into(), &"no-backend".into()), "{row}");
    assert_eq!((&row["service"], &row["interface"]), (&"default/s2:t".into(), &"up0".into()), "{row}");

    // A second one would take the first one's events.
    let second = node
        .namespace
        .command(env!("CARGO_BIN_EXE_weir"))
        .args(["dataplane", "--run-dir"])
        .arg(node.paths().run_dir())
        .arg("monitor")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("somebody listens already"), "{said}");

    monitor.signal(Signal::SIGINT);
    assert!(monitor.process.wait().unwrap().success());
    assert_eq!(until(&node), 0, "the programs tell nothing any more");
}

#[test]
fn only_what_was_asked_for_is_shown() {
    let mut node = TestNode::new(false);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    node.serve(2, &[address]);
    node.serve(3, &[]);
    let ask = |node: &TestNode, n: u16| udp(&node.client, (NODE_ADDRESS, 30_000 + n).into());
    let flags = ["--service", "default/s2", "--kind", "flow", "--protocol", "udp", "--count", "1"];
    let mut monitor = Monitor::start(&node, &flags);
    tcp(&node.client, (NODE_ADDRESS, 30_003).into()).unwrap_err();
    ask(&node, 1).unwrap();
    ask(&node, 2).unwrap();
    let line = monitor.line();
    let expected = format!("192.0.2.1:30002 (default/s2:u/udp) -> {address}:8080");
    assert!(line.contains(" opened ") && line.contains(&expected), "{line}");
    assert!(monitor.process.wait().unwrap().success(), "it ends after so many");
    assert_eq!(until(&node), 0);
}

#[test]
fn one_that_is_killed_is_forgotten_and_another_takes_over() {
    let mut node = TestNode::new(false);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let mut monitor = Monitor::start(&node, &[]);
    monitor.signal(Signal::SIGKILL);
    monitor.process.wait().unwrap();
    let left = until(&node);
    let now = weir_dataplane::kernel::events::since_boot().unwrap().as_nanos() as u64;
    assert!(left > 0 && left < now + cli::LISTEN.as_nanos() as u64, "it ends by itself");
    // What was told to nobody is not told to the next one.
    udp(&node.client, (NODE_ADDRESS, 30_001).into()).unwrap();
    let mut monitor = Monitor::start(&node, &["--kind", "drop", "-o", "json"]);
    node.serve(1, &[]);
    tcp(&node.client, (NODE_ADDRESS, 30_001).into()).unwrap_err();
    assert_eq!(monitor.event()["reason"], "no-backend");
}

#[test]
fn a_monitor_goes_on_with_the_programs_of_the_next_agent() {
    let mut node = TestNode::new(false);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let served: SocketAddr = (NODE_ADDRESS, 30_001).into();
    let mut monitor = Monitor::start(&node, &["-o", "json", "--kind", "flow", "--protocol", "udp"]);
    udp(&node.client, served).unwrap();
    assert_eq!(
        (monitor.event()["event"].take(), monitor.event()["event"].take()),
        ("opened".into(), "established".into())
    );

    // Stopped for the moment in which there is no dataplane, as it would not look twice a second.
    monitor.signal(Signal::SIGSTOP);
    node.kill();
    let run_dir = node.paths().run_dir().to_owned();
    node.namespace.inside(|| node::block_on(weir_dataplane::detach(&run_dir))).unwrap();
    node.start();
    let before = until(&node);
    monitor.signal(Signal::SIGCONT);
    wait_for("the next programs are told of the listener", || until(&node) > before);
    // Nothing is on the pod's link any more, so that the answer is not translated back.
    assert_eq!(udp(&node.client, served).unwrap().1.ip(), address);
    let row = monitor.event();
    assert_eq!((&row["event"], &row["service"]), (&"opened".into(), &"default/s1:u/udp".into()), "{row}");

    node.kill();
    node.namespace.inside(|| node::block_on(weir_dataplane::detach(&run_dir))).unwrap();
    let status = monitor.process.wait().unwrap();
    assert!(!status.success(), "without a dataplane there is nothing to show");
}
