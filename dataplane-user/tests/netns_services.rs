//! Services over real links: every path that a packet or a connection can take on one node.

mod node;

use std::{
    io::{ErrorKind, Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use node::{
    NODE_ADDRESS, TestNode,
    echo::{PATIENCE, echo_pod, tcp, udp},
};
use serde_json::json;
use weir_dataplane::{
    cli::{self, ExplainArgs, Output, View, ViewArgs},
    kernel::maps::{Maps, source_range, source_range_key},
};
use weir_dataplane_ebpf::Ip4;
use weir_tests::Namespace;

fn cluster_ip(n: u8) -> SocketAddr {
    ([10, 96, 0, n], 80).into()
}

#[test]
fn a_pod_reaches_services_by_tc() {
    let mut node = TestNode::new(false);
    let (a, _) = echo_pod(&node, "a");
    let (_b, b_address) = echo_pod(&node, "b");
    node.serve(1, &[b_address]);
    for _ in 0..3 {
        assert_eq!(tcp(&a, cluster_ip(1)).unwrap(), "b hello");
        assert_eq!(udp(&a, cluster_ip(1)).unwrap(), ("b hello".into(), cluster_ip(1)));
    }
}

#[test]
fn the_command_line_says_what_the_maps_do_with_the_agent_dead() {
    let mut node = TestNode::new(false);
    let (a, a_address) = echo_pod(&node, "a");
    let (_b, b_address) = echo_pod(&node, "b");
    node.serve(1, &[b_address]);
    node.serve(2, &[]);
    node.kill();
    let client = a.inside(|| {
        let mut stream = TcpStream::connect_timeout(&cluster_ip(1), PATIENCE).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
    });
    let run_dir = node.paths().run_dir().to_owned();
    let args = || ViewArgs { run_dir: run_dir.clone(), output: Output::Table };
    let show = |view: View| cli::view(view, &args()).unwrap_or_else(|error| panic!("{error}"));
    let services = show(View::Services);
    let row = services
        .lines()
        .find(|line| line.contains("10.96.0.1:80") && line.contains("tcp://"))
        .expect(&services);
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        cells,
        ["default/s1:t", "tcp://10.96.0.1:80", "internal", "cluster", "1", "1", "-", "0/0", "0/0"],
        "no pass has counted yet"
    );
    assert!(show(View::Backends).contains(&format!("{b_address}:8080  here")), "{}", show(View::Backends));
    assert!(show(View::Flows).contains("request    established"), "{}", show(View::Flows));
    assert!(show(View::Status).contains("10.244.7.1") && show(View::Maps).contains("frontends_v4"));
    assert!(show(View::Drops).starts_with("REASON"), "{}", show(View::Drops));
    assert!(show(View::Drops).lines().any(|line| line.split_whitespace().eq(["no-backend", "0"])));

    let explained = |destination: SocketAddr| {
        cli::explain(&ExplainArgs {
            protocol: "tcp".into(),
            source: client.local_addr().unwrap(),
            destination,
            view: args(),
        })
        .unwrap()
    };
    let text = explained(cluster_ip(1));
    assert!(text.contains(&format!("{b_address}:8080 (here): 1 of 1 slots  <- chosen")), "{text}");
    assert!(
        text.contains("TC on the pod link: follows its flow entry") && text.contains("default/s1:t"),
        "{text}"
    );
    let unknown = "why other endpoints are not taken is not known: no agent runs here";
    assert!(text.contains(unknown), "{text}");
    let text = explained(cluster_ip(2));
    assert!(text.contains("TC on the pod link: rejects with a TCP RST or ICMP port unreachable"), "{text}");
    let unknown_port = SocketAddr::new(cluster_ip(1).ip(), 81);
    let text = explained(unknown_port);
    assert!(text.contains("TC on the pod link: rejects") && text.contains("unknown-port"), "{text}");
    assert!(
        explained((a_address, 1).into()).contains("no service has this address"),
        "{}",
        explained((a_address, 1).into())
    );
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    let mut node = TestNode::new(false);
    let (a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    assert_eq!(tcp(&a, cluster_ip(1)).unwrap(), "a hello");
    assert_eq!(udp(&a, cluster_ip(1)).unwrap(), ("a hello".into(), cluster_ip(1)));
}

#[test]
fn a_client_outside_reaches_node_ports_by_xdp_and_by_tc_alone() {
    let mut node = TestNode::new(false);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    let xdp = |node: &TestNode| {
        let links = std::fs::read_dir(node.paths().links()).unwrap().flatten();
        links.map(|link| link.path()).find(|path| path.to_string_lossy().contains("xdp_uplink"))
    };
    assert_eq!(tcp(&node.client, node_port).unwrap(), "a hello");
    assert_eq!(udp(&node.client, node_port).unwrap(), ("a hello".into(), node_port));
    let pin = xdp(&node).expect("XDP is attached to the veth uplink");
    std::fs::remove_file(pin).unwrap();
    assert_eq!(tcp(&node.client, node_port).unwrap(), "a hello");
    assert_eq!(udp(&node.client, node_port).unwrap(), ("a hello".into(), node_port));
}

#[test]
fn processes_of_the_node_reach_services_by_their_sockets() {
    let mut node = TestNode::new(true);
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    // A cgroup holds processes, not threads: bash enters it and speaks TCP.
    let script =
        "echo $$ > $0/cgroup.procs && exec 3<>/dev/tcp/10.96.0.1/80 && printf ' hello' >&3 && head -c 7 <&3";
    let talk = |node: &TestNode, script: &str| {
        let cgroup = node.cgroup.path();
        node.namespace.inside(|| {
            Command::new("timeout").args(["5", "bash", "-c", script]).arg(cgroup).output().unwrap()
        })
    };
    let done = talk(&node, script);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "a hello", "{}", String::from_utf8_lossy(&done.stderr));
    node.serve(1, &[]);
    let connect = "echo $$ > $0/cgroup.procs && exec 3<>/dev/tcp/10.96.0.1/80";
    let refused = talk(&node, connect);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains("Connection refused"), "no endpoints: {errors}");
}

#[test]
fn a_transfer_survives_the_agent() {
    /// 8 MiB together.
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 128;

    let mut node = TestNode::new(false);
    let (a, _) = echo_pod(&node, "a");
    let (_b, b_address) = echo_pod(&node, "b");
    node.serve(1, &[b_address]);
    // A known sequence each way, in steps that span two restarts.
    let sequence = |at: usize| (at.wrapping_mul(2_654_435_761) >> 16) as u8;
    let mut streams: Vec<TcpStream> = [(&a, cluster_ip(1)), (&node.client, (NODE_ADDRESS, 30_001).into())]
        .into_iter()
        .map(|(from, to)| {
            from.inside(|| {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut name = [0];
                stream.read_exact(&mut name).unwrap();
                stream
            })
        })
        .collect();
    for chunk in 0..CHUNKS {
        match chunk {
            32 => node.kill(),
            64 | 96 => node.start(),
            _ => {}
        }
        for stream in &mut streams {
            let sent: Vec<u8> = (chunk * CHUNK..(chunk + 1) * CHUNK).map(sequence).collect();
            let mut writer = stream.try_clone().unwrap();
            let copy = sent.clone();
            let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
            let mut received = vec![0; CHUNK];
            stream.read_exact(&mut received).unwrap_or_else(|error| panic!("chunk {chunk}: {error}"));
            writing.join().unwrap();
            assert!(received == sent, "chunk {chunk} came back changed");
        }
    }
}

#[test]
fn cleanup_leaves_nothing() {
    let state = |node: &TestNode| {
        let run_dir = node.paths().run_dir().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        (
            node.namespace.ip("-o link show").unwrap().lines().filter(|l| !l.contains("up0")).count(),
            // IPv6's own routes come late, when duplicate address detection is done.
            node.namespace.ip("-4 route show table all").unwrap(),
            node.namespace.ip("-6 route show proto 87").unwrap(),
            std::fs::read_dir(&run_dir).unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>(),
            mounts.contains(&*run_dir.to_string_lossy()),
        )
    };
    let mut node = TestNode::new(true);
    node.kill();
    node.cleanup();
    let before = state(&node);
    assert!(before.2.is_empty() && before.3.is_empty() && !before.4, "{before:?}");
    node.start();
    let (_a, address) = echo_pod(&node, "a");
    node.serve(1, &[address]);
    assert_ne!(state(&node), before);
    node.kill();
    for _ in 0..2 {
        node.cleanup();
        assert_eq!(state(&node), before);
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let mut node = TestNode::new(false);
    let (pod, _) = node.add_pod("pod");
    node.serve(1, &[]);
    for (from, to) in [(&node.client, (NODE_ADDRESS, 30_001).into()), (&pod, cluster_ip(1))] {
        let start = Instant::now();
        assert_eq!(tcp(from, to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "TCP to {to}");
        let refused = from.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).unwrap();
            socket.send(b"hello").unwrap();
            socket.recv(&mut [0; 64]).unwrap_err().kind()
        });
        assert_eq!(refused, ErrorKind::ConnectionRefused, "UDP to {to}");
        assert!(start.elapsed() < Duration::from_secs(1), "a SYN was sent again");
    }
}

#[test]
fn source_ranges_say_who_may_use_a_load_balancer_and_survive_the_agent() {
    /// How long a refused client waits for an answer that does not come.
    const REFUSED: Duration = Duration::from_millis(300);

    let mut node = TestNode::new(true);
    let (_a, address) = echo_pod(&node, "a");
    let (pod, pod_address) = node.add_pod("client");
    node.client.ip("route add 198.51.100.1 via 192.0.2.1").unwrap();
    let load_balancer = SocketAddr::from(([198, 51, 100, 1], 80));
    let serve = |node: &mut TestNode, ranges: &[&str]| {
        let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
        node.serve_with(1, &[address], &spec, &status);
    };
    let may = |from: &Namespace| from.inside(|| TcpStream::connect_timeout(&load_balancer, REFUSED).is_ok());
    // Through the socket hooks, from a namespace: what bash says, or nothing.
    let by_socket = |node: &TestNode, from: &Namespace| {
        let script = "echo $$ > $0/cgroup.procs && exec 3<>/dev/tcp/198.51.100.1/80 && head -c 1 <&3";
        let cgroup = node.cgroup.path();
        let bash = || Command::new("timeout").args(["1", "bash", "-c", script]).arg(cgroup).output().unwrap();
        let done = from.inside(bash);
        (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let in_maps = |node: &TestNode| {
        let maps = Maps::open(&node.paths()).unwrap();
        let mut ranges: Vec<String> = maps
            .v4
            .source_ranges
            .entries()
            .unwrap()
            .iter()
            .map(|(key, _)| source_range(*key).1.to_string())
            .collect();
        ranges.sort();
        ranges
    };
    let (outside, inside, itself) =
        ("192.0.2.2/32", format!("{pod_address}/32"), format!("{NODE_ADDRESS}/32"));

    serve(&mut node, &[outside]);
    assert_eq!((may(&node.client), may(&pod)), (true, false));
    assert_eq!(by_socket(&node, &pod).0, "", "the hook leaves it to the packets, and those are refused");
    let of_node = by_socket(&node, &node.namespace);
    assert!(of_node.1.contains("Operation not permitted"), "the node is in no range: {of_node:?}");
    assert!(tcp(&pod, cluster_ip(1)).is_ok(), "the ClusterIP is not restricted");
    assert!(tcp(&node.client, (NODE_ADDRESS, 30_001).into()).is_ok(), "nor is the NodePort");

    serve(&mut node, &[&inside, &itself]);
    assert_eq!((may(&node.client), may(&pod)), (false, true));
    assert_eq!((by_socket(&node, &pod).0, by_socket(&node, &node.namespace).0), ("a".into(), "a".into()));
    let explained = cli::explain(&ExplainArgs {
        protocol: "tcp".into(),
        source: ([192, 0, 2, 2], 1).into(),
        destination: load_balancer,
        view: ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Table },
    })
    .unwrap();
    assert!(explained.contains("TC on the uplink: drops: source-range"), "{explained}");

    // One entry for each of the Service's two ports; what nobody owns goes with the next agent.
    let both = |ranges: &[&str]| {
        let mut both: Vec<String> =
            ranges.iter().flat_map(|range| [(*range).to_owned(), (*range).to_owned()]).collect();
        both.sort();
        both
    };
    node.kill();
    assert_eq!((may(&node.client), may(&pod)), (false, true), "the agent is not asked");
    let stray = source_range_key::<Ip4>(4_000, "203.0.113.0/24".parse().unwrap()).unwrap();
    Maps::open(&node.paths()).unwrap().v4.source_ranges.write(&[stray], &[0]).unwrap();
    node.start();
    assert_eq!(in_maps(&node), both(&[&inside, &itself]));
    serve(&mut node, &[outside]);
    assert_eq!((may(&node.client), may(&pod)), (true, false));
    assert_eq!(in_maps(&node), both(&[outside]));
    serve(&mut node, &["nonsense"]);
    assert_eq!((may(&node.client), may(&pod)), (false, false), "a mistake opens nothing");
    serve(&mut node, &[]);
    assert_eq!((may(&node.client), may(&pod)), (true, true));
    assert!(in_maps(&node).is_empty());
}

#[test]
fn clients_keep_their_backend_while_session_affinity_is_on() {
    let mut node = TestNode::new(true);
    let pods: Vec<_> = ["a", "b", "c", "d"].map(|name| echo_pod(&node, name)).into();
    let addresses: Vec<Ipv4Addr> = pods.iter().map(|(_, address)| *address).collect();
    let (client, _) = node.add_pod("client");
    let sticky = json!({"sessionAffinity": "ClientIP"});
    let node_port = SocketAddr::from((NODE_ADDRESS, 30_001));
    // A process of the node: its cgroup has the socket hooks.
    let by_socket = |node: &TestNode| {
        let script = "echo $$ > $0/cgroup.procs && exec 3<>/dev/tcp/10.96.0.1/80 && head -c 1 <&3";
        let cgroup = node.cgroup.path();
        let done = node.namespace.inside(|| {
            Command::new("timeout").args(["5", "bash", "-c", script]).arg(cgroup).output().unwrap()
        });
        String::from_utf8(done.stdout).unwrap()
    };

    node.serve_with(1, &addresses[1..2], &sticky, &json!({}));
    assert_eq!(tcp(&client, cluster_ip(1)).unwrap(), "b hello");
    assert_eq!(tcp(&node.client, node_port).unwrap(), "b hello");
    assert_eq!(by_socket(&node), "b");
    node.serve_with(1, &addresses, &sticky, &json!({}));
    for _ in 0..8 {
        assert_eq!(tcp(&client, cluster_ip(1)).unwrap(), "b hello");
        assert_eq!(tcp(&node.client, node_port).unwrap(), "b hello");
        assert_eq!(by_socket(&node), "b");
    }
    let explained = |node: &TestNode| {
        cli::explain(&ExplainArgs {
            protocol: "tcp".into(),
            source: ([192, 0, 2, 2], 1).into(),
            destination: node_port,
            view: ViewArgs { run_dir: node.paths().run_dir().to_owned(), output: Output::Table },
        })
        .unwrap()
    };
    let text = explained(&node);
    let line = format!("session affinity: 192.0.2.2 stays with {}:8080 for another 10", addresses[1]);
    assert!(text.contains(&line), "{text}");

    node.serve(1, &addresses);
    let spread = |ask: &dyn Fn() -> String| (0..64).any(|_| !ask().starts_with('b'));
    assert!(spread(&|| tcp(&client, cluster_ip(1)).unwrap()), "off is off at once");
    assert!(spread(&|| tcp(&node.client, node_port).unwrap()), "off is off at once");
    assert!(spread(&|| by_socket(&node)), "off is off at once");
    assert!(!explained(&node).contains("session affinity"), "{}", explained(&node));
}
