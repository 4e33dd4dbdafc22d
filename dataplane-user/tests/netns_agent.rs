//! The whole agent as a client of a real API server, on a machine of its own: what is more than the sum of its parts, and
//! the Events that tell what cannot be served.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use kube::api::DeleteParams;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use weir_dataplane::{
    Config, Dataplane, Masquerade, Uplinks,
    cli::{self, ExplainArgs, Output, ViewArgs},
    kernel::maps::Maps,
    paths::Paths,
};
use weir_dataplane_ebpf::{Ip4, NodeConfig};
use weir_tests::{Cgroup, Link, Namespace};
use weir_tests_apiserver::Apiserver;

/// Two addresses of the node, on which its backends listen.
const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Longer than anything takes on a busy machine: what takes longer hangs.
const HANGS: Duration = Duration::from_mins(1);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Runs `work` on a machine with an API server and an agent whose socket hooks see this process, and afterwards `again` with
/// the next agent, as after a restart. Both are told the agents' run directory.
fn with_two_agents(
    work: impl AsyncFnOnce(&Apiserver, &Path) + Send,
    again: impl AsyncFnOnce(&Apiserver, &Path) + Send,
) {
    run(Masquerade::None, work, again);
}

/// The same with agents that masquerade.
fn run(
    masquerade: Masquerade,
    work: impl AsyncFnOnce(&Apiserver, &Path) + Send,
    again: impl AsyncFnOnce(&Apiserver, &Path) + Send,
) {
    let (namespace, outside) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    Link::connect(
        Link { namespace: &namespace, name: "up0", address: "192.0.2.1/24" },
        Link { namespace: &outside, name: "up1", address: "192.0.2.2/24" },
    )
    .unwrap();
    namespace.ip("address add 192.0.2.3/24 dev up0").unwrap();
    let directory = tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap();
    let cgroup = Cgroup::new(&directory.path().file_name().unwrap().to_string_lossy()).unwrap();
    let run_dir = directory.path().join("run");
    let config = Config {
        node_name: "here".into(),
        uplink: Uplinks::None,
        cgroup_root: Some(cgroup.path().to_owned()),
        run_dir: run_dir.clone(),
        masquerade,
        ..Config::default()
    };
    namespace.inside(|| {
        // All threads of the runtime are the namespace's, since this one makes them.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Apiserver::start(directory.path(), "here").await;
            let entered = cgroup.enter().unwrap();
            let agent = Agent::start(&api, config.clone()).await;
            work(&api, &run_dir).await;
            agent.stop().await;
            let agent = Agent::start(&api, config).await;
            again(&api, &run_dir).await;
            agent.stop().await;
            drop(entered);
            weir_dataplane::cleanup(&run_dir).await.unwrap_or_else(|error| panic!("{error}"));
        });
    });
}

/// The same with one agent.
fn with_agent(work: impl AsyncFnOnce(&Apiserver) + Send) {
    with_two_agents(async |api: &Apiserver, _: &Path| work(api).await, async |_, _| {});
}

/// A running agent.
struct Agent {
    stop: CancellationToken,
    running: JoinHandle<Result<(), weir_dataplane::Error>>,
}

impl Agent {
    /// Starts one, with the rights of its role, and waits until it serves.
    async fn start(api: &Apiserver, config: Config) -> Self {
        let client = api.client("dataplane").await;
        let agent = Dataplane::new(config, client, &mut Registry::default()).unwrap();
        let (ready, is_ready) = oneshot::channel();
        let stop = CancellationToken::new();
        let running = tokio::spawn(agent.run(ready, stop.clone()));
        timeout(HANGS, is_ready).await.expect("the agent becomes ready").expect("the agent runs");
        Self { stop, running }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Creates a Service of the default namespace with an endpoint on port 8080 of this node; returns it.
async fn serve(api: &Apiserver, name: &str, spec: Value, endpoint: Ipv4Addr) -> Value {
    let service = api.create(&format!("services/default/{name}"), json!({"spec": spec})).await;
    let ports = service["spec"]["ports"].as_array().unwrap().iter();
    let ports: Vec<Value> = ports
        .map(|port| json!({"name": port["name"].as_str().unwrap_or_default(), "port": 8080, "protocol": port["protocol"]}))
        .collect();
    let slice = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": ports, "endpoints": [{"addresses": [endpoint], "nodeName": "here"}],
    });
    api.create(&format!("endpointslices/default/{name}-1"), slice).await;
    service
}

/// Tries until it holds.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(HANGS, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(LOOK_AGAIN).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("never came true: {what}"))
}

/// Waits for an Event about `kind/name` that holds these words.
async fn expect_event(api: &Apiserver, kind: &str, name: &str, words: &str) {
    let about = |event: &Value| {
        let object = ["involvedObject", "regarding"].map(|field| &event[field]);
        object.iter().any(|object| object["kind"] == kind && object["name"] == name)
            && event.to_string().contains(words)
    };
    api.mirror()
        .wait_until(&format!("{kind} {name}: {words}"), |mirror| mirror.list("events/").iter().any(about))
        .await;
}

/// Answers datagrams on port 8080 of an address with a name.
async fn answer(address: Ipv4Addr, name: &'static str) {
    let socket = UdpSocket::bind((address, 8080)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 64]).await {
            socket.send_to(name.as_bytes(), client).await.ok();
        }
    });
}

/// Who answers over a connected socket.
async fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    let mut bytes = [0; 8];
    socket.send(b"who").await?;
    let length = timeout(HANGS, socket.recv(&mut bytes)).await.expect("an answer or an error")?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[test]
fn a_connected_socket_hears_that_its_backend_went() {
    with_agent(async |api| {
        answer(A, "a").await;
        answer(B, "b").await;
        let service = serve(api, "dns", json!({"ports": [{"port": 53, "protocol": "UDP"}]}), A).await;
        let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        let connect = async || {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            socket.connect((address, 53)).await.ok().map(|()| socket)
        };
        let socket = eventually("the service is there", connect).await;
        assert_eq!(ask(&socket).await.unwrap(), "a");
        api.merge(
            "endpointslices/default/dns-1",
            json!({"endpoints": [{"addresses": [B], "nodeName": "here"}]}),
        )
        .await;
        // Nothing is sent: the agent's pass alone wakes the reader.
        let error = timeout(HANGS, socket.recv(&mut [0; 8])).await.expect("the socket ends").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(ask(&connect().await.expect("it is still there")).await.unwrap(), "b");
    });
}

/// What `weir explain` says of a client of this node, as JSON.
async fn explain(run_dir: &Path, service: &Value) -> Value {
    let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let args = ExplainArgs {
        protocol: "tcp".into(),
        source: SocketAddr::from((A, 40_000)),
        destination: (address, 80).into(),
        view: ViewArgs { run_dir: run_dir.to_owned(), output: Output::Json },
    };
    // It waits for the agent, which this runtime runs.
    let text = spawn_blocking(move || cli::explain(&args)).await.unwrap();
    let text = text.unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str::<Value>(&text).unwrap()["scopes"][0].take()
}

#[test]
fn explain_says_why_an_endpoint_is_not_taken() {
    let verdicts = |scope: &Value, list: &str| -> Vec<String> {
        let list = scope[list].as_array().unwrap().iter();
        list.map(|it| format!("{} {}", it["address"].as_str().unwrap(), it["verdict"].as_str().unwrap()))
            .collect()
    };
    let made = std::sync::Mutex::new(Value::Null);
    with_two_agents(
        async |api, run_dir| {
            let spec = json!({"ports": [{"port": 80}], "internalTrafficPolicy": "Local"});
            let service = serve(api, "web", spec, A).await;
            let endpoints = json!([
                {"addresses": [A], "nodeName": "here"},
                {"addresses": [B], "nodeName": "here", "conditions": {"ready": false}},
                {"addresses": ["192.0.2.9"], "nodeName": "elsewhere"},
            ]);
            api.merge("endpointslices/default/web-1", json!({"endpoints": endpoints})).await;
            let explained = eventually("all endpoints are judged", async || {
                let explained = explain(run_dir, &service).await;
                (verdicts(&explained, "notTaken").len() == 2).then_some(explained)
            });
            let explained = explained.await;
            assert_eq!(verdicts(&explained, "candidates"), ["192.0.2.1:8080 ready"]);
            let expected = ["192.0.2.3:8080 not-ready", "192.0.2.9:8080 not-local"];
            assert_eq!(verdicts(&explained, "notTaken"), expected);
            assert_eq!((&explained["policy"], &explained["reasonsUnknown"]), (&json!("local"), &Value::Null));
            *made.lock().unwrap() = service;
        },
        async |api, run_dir| {
            let service = made.lock().unwrap().clone();
            let slice = json!({"endpoints": [{"addresses": [A], "nodeName": "here", "conditions": {"ready": false}}]});
            api.merge("endpointslices/default/web-1", slice).await;
            let explained = eventually("nobody serves", async || {
                let explained = explain(run_dir, &service).await;
                explained["candidates"].as_array().unwrap().is_empty().then_some(explained)
            });
            assert_eq!(verdicts(&explained.await, "notTaken"), ["192.0.2.1:8080 not-ready"]);
        },
    );
}

#[test]
fn a_node_port_is_guarded_and_a_process_that_has_it_is_told_of() {
    with_agent(async |api| {
        let _process = TcpListener::bind("0.0.0.0:30050").await.unwrap();
        let spec = |port: u16| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        serve(api, "taken", spec(30_050), A).await;
        expect_event(api, "Service", "taken", "port 30050/tcp of this node belongs to a process as well")
            .await;
        serve(api, "guarded", spec(30_051), A).await;
        let refused = eventually("the port is guarded", async || {
            TcpListener::bind("0.0.0.0:30051").await.err().map(|error| error.kind())
        });
        assert_eq!(refused.await, ErrorKind::AddrInUse);
    });
}

#[test]
fn a_load_balancer_is_answered_on_the_port_that_the_api_chose() {
    with_agent(async |api| {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let service = serve(api, "web", spec, B).await;
        let port = service["spec"]["healthCheckNodePort"].as_u64().expect("a port") as u16;
        let status = async || {
            let mut stream = TcpStream::connect(SocketAddr::from((A, port))).await.ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: lb\r\n\r\n").await.ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.ok()?;
            Some(text)
        };
        eventually("one local endpoint", async || {
            status()
                .await
                .filter(|text| text.starts_with("HTTP/1.1 200") && text.contains("\"localEndpoints\":1"))
        })
        .await;
        api.merge("endpointslices/default/web-1", json!({"endpoints": []})).await;
        eventually("none", async || status().await.filter(|text| text.starts_with("HTTP/1.1 503"))).await;

        // From the sixteen that the API server of tests, with its hundred ports, chooses from last.
        let _process = TcpListener::bind("192.0.2.1:30007").await.unwrap();
        let spec = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_007, "ports": [{"port": 80}],
        });
        serve(api, "other", spec, B).await;
        expect_event(api, "Service", "other", "spec.healthCheckNodePort: cannot listen on 192.0.2.1:30007")
            .await;
    });
}

#[test]
fn a_pod_of_this_node_has_its_host_port_and_its_twin_is_told() {
    with_agent(async |api| {
        let listener = TcpListener::bind((B, 8080)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"pod").await.ok();
            }
        });
        let pod = |node: &str, port: u16| {
            let container =
                json!({"name": "c", "image": "i", "ports": [{"containerPort": 8080, "hostPort": port}]});
            json!({"spec": {"nodeName": node, "containers": [container]}})
        };
        for (name, node, port) in
            [("mine", "here", 9_001), ("twin", "here", 9_001), ("far", "elsewhere", 9_002)]
        {
            let key = format!("pods/default/{name}");
            api.create(&key, pod(node, port)).await;
            api.merge_status(&key, json!({"phase": "Running", "podIP": B, "podIPs": [{"ip": B}]})).await;
        }
        let read = async |port: u16| {
            let mut stream = TcpStream::connect(SocketAddr::from((A, port))).await.ok()?;
            let mut bytes = [0; 3];
            stream.read_exact(&mut bytes).await.ok().map(|_| bytes)
        };
        assert_eq!(&eventually("the host port is served", async || read(9_001).await).await, b"pod");
        expect_event(api, "Pod", "twin", "tcp://192.0.2.1:9001 is served by pod/default/mine already").await;
        assert_eq!(read(9_002).await, None, "that pod is another node's");
    });
}

#[test]
fn each_complaint_is_an_event_of_its_own_and_the_next_agent_refreshes_it() {
    let external = "spec.externalIPs fd00::9: the Service has no address of this family";
    let of_port = "EndpointSlice odd-1: port `web` (tcp) is none of the Service's";
    // When each was last told, by its words.
    let told = |api: &Apiserver| -> Vec<(String, String)> {
        let events = api.mirror().list("events/default/odd.");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        events.iter().map(|event| (text(&event["message"]), text(&event["lastTimestamp"]))).collect()
    };
    let before = std::sync::Mutex::new(Vec::new());
    with_two_agents(
        async |api, _| {
            let spec = json!({"ports": [{"name": "http", "port": 80}], "externalIPs": ["fd00::9"]});
            serve(api, "odd", spec, B).await;
            expect_event(api, "Service", "odd", external).await;
            let ports = json!([{"name": "web", "port": 8080, "protocol": "TCP"}]);
            api.merge("endpointslices/default/odd-1", json!({"ports": ports})).await;
            expect_event(api, "Service", "odd", of_port).await;
            *before.lock().unwrap() = told(api);
            // Times of Events have no fractions.
            sleep(Duration::from_millis(1_100)).await;
        },
        async |api, _| {
            let before = before.lock().unwrap().clone();
            assert_eq!(before.len(), 2, "{before:?}");
            let refreshed = |now: &[(String, String)]| {
                now.len() == 2
                    && now.iter().zip(&before).all(|(now, before)| now.0 == before.0 && now.1 > before.1)
            };
            eventually("both are told again", async || refreshed(&told(api)).then_some(())).await;
        },
    );
}

#[test]
fn pods_reach_nodes_and_their_pods_by_their_own_addresses_as_they_come_and_go() {
    const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const ITS_POD: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 5);
    let holds = |run_dir: &Path, address: Ipv4Addr| {
        let maps = Maps::open(&Paths::new(run_dir)).unwrap();
        let flags = maps.node_config.at(0).unwrap().flags;
        assert_ne!(
            flags & NodeConfig::FLAG_MASQUERADE_V4,
            0,
            "it is on for as long as an agent has been ready"
        );
        assert_eq!(flags & NodeConfig::FLAG_MASQUERADE_V6, 0, "nobody asked for IPv6");
        maps.v4.non_masquerade.holds(Ip4::from(address)).unwrap()
    };
    run(
        Masquerade::Ipv4,
        async |api, run_dir| {
            assert!(holds(run_dir, Ipv4Addr::new(10, 244, 1, 1)), "the cluster's pods");
            assert!(!holds(run_dir, OTHER_NODE) && !holds(run_dir, ITS_POD));
            let spec = json!({"podCIDR": "10.9.1.0/24", "podCIDRs": ["10.9.1.0/24"]});
            api.create("nodes//other", json!({"spec": spec})).await;
            eventually("its pods", async || holds(run_dir, ITS_POD).then_some(())).await;
            let addresses = json!([{"type": "InternalIP", "address": OTHER_NODE}]);
            api.merge_status("nodes//other", json!({"addresses": addresses})).await;
            eventually("the node", async || holds(run_dir, OTHER_NODE).then_some(())).await;
        },
        async |api, run_dir| {
            assert!(holds(run_dir, OTHER_NODE), "the next agent knows it too");
            api.delete("nodes//other", &DeleteParams::default()).await;
            let gone = async || (!holds(run_dir, OTHER_NODE) && !holds(run_dir, ITS_POD)).then_some(());
            eventually("it is gone", gone).await;
        },
    );
}
