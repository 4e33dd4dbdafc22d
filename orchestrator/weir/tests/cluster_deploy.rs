//! What `deploy/` ships is enough, and no more: the real agent runs with the capabilities, the file system and the RBAC
//! rules of the manifest and of the unit, against the real API server, and serves. `deploy/unit.rs` runs the units under a
//! real systemd; the same for the ingress is in `deploy/ingress`.

mod deploy;

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

use deploy::{
    agent::{Agent, Place},
    manifest::{self, Capabilities},
    proxy::Proxy,
};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weir_dataplane::{kernel::maps::Maps, paths::Paths};
use weir_tests::{Cgroup, Link, Namespace, eventually, get};
use weir_tests_apiserver::Apiserver;

const NODE: &str = "here";
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const NODE_PORT: u16 = 30_080;
/// A node port that a process of the node has, which is an Event's worth.
const TAKEN_PORT: u16 = 30_081;
const POD_CIDR: &str = "10.244.7.0/24";
/// Longer than an answer takes, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bits of a capability set, as the kernel numbers them (`linux/capability.h`).
fn bits(capabilities: &Capabilities) -> u64 {
    let number = |name: &String| match name.as_str() {
        "net_admin" => 12,
        "perfmon" => 38,
        "bpf" => 39,
        other => panic!("CAP_{other} is new here: say its number, and why it is needed"),
    };
    capabilities.iter().map(|name| 1_u64 << number(name)).sum()
}

/// A node, a client behind its uplink, an API server on the node, and the door before it.
struct Machine {
    node: Namespace,
    client: Namespace,
    cgroup: Cgroup,
    directory: tempfile::TempDir,
    runtime: Runtime,
    server: Option<Apiserver>,
    proxy: std::sync::Arc<Proxy>,
}

impl Machine {
    fn new() -> Self {
        let (node, client) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        Link::connect(
            Link { namespace: &node, name: "up0", address: "192.0.2.1/24" },
            Link { namespace: &client, name: "up1", address: "192.0.2.2/24" },
        )
        .unwrap();
        let directory = tempfile::Builder::new().prefix("weir-deploy-").tempdir().unwrap();
        let cgroup = Cgroup::new(&directory.path().file_name().unwrap().to_string_lossy()).unwrap();
        // What the mount unit does, and the node's own /sys/fs/bpf for the container.
        let pins = directory.path().join("run/bpf");
        fs::create_dir_all(&pins).unwrap();
        mount(Some("bpf"), &pins, Some("bpf"), MsFlags::empty(), Some("mode=0700")).expect("this needs root");
        // Its threads are the node's: they are started there.
        let runtime = node.inside(|| {
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
        });
        let (server, proxy, port) = node.inside(|| {
            runtime.block_on(async {
                let server = Apiserver::start(directory.path(), NODE).await;
                let roles = vec![manifest::role().into()];
                let (proxy, port) = Proxy::open(roles, server.client("admin").await).await;
                (server, proxy, port)
            })
        });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "weir",
            "clusters": [{"name": "weir", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "users": [{"name": "weir", "user": {}}],
            "contexts": [{"name": "weir", "context": {"cluster": "weir", "user": "weir"}}],
        });
        fs::write(directory.path().join("agent.kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { node, client, cgroup, directory, runtime, server: Some(server), proxy }
    }

    fn run_dir(&self) -> std::path::PathBuf {
        self.directory.path().join("run")
    }

    /// A flag's value where this machine has it.
    fn place(&self, flag: &str) -> String {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("--node-name", value) => {
                assert_eq!(value, "$(NODE_NAME)");
                format!("--node-name={NODE}")
            }
            ("--run-dir", _) => format!("--run-dir={}", path(&self.run_dir())),
            ("--cgroup-root", _) => format!("--cgroup-root={}", path(self.cgroup.path())),
            ("/etc/weir/dataplane.kubeconfig", _) => path(&self.directory.path().join("agent.kubeconfig")),
            _ => flag.to_owned(),
        }
    }

    /// Flags of the manifest or the unit, with what this machine needs besides.
    fn flags(&self, shipped: &[String]) -> Vec<String> {
        let mut flags: Vec<String> = shipped.iter().map(|flag| self.place(flag)).collect();
        let given = |name: &str| shipped.iter().any(|flag| flag.split('=').next() == Some(name));
        for (name, value) in [("--node-name", "=$(NODE_NAME)"), ("--run-dir", "="), ("--cgroup-root", "=")] {
            if !given(name) {
                flags.push(self.place(&format!("{name}{value}")));
            }
        }
        if !given("--kubeconfig") {
            flags.extend(["--kubeconfig".into(), self.place("/etc/weir/dataplane.kubeconfig")]);
        }
        // No default route leads out of this node.
        flags.push("--uplink=up0".into());
        flags
    }

    fn agent(&self, capabilities: &Capabilities, shipped: &[String], settings: bool) -> Agent {
        let run_dir = self.run_dir();
        let place = Place { namespace: &self.node, run_dir: &run_dir, cgroup: self.cgroup.path(), settings };
        Agent::start(&place, capabilities, &self.flags(shipped))
    }

    fn create(&self, key: &str, object: Value) {
        let server = self.server.as_ref().expect("it runs");
        // What is waited for runs on the thread that waits: its sockets shall be the node's.
        self.node.inside(|| self.runtime.block_on(server.create(key, object)));
    }

    /// A Service with an endpoint.
    fn serve(&self, endpoint: Ipv4Addr) {
        self.create(
            &format!("nodes//{NODE}"),
            json!({"spec": {"podCIDR": POD_CIDR, "podCIDRs": [POD_CIDR]}}),
        );
        let ports = json!([{"name": "t", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]);
        self.create(
            "services/default/hello",
            json!({"spec": {"type": "NodePort", "clusterIP": CLUSTER_IP, "ports": ports}}),
        );
        self.create(
            "endpointslices/default/hello-1",
            json!({
                "metadata": {"labels": {"kubernetes.io/service-name": "hello"}},
                "addressType": "IPv4",
                "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [endpoint], "nodeName": NODE}],
            }),
        );
    }

    /// A pod's network, by the same executable as a plugin.
    fn pod(&self) -> (Namespace, Ipv4Addr) {
        let pod = Namespace::new().unwrap();
        let config =
            json!({"cniVersion": "1.0.0", "name": "weir", "runDir": self.run_dir(), "podCIDR": POD_CIDR});
        let mut plugin = self.node.command(env!("CARGO_BIN_EXE_weir"));
        plugin.arg("cni").env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "deploy");
        plugin.env("CNI_IFNAME", "eth0").env("CNI_NETNS", pod.path());
        let mut running = plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        running.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = running.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).expect("a plugin answers in JSON");
        let address = answer["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("{answer}"));
        (pod, address.strip_suffix("/32").unwrap().parse().unwrap())
    }

    /// A process of the node, where socket hooks see it; and a client outside, by the NodePort.
    fn is_served(&self) {
        let script = format!("echo $$ > $0/cgroup.procs && exec curl -sS --max-time 5 http://{CLUSTER_IP}/");
        eventually("the ClusterIP from the node", || {
            let mut curl = self.node.command("sh");
            let output = curl.args(["-c", &script]).arg(self.cgroup.path()).output()?;
            anyhow::ensure!(output.stdout == b"hello", "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        })
        .unwrap();
        let address = SocketAddr::from((NODE_ADDRESS, NODE_PORT));
        eventually("the NodePort from outside", || {
            let answer = self.client.run(|| get(address, "hello", "/", PATIENCE))?;
            anyhow::ensure!(answer.body == "hello", "{answer:?}");
            Ok(())
        })
        .unwrap();
    }

    /// The admin server's address, which the flags name.
    fn admin(shipped: &[String]) -> SocketAddr {
        let after = |flag: &str| {
            let at = shipped.iter().position(|it| it.split('=').next() == Some(flag)).expect("it is named");
            shipped[at].split_once('=').map_or_else(|| shipped[at + 1].clone(), |(_, value)| value.to_owned())
        };
        after("--metrics-address").parse().expect("ADDRESS:PORT")
    }

    fn metrics(&self, shipped: &[String]) -> String {
        self.node.run(|| get(Self::admin(shipped), "weir", "/metrics", PATIENCE)).unwrap().body
    }

    /// The admin server says so.
    fn is_ready(&self, shipped: &[String]) {
        let address = Self::admin(shipped);
        for path in ["/readyz", "/healthz"] {
            eventually("the agent is ready", || {
                let answer = self.node.run(|| get(address, "weir", path, PATIENCE))?;
                anyhow::ensure!(answer.status == 200, "{path}: {answer:?}");
                Ok(())
            })
            .unwrap();
        }
    }

    fn forwarding(&self) -> String {
        let text = self.node.inside(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward")).unwrap();
        text.trim().to_owned()
    }

    fn has_event(&self) {
        let mirror = self.server.as_ref().expect("it runs").mirror().clone();
        let waits = mirror.wait_until("the agent complains", |mirror| {
            mirror.list("events/").iter().any(|event| event["reason"] == "NotServed")
        });
        self.runtime.block_on(waits);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let run_dir = self.run_dir();
        let clean = weir_dataplane::cleanup(&run_dir);
        let cleaned = self.node.inside(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(clean)
        });
        let guard = self.runtime.enter();
        self.server = None;
        drop(guard);
        if !thread::panicking() {
            cleaned.expect("clean up the node");
        }
    }
}

/// Answers every HTTP request with a greeting, until the test ends.
fn greet(namespace: &Namespace) {
    let listener = namespace.inside(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
            let _ = stream.shutdown(Shutdown::Write);
        }
    });
}

#[test]
fn the_container_and_the_unit_ask_for_the_same() {
    let (_, context) = manifest::container();
    assert_eq!(manifest::container_capabilities(&context), manifest::unit_capabilities());
    assert_ne!(context.privileged, Some(true));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    for (name, value) in [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ReadWritePaths", "/run/weir"),
        ("AmbientCapabilities", ""),
    ] {
        assert_eq!(manifest::unit_setting(name), value, "{name}");
    }
}

#[test]
fn the_role_looks_and_complains_and_does_nothing_else() {
    for rule in manifest::role().rules.expect("rules") {
        let resources = rule.resources.expect("resources");
        let allowed: &[&str] =
            if resources == ["events"] { &["create", "patch"] } else { &["list", "watch"] };
        assert!(
            rule.verbs.iter().all(|verb| allowed.contains(&verb.as_str())),
            "{resources:?}: {:?}",
            rule.verbs
        );
        let wild = resources.iter().chain(rule.api_groups.iter().flatten()).any(|it| it == "*");
        assert!(!wild && rule.non_resource_urls.is_none(), "{resources:?}");
    }
}

#[test]
fn what_is_shipped_is_enough() {
    let machine = Machine::new();
    let (flags, context) = manifest::container();
    let capabilities = manifest::container_capabilities(&context);

    // A unit first: it may write settings, and has to.
    assert_eq!(machine.forwarding(), "0");
    let unit = manifest::unit_flags();
    let agent = machine.agent(&manifest::unit_capabilities(), &unit, true);
    machine.is_ready(&unit);
    assert_eq!(agent.effective(), bits(&capabilities), "the agent has what the unit says");
    assert_eq!(machine.forwarding(), "1");
    let (pod, address) = machine.pod();
    greet(&pod);
    machine.serve(address);
    machine.is_served();
    agent.kill();
    machine.is_served();

    // Then a container, which may not, on what the unit left behind.
    let agent = machine.agent(&capabilities, &flags, false);
    machine.is_ready(&flags);
    assert_eq!(agent.effective(), bits(&capabilities), "the agent has what the manifest says");
    machine.is_served();
    let first = machine.node.inside(|| TcpListener::bind(("0.0.0.0", TAKEN_PORT)).unwrap());
    machine.create(
        "services/default/late",
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": TAKEN_PORT}]}}),
    );
    machine.has_event();
    drop(first);

    let seen = machine.proxy.seen();
    assert_eq!(seen.refused, [].into(), "the agent asks for what its role does not allow");
    for (group, resource) in
        [("", "services"), ("", "nodes"), ("", "pods"), ("discovery.k8s.io", "endpointslices")]
    {
        for verb in ["list", "watch"] {
            assert!(seen.did(verb, group, resource), "nobody needs {verb} {resource}");
        }
    }
    assert!(seen.did("create", "", "events"), "nobody needs to create events");
}

#[test]
fn the_running_agent_repairs_damaged_maps_and_counts_what_it_serves() {
    let machine = Machine::new();
    let unit = manifest::unit_flags();
    let _agent = machine.agent(&manifest::unit_capabilities(), &unit, true);
    machine.is_ready(&unit);
    let (pod, address) = machine.pod();
    greet(&pod);
    machine.serve(address);
    machine.is_served();

    let maps = Maps::open(&Paths::new(machine.run_dir())).unwrap();
    let keys: Vec<_> = maps.v4.frontends.entries().unwrap().into_iter().map(|(key, _)| key).collect();
    maps.v4.frontends.remove(&keys).unwrap();
    let has_drift = |event: &Value| {
        let of_service = event["regarding"]["name"] == "hello" || event["involvedObject"]["name"] == "hello";
        of_service && event.to_string().contains("(frontend)")
    };
    let mirror = machine.server.as_ref().expect("it runs").mirror().clone();
    let waits = mirror
        .wait_until("the agent tells of the damage", |mirror| mirror.list("events/").iter().any(has_drift));
    machine.runtime.block_on(waits);
    machine.is_served();
    let left: HashSet<_> = maps.v4.frontends.entries().unwrap().into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, keys.iter().copied().collect(), "all of them are there again");

    let metrics = machine.metrics(&unit);
    let drift = format!("weir_dataplane_drift_total{{kind=\"frontend\"}} {}", keys.len());
    assert!(metrics.lines().any(|line| line == drift), "{metrics}");
    eventually("the client's packets are counted", || {
        let metrics = machine.metrics(&unit);
        let labels = r#"{namespace="default",service="hello",port="t",protocol="tcp",direction="request"}"#;
        let count = metrics.lines().find_map(|line| {
            line.strip_prefix("weir_dataplane_service_packets_total")?
                .strip_prefix(labels)?
                .trim()
                .parse::<u64>()
                .ok()
        });
        // SYN, what acknowledges its answer, the request, FIN: of two connections.
        anyhow::ensure!(count.is_some_and(|count| count >= 8), "{count:?} in {metrics}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn no_capability_is_asked_for_in_vain() {
    let machine = Machine::new();
    let unit = manifest::unit_flags();
    let all = manifest::unit_capabilities();
    for left_out in &all {
        let without: Capabilities = all.iter().filter(|name| *name != left_out).cloned().collect();
        let said = machine.agent(&without, &unit, true).refusal();
        assert!(said.contains("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"), "without {left_out}: {said}");
    }
}
