//! `healthCheckNodePort` as a load balancer sees it: real listeners on a node's addresses, asked from outside.

mod node;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use node::{NODE_ADDRESS, TestNode, echo::PATIENCE};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use weir_dataplane::{
    health_checks::{Health, HealthChecks},
    plan::{HealthCheck, model::ServiceKey},
};
use weir_tests::{Namespace, eventually};

const PORT: u16 = 32_000;

/// Status, weight and body of the answer at the node's address.
fn ask(client: &Namespace, port: u16) -> std::io::Result<(u16, String, Value)> {
    let text = client.inside(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((NODE_ADDRESS, port)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /any HTTP/1.1\r\nhost: lb\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
    let weight = head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
    let status = head.split(' ').nth(1).expect("a status line").parse().expect("a number");
    Ok((status, weight.expect(head).to_owned(), serde_json::from_str(body).expect("JSON")))
}

fn says(count: usize, healthy: bool) -> Value {
    json!({"service": {"namespace": "n", "name": "a"}, "localEndpoints": count, "serviceProxyHealthy": healthy})
}

/// A node with its health checks, whose listeners live in a runtime of their own.
struct Machine {
    node: TestNode,
    runtime: Runtime,
    checks: HealthChecks,
}

impl Machine {
    /// Listeners belong to the namespace of the thread that makes them.
    fn inside<T: Send>(&mut self, work: impl FnOnce(&mut HealthChecks) -> T + Send) -> T {
        let (checks, runtime) = (&mut self.checks, &self.runtime);
        self.node.namespace.inside(|| {
            let _context = runtime.enter();
            work(checks)
        })
    }

    /// What there is to complain about.
    fn set(&mut self, key: &ServiceKey, wanted: Option<HealthCheck>) -> Vec<String> {
        let complaints = self.inside(|checks| checks.set(key, wanted));
        complaints.iter().map(|(key, error)| format!("{key}: {error}")).collect()
    }

    fn set_addresses(&mut self, addresses: &[IpAddr]) {
        assert_eq!(self.inside(|checks| checks.set_addresses(addresses)), []);
    }

    fn ask(&self, port: u16) -> std::io::Result<(u16, String, Value)> {
        ask(&self.node.client, port)
    }
}

#[test]
fn a_load_balancer_hears_how_many_endpoints_this_node_has() {
    let (a, b) = (ServiceKey::new("n", "a"), ServiceKey::new("n", "b"));
    let with = |port, local_endpoints| Some(HealthCheck { port, local_endpoints });
    let health = Health::default();
    let mut machine = Machine {
        node: TestNode::new(false),
        runtime: Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
        checks: HealthChecks::new(health.clone()),
    };
    assert_eq!(machine.set(&a, with(PORT, 2)), [""; 0]);
    assert!(machine.ask(PORT).is_err(), "the node has no address yet");
    machine.set_addresses(&[IpAddr::V4(NODE_ADDRESS)]);
    assert_eq!(machine.ask(PORT).unwrap(), (200, "2".into(), says(2, true)));
    machine.set(&a, with(PORT, 0));
    assert_eq!(machine.ask(PORT).unwrap(), (503, "0".into(), says(0, true)));
    machine.set(&a, with(PORT, 1));
    health.set(false);
    assert_eq!(machine.ask(PORT).unwrap(), (503, "1".into(), says(1, false)), "nobody serves them");
    health.set(true);

    let taken =
        "n/b: spec.healthCheckNodePort 32000 is that of n/a already; give one of the two another port";
    assert_eq!(machine.set(&b, with(PORT, 1)), [taken]);
    assert_eq!(machine.set(&b, with(PORT, 3)), [""; 0], "told once");
    assert_eq!(machine.set(&b, None), [""; 0]);

    let process = machine.node.namespace.inside(|| TcpListener::bind(("0.0.0.0", PORT + 1)).unwrap());
    let complaint = machine.set(&b, with(PORT + 1, 1));
    assert!(
        complaint[0].contains("cannot listen on 192.0.2.1:32001 (Address already in use"),
        "{complaint:?}"
    );
    assert_eq!(machine.ask(PORT).unwrap().0, 200, "the other is served");
    drop(process);
    machine.inside(HealthChecks::retry);
    assert_eq!(machine.ask(PORT + 1).unwrap().0, 200, "the port is free now");

    machine.set(&a, None);
    assert!(machine.ask(PORT).is_err(), "gone with its service");
    machine.set_addresses(&[]);
    assert!(machine.ask(PORT + 1).is_err(), "gone with its address");
}

#[test]
fn idle_probers_take_no_place_for_ever() {
    /// More than are served at a time.
    const IDLE: usize = 20;

    let mut machine = Machine {
        node: TestNode::new(false),
        runtime: Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
        checks: HealthChecks::default(),
    };
    machine.set_addresses(&[IpAddr::V4(NODE_ADDRESS)]);
    machine.set(&ServiceKey::new("n", "a"), Some(HealthCheck { port: PORT, local_endpoints: 1 }));
    let connect = || TcpStream::connect_timeout(&SocketAddr::from((NODE_ADDRESS, PORT)), PATIENCE).unwrap();
    let idle: Vec<TcpStream> = machine.node.client.inside(|| (0..IDLE).map(|_| connect()).collect());
    let answer = eventually("the idle ones are let go", || Ok(machine.ask(PORT)?));
    assert_eq!(answer.unwrap().0, 200);
    drop(idle);
}
