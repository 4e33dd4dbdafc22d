//! Where cases are run: a node with four pods of its own and two of another node, and a client outside, in both
//! families. The same links and addresses serve whoever programs the services.
//!
//! | name | addresses | where |
//! |---|---|---|
//! | `a`, `b` | 10.244.7.2, .3; fd00:244:7::2, ::3 | pods of the node, endpoints |
//! | `pod` | 10.244.7.4; fd00:244:7::4 | a pod of the node, a client |
//! | `c`, `d` | 10.244.8.5, .6; fd00:244:8::5, ::6 | pods of the other node, endpoints |
//! | outside | 192.0.2.2; 2001:db8::2 | beyond the node's uplink |
//! | node | 192.0.2.1; 2001:db8::1 | `NodePort`s |

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use weir_dataplane::{cni, kernel::bpffs, paths::Paths};
use weir_tests::{Cgroup, Link, Namespace, ask_tcp, ask_udp, eventually};

use super::case::{Client, Failure, Protocol, Question, Source, Try};

/// The pods' port.
const PORT: u16 = 8080;
/// An answer that takes longer does not come. More than the second after which TCP says SYN again: a kernel that hears
/// of a refusal while the caller is still in `connect` forgets it, and hears the next one.
const PATIENCE: Duration = Duration::from_millis(1_700);

/// Ports that clients of datagrams have, from this one on: beyond those that anything here listens on.
const FIRST_PORT: u16 = 10_000;

/// Endpoints of the other node.
const FAR: [(&str, &str, &str); 2] =
    [("c", "10.244.8.5", "fd00:244:8::5"), ("d", "10.244.8.6", "fd00:244:8::6")];
/// Pods of this node, in the order in which they get their addresses.
const NEAR: [(&str, &str, &str); 3] = [
    ("a", "10.244.7.2", "fd00:244:7::2"),
    ("b", "10.244.7.3", "fd00:244:7::3"),
    ("pod", "10.244.7.4", "fd00:244:7::4"),
];

/// The node's pod ranges.
pub(crate) const POD_CIDRS: [&str; 2] = ["10.244.7.0/24", "fd00:244:7::/64"];
/// All pods' ranges, and the services'.
pub(crate) const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
/// The node's addresses that `NodePort`s are served on.
pub(crate) const NODE_ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// The namespaces and what is in them.
pub(crate) struct Place {
    pub(crate) node: Namespace,
    pub(crate) cgroup: Cgroup,
    pub(crate) run_dir: tempfile::TempDir,
    pub(crate) outside: Namespace,
    /// `a`, `b`, `pod`.
    pub(crate) near: Vec<Namespace>,
    pub(crate) far: Namespace,
    next_port: AtomicU16,
}

impl Place {
    /// Everything but the pods' links, which the agent's first start must come before.
    pub(crate) fn new() -> Self {
        let (node, outside, far) =
            (Namespace::new().unwrap(), Namespace::new().unwrap(), Namespace::new().unwrap());
        Link::connect(
            Link { namespace: &node, name: "up0", address: "192.0.2.1/24" },
            Link { namespace: &outside, name: "up1", address: "192.0.2.2/24" },
        )
        .unwrap();
        Link::connect(
            Link { namespace: &node, name: "up2", address: "198.51.100.1/24" },
            Link { namespace: &far, name: "far0", address: "198.51.100.2/24" },
        )
        .unwrap();
        for (namespace, words) in [
            (&node, "address add 2001:db8::1/64 dev up0 nodad"),
            (&outside, "address add 2001:db8::2/64 dev up1 nodad"),
            (&node, "address add 2001:db8:1::1/64 dev up2 nodad"),
            (&far, "address add 2001:db8:1::2/64 dev far0 nodad"),
            (&outside, "route add default via 192.0.2.1"),
            (&outside, "-6 route add default via 2001:db8::1"),
            (&far, "route add default via 198.51.100.1"),
            (&far, "-6 route add default via 2001:db8:1::1"),
            (&node, "route add default via 192.0.2.2"),
            (&node, "-6 route add default via 2001:db8::2"),
            (&node, "route add 10.244.8.0/24 via 198.51.100.2"),
            (&node, "-6 route add fd00:244:8::/64 via 2001:db8:1::2"),
        ] {
            namespace.ip(words).unwrap();
        }
        for (namespace, link) in [(&far, "far0"), (&outside, "up1")] {
            // A veth takes frames from XDP only when it has a queue of its own, which it has for receive offload.
            let status = namespace.command("ethtool").args(["-K", link, "gro", "on"]).status().unwrap();
            assert!(status.success(), "ethtool -K {link} gro on");
        }
        // A redirect would use up what the kernel allows a host in ICMP errors, and refusals would stay out.
        for link in ["all", "up0", "up2"] {
            node.set(&format!("ipv4/conf/{link}/send_redirects"), "0").unwrap();
        }
        // Refusals come faster here than a host would be allowed to give them.
        for name in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
            node.set(name, "0").unwrap();
        }
        for (name, v4, v6) in FAR {
            for address in [v4, v6] {
                let flag = if address.contains(':') { "nodad" } else { "" };
                far.ip(&format!("address add {address} dev lo {flag}")).unwrap();
                serve(&far, name, address.parse().unwrap());
            }
        }
        let run_dir = tempfile::Builder::new().prefix("weir-oracle-").tempdir().unwrap();
        let cgroup = Cgroup::new(&run_dir.path().file_name().unwrap().to_string_lossy()).unwrap();
        let next_port = AtomicU16::new(FIRST_PORT);
        Self { node, cgroup, run_dir, outside, near: Vec::new(), far, next_port }
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.run_dir.path())
    }

    /// Starts the pods' networks.
    pub(crate) fn add_pods(&mut self) {
        for (name, v4, v6) in NEAR {
            let pod = Namespace::new().unwrap();
            for (cidr, link, expected) in [(POD_CIDRS[0], "eth0", v4), (POD_CIDRS[1], "eth1", v6)] {
                let address = self.cni_add(&format!("{name}-{link}"), link, cidr, &pod);
                assert_eq!(address, expected.parse::<IpAddr>().unwrap(), "addresses are given out in order");
                serve(&pod, name, address);
            }
            self.near.push(pod);
        }
    }

    fn cni_add(&self, id: &str, link: &str, cidr: &str, pod: &Namespace) -> IpAddr {
        let run_dir = self.run_dir.path();
        // Books of addresses are kept by network.
        let config = json!({"cniVersion": "1.0.0", "name": link, "runDir": run_dir, "podCIDR": cidr});
        let path = pod.path();
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some("ADD".to_owned()),
            "CNI_CONTAINERID" => Some(id.to_owned()),
            "CNI_IFNAME" => Some(link.to_owned()),
            "CNI_NETNS" => Some(path.clone()),
            _ => None,
        };
        let mut out = Vec::new();
        self.node.inside(|| cni::main(config.to_string().as_bytes(), env, &mut out));
        let answer: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let address = answer["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("{answer}"));
        address.split_once('/').unwrap().0.parse().unwrap()
    }

    /// A client's port that no try had before. A datagram flow goes on while its endpoint serves, whatever else of its service
    /// changes, here as with kube-proxy: a case must not meet one of an earlier case.
    fn next_port(&self) -> u16 {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        assert!(port >= FIRST_PORT, "there are ports for all tries");
        port
    }

    /// One try of a connection.
    pub(crate) fn attempt(&self, question: &Question) -> Try {
        let Question { from, to, protocol } = question;
        let (namespace, addresses) = match from {
            Client::Outside => (&self.outside, ["192.0.2.2", "2001:db8::2"]),
            Client::Pod => (&self.near[2], [NEAR[2].1, NEAR[2].2]),
            Client::PodA => (&self.near[0], [NEAR[0].1, NEAR[0].2]),
            Client::Node => return self.attempt_of_node(*to, *protocol),
        };
        let source: IpAddr = addresses[usize::from(to.is_ipv6())].parse().unwrap();
        let asked = namespace.inside(|| match protocol {
            Protocol::Tcp => ask_tcp(source, *to, PATIENCE),
            Protocol::Udp => ask_udp(SocketAddr::new(source, self.next_port()), *to, PATIENCE),
        });
        match asked {
            Ok(answer) => delivered(&answer, Some(source)),
            Err(error) => Try::Failed(failure(&error)),
        }
    }

    /// A process of the node, in the cgroup that stands for the machine's.
    fn attempt_of_node(&self, to: SocketAddr, protocol: Protocol) -> Try {
        let device = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        // bash's own network: one call of `connect`, one `write`, one `read`.
        let script = format!(
            "echo $$ > $0/cgroup.procs && exec 3<>/dev/{device}/{}/{} && printf hello >&3 && dd bs=256 count=1 status=none <&3",
            to.ip(),
            to.port()
        );
        let seconds = PATIENCE.as_secs_f32().to_string();
        let done = self.node.inside(|| {
            Command::new("timeout")
                .args([&seconds, "bash", "-c", &script])
                .arg(self.cgroup.path())
                .output()
                .unwrap()
        });
        let (answer, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if !answer.is_empty() {
            return delivered(&answer, None);
        }
        let known = [
            ("Connection refused", Failure::Refused),
            ("No route to host", Failure::Unreachable),
            ("Network is unreachable", Failure::Unreachable),
            ("not permitted", Failure::Denied),
        ];
        let found = known.iter().find(|(text, _)| errors.contains(text));
        match found {
            Some((_, failure)) => Try::Failed(*failure),
            None if done.status.code() == Some(124) => Try::Failed(Failure::Silent),
            None => panic!("{:?}: {errors}", done.status),
        }
    }
}

/// Whoever programs the services may be there still.
impl Drop for Place {
    fn drop(&mut self) {
        let removed = bpffs::remove(&self.paths());
        if !thread::panicking() {
            removed.expect("nothing holds the pins");
        }
    }
}

/// Reads `NAME SOURCE`.
fn delivered(answer: &str, client: Option<IpAddr>) -> Try {
    let (endpoint, source) = answer.trim().split_once(' ').unwrap_or_else(|| panic!("`{answer}`"));
    let source: IpAddr = source.parse().unwrap();
    let node = ["192.0.2.1", "2001:db8::1", "198.51.100.1", "2001:db8:1::1", "10.244.7.1", "fd00:244:7::1"];
    let seen_as = if Some(source) == client {
        Source::Client
    } else if node.iter().any(|address| address.parse() == Ok(source)) {
        Source::Node
    } else {
        panic!("{endpoint} saw {source}, who is neither the client {client:?} nor the node")
    };
    Try::Delivered { endpoint: endpoint.to_owned(), seen_as }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Failure::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Failure::Unreachable,
        io::ErrorKind::PermissionDenied => Failure::Denied,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::Silent,
        _ => panic!("a failure of another kind: {error}"),
    }
}

/// Answers `NAME SOURCE` on one address until the test ends.
fn serve(namespace: &Namespace, name: &'static str, address: IpAddr) {
    let at = SocketAddr::new(address, PORT);
    // A new IPv6 address is nobody's until duplicate address detection is done.
    let tcp = || namespace.run(|| Ok(TcpListener::bind(at)?));
    let tcp = eventually("the address is the pod's", tcp).unwrap();
    let udp = namespace.inside(|| UdpSocket::bind(at).unwrap());
    let answer = move |client: SocketAddr| format!("{name} {}\n", client.ip());
    thread::spawn(move || {
        while let Ok((stream, client)) = tcp.accept() {
            let answer = answer(client);
            thread::spawn(move || tell(stream, &answer));
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((_, client)) = udp.recv_from(&mut bytes) {
            // A client that is gone misses nothing.
            let _ = udp.send_to(answer(client).as_bytes(), client);
        }
    });
}

/// Hears the client's word and tells it. The client closes first, so that no port of it rests here: with masquerade, ports
/// are drawn by chance, and one that rests refuses.
fn tell(mut stream: TcpStream, answer: &str) -> io::Result<()> {
    stream.read_exact(&mut [0; 5])?;
    stream.write_all(answer.as_bytes())?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}
