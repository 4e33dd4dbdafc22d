//! A whole node in a namespace: the dataplane's programs, its reconciler, and pods, without an API server.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod echo;
pub(crate) mod far;
pub(crate) mod traffic;

use std::{collections::BTreeSet, fs, net::Ipv4Addr, sync::Arc};

use kube::runtime::watcher::Event;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use weir_dataplane::{
    Config, Metrics, Uplinks, cni, flows,
    kernel::{
        attach::{Programs, Targets, Tc},
        maps::Maps,
        xdp::Acceleration,
    },
    netlink::Netlink,
    node,
    paths::Paths,
    plan::model::{NodePort, ServiceKey},
    reconcile::Reconciler,
    sockets::Peer,
    watch::{Change, Store},
};
use weir_dataplane_ebpf::{Ip4, NodeConfig};
use weir_tests::{Cgroup, Link, Namespace};

/// The node's pod range; the first address is its own.
pub(crate) const POD_CIDR: &str = "10.244.7.0/24";
/// The node's address towards the client.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A node, a client behind its uplink, and what an agent would hold. All gone when dropped.
pub(crate) struct TestNode {
    pub(crate) namespace: Namespace,
    pub(crate) client: Namespace,
    pub(crate) cgroup: Cgroup,
    run_dir: tempfile::TempDir,
    pub(crate) socket_lb: bool,
    /// Where XDP runs, from the next start on: in the stack unless a test says otherwise, so that it is in the way.
    pub(crate) acceleration: Acceleration,
    tc: Tc,
    uplinks: Vec<String>,
    pub(crate) store: Store,
    /// What the last round had to say, as the Events about it begin: `object: complaint`.
    pub(crate) complaints: Vec<String>,
    /// Ports that the last round gave to services.
    pub(crate) guarded: Vec<(ServiceKey, NodePort)>,
    /// UDP ports that have lost endpoints in the last round.
    lost: BTreeSet<u32>,
    conditions: Value,
    agent: Option<(Programs, Reconciler)>,
}

/// A runtime inside the node's namespace: netlink sockets belong to the thread's.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

impl TestNode {
    /// A node that runs, with its client.
    pub(crate) fn new(socket_lb: bool) -> Self {
        Self::attaching(Tc::of_kernel(), socket_lb)
    }

    /// The same, whose TC programs are attached in this way.
    pub(crate) fn attaching(tc: Tc, socket_lb: bool) -> Self {
        let (namespace, client) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        Link::connect(
            Link { namespace: &namespace, name: "up0", address: "192.0.2.1/24" },
            Link { namespace: &client, name: "up1", address: "192.0.2.2/24" },
        )
        .unwrap();
        let run_dir = tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap();
        let cgroup = Cgroup::new(&run_dir.path().file_name().unwrap().to_string_lossy()).unwrap();
        let root = node::cgroup_root(&Config::default()).unwrap().expect("socket hooks are on by default");
        assert_eq!(cgroup.path().parent(), Some(root.as_path()), "the agent finds the cgroup2 mount");
        let mut store = Store::new("here");
        store.set_node_addresses(vec![NODE_ADDRESS.into()]);
        let uplinks = vec!["up0".to_owned()];
        let mut node = Self {
            namespace,
            client,
            cgroup,
            run_dir,
            socket_lb,
            acceleration: Acceleration::Generic,
            tc,
            uplinks,
            store,
            complaints: Vec::new(),
            guarded: Vec::new(),
            lost: BTreeSet::new(),
            conditions: json!({}),
            agent: None,
        };
        node.start();
        node
    }

    /// Another link to the outside, which the agent serves from its next start on.
    pub(crate) fn add_uplink(&mut self, name: &str, address: &str, far: Link<'_>) {
        Link::connect(Link { namespace: &self.namespace, name, address }, far).unwrap();
        self.uplinks.push(name.to_owned());
        self.kill();
        self.start();
    }

    /// A second node behind one more uplink, with this address of a pod; nothing runs there.
    pub(crate) fn add_far_node(&mut self, pod: Ipv4Addr) -> Namespace {
        let far = Namespace::new().unwrap();
        let link = Link { namespace: &far, name: "far0", address: "198.51.100.2/24" };
        self.add_uplink("up2", "198.51.100.1/24", link);
        far.ip(&format!("address add {pod}/32 dev lo")).unwrap();
        self.namespace.ip(&format!("route add {pod}/32 via 198.51.100.2")).unwrap();
        far
    }

    /// Places below the run directory.
    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.run_dir.path())
    }

    /// The maps, as anybody may open them.
    pub(crate) fn maps(&self) -> Maps {
        Maps::open(&self.paths()).unwrap()
    }

    /// What an agent does when it starts; an earlier one's work is adopted.
    pub(crate) fn start(&mut self) {
        let (paths, socket_lb, cgroup, tc) = (self.paths(), self.socket_lb, self.cgroup.path(), self.tc);
        let acceleration = self.acceleration;
        let named = Uplinks::Named(self.uplinks.clone());
        let agent = self.namespace.inside(|| {
            block_on(async {
                let netlink = Netlink::connect().unwrap();
                let config = Config { socket_lb, ..Config::default() };
                let uplinks = node::uplinks(&netlink, &named).await.unwrap();
                let mut programs = Programs::load(&paths, false).unwrap_or_else(|error| panic!("{error}"));
                let maps = Maps::open(&paths).unwrap();
                let gateway = node::ensure_gateway(&netlink, &[POD_CIDR.parse().unwrap()]).await.unwrap();
                let std::net::IpAddr::V4(gateway) = gateway[0] else { unreachable!() };
                let flags = if socket_lb { NodeConfig::FLAG_SOCKET_LB } else { 0 };
                let config_value =
                    NodeConfig { gateway_v4: Ip4::from(gateway), flags, ..NodeConfig::default() };
                maps.node_config.write(&[0], &[config_value]).unwrap();
                let addresses = node::uplink_addresses(&netlink, &uplinks).await.unwrap();
                node::write_uplinks(&maps, &addresses).unwrap();
                let cgroup = socket_lb.then_some(cgroup);
                programs
                    .attach(&Targets { uplinks: &uplinks, acceleration, cgroup, tc })
                    .unwrap_or_else(|error| panic!("{error}"));
                node::enable_forwarding(&paths).unwrap();
                node::keep_inside(&netlink, &config).await.unwrap();
                let metrics = Metrics::new(&mut Registry::default());
                (programs, Reconciler::new(&paths, Arc::new(maps), metrics).unwrap())
            })
        });
        self.agent = Some(agent);
        self.sync();
    }

    /// What is left when an agent is killed.
    pub(crate) fn kill(&mut self) {
        self.agent = None;
    }

    /// One round of the reconciler. Returns its complaints.
    pub(crate) fn sync(&mut self) -> Vec<String> {
        let dirty: BTreeSet<ServiceKey> = self.store.take_dirty();
        let (_, reconciler) = self.agent.as_mut().expect("an agent runs");
        let outcome = reconciler.sync(&self.store, dirty).unwrap_or_else(|error| panic!("{error}"));
        let complaints = outcome.complaints.iter();
        self.complaints = complaints.map(|(key, complaint)| format!("{key}: {complaint}")).collect();
        self.guarded = outcome.guarded;
        self.lost = outcome.lost;
        self.complaints.clone()
    }

    /// A whole round of comparing the maps with what was written; what it complains about. The next `sync` repairs it.
    pub(crate) fn check(&mut self) -> Vec<String> {
        self.check_at(None)
    }

    /// The same at a tick of the kernel's, of which there are so many in a second.
    pub(crate) fn check_at(&mut self, clock: Option<(u32, f64)>) -> Vec<String> {
        let (_, reconciler) = self.agent.as_mut().expect("an agent runs");
        let (before, mut complaints) = (reconciler.checks(), Vec::new());
        while reconciler.checks() == before && !reconciler.starts_over() {
            let found = reconciler.check(clock).unwrap_or_else(|error| panic!("{error}"));
            complaints.extend(found.iter().map(|(key, complaint)| format!("{key}: {complaint}")));
        }
        complaints
    }

    /// Sockets that talk to what their service does not have any more.
    pub(crate) fn stale(&self, peers: Vec<Peer>) -> Vec<Peer> {
        let (_, reconciler) = self.agent.as_ref().expect("an agent runs");
        reconciler.stale(&self.store, peers)
    }

    /// What the agent does after a round: ends UDP flows to endpoints that their service lost. How many entries they had.
    pub(crate) fn forget(&self) -> u64 {
        let (_, reconciler) = self.agent.as_ref().expect("an agent runs");
        flows::forget(&self.maps(), &reconciler.lost(&self.lost)).unwrap()
    }

    /// A Service with TCP and UDP port 80 on 10.96.0.`n`, `NodePort` 30000 + `n`, and endpoints of this node on port 8080.
    pub(crate) fn serve(&mut self, n: u8, endpoints: &[Ipv4Addr]) {
        self.serve_as("here", n, endpoints, &json!({}), &json!({}));
    }

    /// The same, with endpoints in these conditions.
    pub(crate) fn serve_in(&mut self, n: u8, endpoints: &[Ipv4Addr], conditions: &Value) {
        self.conditions = conditions.clone();
        self.serve(n, endpoints);
        self.conditions = json!({});
    }

    /// The same, with each endpoint in its own.
    pub(crate) fn serve_conditions(&mut self, n: u8, endpoints: &[(Ipv4Addr, &Value)]) {
        self.apply_service(n, &json!({}), &json!({}));
        let endpoint = |(address, conditions): &(Ipv4Addr, &Value)| json!({"addresses": [address], "nodeName": "here", "conditions": conditions});
        self.apply_slice(n, &endpoints.iter().map(endpoint).collect::<Vec<_>>());
        self.sync();
    }

    /// The same, with endpoints of the node of that name.
    pub(crate) fn serve_on(&mut self, node: &str, n: u8, endpoints: &[Ipv4Addr]) {
        self.serve_as(node, n, endpoints, &json!({}), &json!({}));
    }

    /// The same with endpoints of this node, more in the Service's spec, and a status.
    pub(crate) fn serve_with(&mut self, n: u8, endpoints: &[Ipv4Addr], more: &Value, status: &Value) {
        self.serve_as("here", n, endpoints, more, status);
    }

    /// The same with all of it.
    pub(crate) fn serve_as(
        &mut self,
        node: &str,
        n: u8,
        endpoints: &[Ipv4Addr],
        more: &Value,
        status: &Value,
    ) {
        self.apply(node, n, endpoints, more, status);
        self.sync();
    }

    /// What [`TestNode::serve`] asks for, while no agent runs that would do it.
    pub(crate) fn ask_for(&mut self, n: u8, endpoints: &[Ipv4Addr]) {
        self.apply("here", n, endpoints, &json!({}), &json!({}));
    }

    fn apply(&mut self, node: &str, n: u8, endpoints: &[Ipv4Addr], more: &Value, status: &Value) {
        self.apply_service(n, more, status);
        let endpoint =
            |address| json!({"addresses": [address], "nodeName": node, "conditions": self.conditions});
        self.apply_slice(n, &endpoints.iter().map(endpoint).collect::<Vec<_>>());
    }

    fn apply_service(&mut self, n: u8, more: &Value, status: &Value) {
        let port = |name: &str, protocol: &str| json!({"name": name, "port": 80, "protocol": protocol, "nodePort": 30_000 + u32::from(n)});
        let mut service = json!({
            "metadata": {"name": format!("s{n}"), "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": format!("10.96.0.{n}"), "ports": [port("t", "TCP"), port("u", "UDP")]},
            "status": status,
        });
        service["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.store.apply(Change::Service(Event::Apply(serde_json::from_value(service).unwrap())));
    }

    fn apply_slice(&mut self, n: u8, endpoints: &[Value]) {
        let slice = json!({
            "metadata": {
                "name": format!("s{n}-1"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": format!("s{n}")},
            },
            "addressType": "IPv4",
            "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 8080, "protocol": "UDP"}],
            "endpoints": endpoints,
        });
        self.store.apply(Change::Slice(Event::Apply(serde_json::from_value(slice).unwrap())));
    }

    /// Starts a pod's network.
    pub(crate) fn add_pod(&self, id: &str) -> (Namespace, Ipv4Addr) {
        let pod = Namespace::new().unwrap();
        let answer = self.cni("ADD", id, &pod);
        let address = answer["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("{answer}"));
        (pod, address.strip_suffix("/32").unwrap().parse().unwrap())
    }

    /// One call of the plugin.
    pub(crate) fn cni(&self, command: &str, id: &str, pod: &Namespace) -> Value {
        let config = json!({"cniVersion": "1.0.0", "name": "weir", "runDir": self.run_dir.path(), "podCIDR": POD_CIDR});
        let path = pod.path();
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some(id.to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => Some(path.clone()),
            _ => None,
        };
        let mut out = Vec::new();
        let config = config.to_string();
        self.namespace.inside(|| cni::main_attaching(self.tc, config.as_bytes(), env, &mut out));
        serde_json::from_slice(&out).unwrap_or_default()
    }

    /// What `weir dataplane detach` does.
    pub(crate) fn cleanup(&self) {
        let run_dir = self.run_dir.path();
        self.namespace
            .inside(|| block_on(weir_dataplane::cleanup(run_dir)))
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.agent = None;
        let run_dir = self.run_dir.path();
        let cleaned = self.namespace.inside(|| block_on(weir_dataplane::cleanup(run_dir)));
        if !std::thread::panicking() {
            cleaned.expect("clean up the node");
            let processes = fs::read_to_string(self.cgroup.path().join("cgroup.procs")).unwrap();
            assert_eq!(processes, "", "processes are left in the test's cgroup");
        }
    }
}
