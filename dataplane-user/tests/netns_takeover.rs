//! From rules of kube-proxy's shape to Weir and back: what is established goes on, and what is new is always served.

mod oracle;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use oracle::{
    place::Place,
    sides::{Rules, Side, Weir},
};
use serde_json::json;
use weir_tests::{Namespace, ask_tcp, rules::nftables};

/// Longer than anything here takes, short enough to see a hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// The echoes' port.
const PORT: u16 = 8081;
/// Connections of each kind. Of so many, rules and tables choose the same endpoint for all but once in a million runs.
const EACH: usize = 20;
/// Rounds that a connection must still make.
const ROUNDS: usize = 50;
/// Bytes of a round: more than a segment.
const CHUNK: usize = 10_000;

/// Services with a node port and with a cluster address alone, by TCP and UDP: endpoints of this node and of another.
fn objects() -> (Vec<Service>, Vec<EndpointSlice>) {
    let ports = |node_port: bool| {
        let port = |name: &str, protocol: &str| {
            let mut port = json!({"name": name, "port": 80, "protocol": protocol});
            if node_port {
                port["nodePort"] = json!(30_001);
            }
            port
        };
        json!([port("t", "TCP"), port("u", "UDP")])
    };
    let service = |name: &str, kind: &str, address: &str| {
        json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {"type": kind, "clusterIP": address, "clusterIPs": [address], "ports": ports(kind == "NodePort")},
        })
    };
    let slice = |name: &str| {
        json!({
            "metadata": {"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "t", "port": PORT, "protocol": "TCP"}, {"name": "u", "port": PORT, "protocol": "UDP"}],
            "endpoints": [
                {"addresses": ["10.244.7.2"], "nodeName": "here"}, {"addresses": ["10.244.8.5"], "nodeName": "elsewhere"},
            ],
        })
    };
    let services = [service("port", "NodePort", "10.96.0.1"), service("cluster", "ClusterIP", "10.96.0.2")];
    let slices = ["port", "cluster"].map(slice);
    (
        services.map(|object| serde_json::from_value(object).unwrap()).to_vec(),
        slices.map(|object| serde_json::from_value(object).unwrap()).to_vec(),
    )
}

/// Sends everything back, over TCP and UDP.
fn echo(namespace: &Namespace, address: [u8; 4]) {
    let at = SocketAddr::from((address, PORT));
    let (tcp, udp) = namespace.inside(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                // A client that goes away ends its echo.
                let _ = std::io::copy(&mut reader, &mut stream);
            });
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, client)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..length], client);
        }
    });
}

/// One connection's thread: its name, how many rounds it has made, and how it ends.
type Talk = (String, Arc<AtomicUsize>, JoinHandle<std::io::Result<()>>);

/// Connections that go on until they are told to end.
struct Talks {
    stop: Arc<AtomicBool>,
    running: Vec<Talk>,
}

impl Talks {
    fn new() -> Self {
        Self { stop: Arc::default(), running: Vec::new() }
    }

    fn start(&mut self, name: String, mut round: impl FnMut() -> std::io::Result<()> + Send + 'static) {
        let (stop, rounds) = (Arc::clone(&self.stop), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&rounds);
        let thread = thread::spawn(move || {
            while !stop.load(Relaxed) {
                round()?;
                counted.fetch_add(1, Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        self.running.push((name, rounds, thread));
    }

    fn tcp(&mut self, name: &str, from: &Namespace, to: SocketAddr) {
        let mut stream = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent: Vec<u8> = (0..CHUNK).map(|n| (n * 7 + self.running.len()) as u8).collect();
        self.start(format!("{name} from {}", stream.local_addr().unwrap()), move || {
            stream.write_all(&sent)?;
            let mut received = vec![0; CHUNK];
            stream.read_exact(&mut received)?;
            assert!(received == sent, "bytes came back changed");
            Ok(())
        });
    }

    fn udp(&mut self, name: &str, from: &Namespace, to: SocketAddr) {
        let socket = from.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(to).unwrap();
        // Nobody promises that a datagram arrives: clients ask again.
        socket.set_read_timeout(Some(PATIENCE / 20)).unwrap();
        self.start(format!("{name} from {}", socket.local_addr().unwrap()), move || {
            let mut attempts = (0..20).map(|_| socket.send(b"hello").and_then(|_| socket.recv(&mut [0; 64])));
            match attempts
                .find(|attempt| !matches!(attempt, Err(error) if error.kind() == ErrorKind::WouldBlock))
            {
                Some(answer) => answer.map(drop),
                None => Err(ErrorKind::TimedOut.into()),
            }
        });
    }

    /// Waits until each has made so many more rounds.
    fn go_on(&mut self, when: &str) {
        let started = Instant::now();
        let before: Vec<usize> = self.running.iter().map(|(_, rounds, _)| rounds.load(Relaxed)).collect();
        for (talk, before) in before.into_iter().enumerate() {
            let (name, rounds, thread) = &self.running[talk];
            while rounds.load(Relaxed) < before + ROUNDS {
                if thread.is_finished() {
                    let (name, rounds, thread) = self.running.swap_remove(talk);
                    panic!("{name} broke {when} after {rounds:?} rounds: {:?}", thread.join());
                }
                assert!(started.elapsed() < PATIENCE * 4, "{name} stands still {when}");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn end(self) {
        self.stop.store(true, Relaxed);
        for (name, _, thread) in self.running {
            thread.join().unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// Pods with links, no programs, and rules that serve.
fn served_by_rules() -> (Place, Vec<Service>, Vec<EndpointSlice>) {
    let mut place = Place::new();
    let weir = Weir::start(&place);
    place.add_pods();
    weir.leave(&place);
    echo(&place.near[0], [10, 244, 7, 2]);
    echo(&place.far, [10, 244, 8, 5]);
    let (services, slices) = objects();
    Rules.program(&place, &services, &slices);
    (place, services, slices)
}

/// Translated connections that the kernel still knows.
fn known_to_the_kernel(place: &Place) -> usize {
    let output = place.node.command("conntrack").args(["-L", "--dst-nat"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().count()
}

#[test]
fn what_rules_established_goes_on_without_them() {
    let (place, services, slices) = served_by_rules();
    let port = SocketAddr::from(([192, 0, 2, 1], 30_001));
    let cluster = SocketAddr::from(([10, 96, 0, 2], 80));
    let mut talks = Talks::new();
    for _ in 0..EACH {
        talks.tcp("TCP to the node port", &place.outside, port);
        talks.tcp("TCP to the cluster address", &place.near[2], cluster);
        talks.udp("UDP to the node port", &place.outside, port);
        talks.udp("UDP to the cluster address", &place.near[2], cluster);
    }
    talks.go_on("with rules");
    assert_eq!(known_to_the_kernel(&place), 4 * EACH);

    let mut weir = Weir::start(&place);
    weir.program(&place, &services, &slices);
    talks.go_on("beside the rules");
    assert_eq!(known_to_the_kernel(&place), 0, "one book about each connection");
    nftables::unload(&place.node).unwrap();
    talks.go_on("without the rules");
    for (from, to) in [(&place.outside, port), (&place.near[2], cluster)] {
        let source: IpAddr = Ipv4Addr::UNSPECIFIED.into();
        assert_eq!(
            from.inside(|| ask_tcp(source, to, PATIENCE)).unwrap(),
            "hello",
            "a new connection to {to}"
        );
    }
    talks.end();
}

#[test]
fn new_connections_are_served_while_weir_leaves() {
    let (place, services, slices) = served_by_rules();
    let mut weir = Weir::start(&place);
    weir.program(&place, &services, &slices);
    let stop = AtomicBool::new(false);
    // One connection after the other: how many succeeded, and what became of the others.
    let ask = |from: &Namespace, to: SocketAddr| {
        from.inside(|| {
            let (mut succeeded, mut failed) = (0, Vec::new());
            while !stop.load(Relaxed) {
                match ask_tcp(Ipv4Addr::UNSPECIFIED.into(), to, PATIENCE) {
                    Ok(_) => succeeded += 1,
                    Err(error) => failed.push(error.to_string()),
                }
            }
            (succeeded, failed)
        })
    };
    thread::scope(|scope| {
        let asking = [
            scope.spawn(|| ask(&place.outside, ([192, 0, 2, 1], 30_001).into())),
            scope.spawn(|| ask(&place.near[2], ([10, 96, 0, 2], 80).into())),
        ];
        thread::sleep(Duration::from_millis(300));
        weir.leave(&place);
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Relaxed);
        for asked in asking {
            let (succeeded, failed) = asked.join().unwrap();
            // The one that was open when Weir's programs went may end with them.
            assert!(succeeded > 20 && failed.len() <= 1, "{succeeded} succeeded, {failed:?}");
        }
    });
}
