//! What loads a path, as a process of its own, so that it can be in any namespace and in the cgroup that has the socket
//! hooks; and what it talks to, as threads of the bench.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};
use weir_tests::{Cgroup, Namespace};

/// How long a sample loads its path.
const LOAD: Duration = Duration::from_millis(500);
/// Connections that are opened side by side.
const SIDE_BY_SIDE: usize = 16;
/// A datagram's payload: the frame has 64 bytes with headers and without its check sequence.
const DATAGRAM: usize = 64 - 14 - 20 - 8;
/// Bytes of one write to a stream.
const CHUNK: usize = 1 << 17;
/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// Threads that accept.
const ACCEPTORS: usize = 4;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP connections, opened and reset at once, each a second.
    Connections,
    /// Datagrams that arrive, each a second.
    Datagrams,
    /// Gigabits that arrive, each a second, through one connection.
    Stream,
}

impl Kind {
    /// What rows call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Connections => "new connections",
            Self::Datagrams => "64 B datagrams",
            Self::Stream => "TCP stream",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Connections => "1/s",
            Self::Datagrams => "packets/s",
            Self::Stream => "Gbit/s",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Datagrams => "datagrams",
            Self::Stream => "stream",
        }
    }
}

/// The word that makes this executable a generator: `generate KIND ADDRESS:PORT`.
pub(crate) const WORD: &str = "generate";

/// A generator's whole life: prints how long it loaded, in seconds, and how many connections it opened.
pub(crate) fn main(words: &[String]) {
    let [kind, to] = words else { panic!("{WORD} KIND ADDRESS:PORT") };
    let to: SocketAddr = to.parse().expect("ADDRESS:PORT");
    let started = Instant::now();
    let opened = match kind.as_str() {
        "connections" => connections(to, started),
        "datagrams" => datagrams(to, started),
        "stream" => stream(to, started),
        other => panic!("`{other}` is no kind of load"),
    };
    println!("{} {opened}", started.elapsed().as_secs_f64());
}

/// A reset leaves no port in TIME-WAIT: there are fewer ports than connections in a run.
fn connections(to: SocketAddr, started: Instant) -> u64 {
    let opened = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while started.elapsed() < LOAD {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
                    socket.set_linger(Some(Duration::ZERO)).expect("TCP lingers");
                    // Bounds `connect`, which else would go on for two minutes.
                    socket.set_write_timeout(Some(PATIENCE)).expect("sockets have timeouts");
                    socket.connect(&to.into()).unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
                    opened.fetch_add(1, Relaxed);
                }
            });
        }
    });
    opened.into_inner()
}

fn datagrams(to: SocketAddr, started: Instant) -> u64 {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(to).expect("an address");
    let mut sent = 0;
    while started.elapsed() < LOAD {
        for _ in 0..64 {
            // A full queue somewhere is what is measured.
            let _ = socket.send(&[7; DATAGRAM]);
            sent += 1;
        }
    }
    sent
}

fn stream(to: SocketAddr, started: Instant) -> u64 {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("a connection");
    stream.set_write_timeout(Some(PATIENCE)).expect("sockets have timeouts");
    let chunk = vec![7; CHUNK];
    while started.elapsed() < LOAD {
        stream.write_all(&chunk).expect("the stream goes on");
    }
    1
}

/// What answers in a namespace until the bench ends.
pub(crate) struct Sink {
    datagrams: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

/// Where connections and datagrams go.
pub(crate) const PORT: u16 = 8080;
/// Where streams go.
pub(crate) const STREAM_PORT: u16 = 8081;

impl Sink {
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let (connections, streams, udp) = namespace.inside(|| {
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("free");
            (listen(PORT), listen(STREAM_PORT), udp)
        });
        let sink = Self { datagrams: Arc::default(), bytes: Arc::default() };
        for _ in 0..ACCEPTORS {
            let connections = connections.try_clone().expect("a descriptor more");
            // Each is closed at once: what is counted is how they open.
            thread::spawn(move || while connections.accept().is_ok() {});
        }
        let (datagrams, bytes) = (Arc::clone(&sink.datagrams), Arc::clone(&sink.bytes));
        thread::spawn(move || {
            let mut buffer = vec![0; CHUNK];
            while let Ok((mut stream, _)) = streams.accept() {
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    bytes.fetch_add(length as u64, Relaxed);
                }
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 128];
            while udp.recv(&mut buffer).is_ok() {
                datagrams.fetch_add(1, Relaxed);
            }
        });
        sink
    }

    /// Loads a path from a namespace, in a cgroup if there is one, and says what came through each second.
    pub(crate) fn sample(
        &self,
        from: &Namespace,
        cgroup: Option<&Cgroup>,
        kind: Kind,
        to: SocketAddr,
    ) -> f64 {
        let (datagrams, bytes) = (self.datagrams.load(Relaxed), self.bytes.load(Relaxed));
        let own = std::env::current_exe().expect("this executable");
        let mut command = match cgroup {
            None => Command::new(&own),
            Some(cgroup) => {
                let mut shell = Command::new("sh");
                shell
                    .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
                    .arg(cgroup.path())
                    .arg(&own);
                shell
            }
        };
        command.args([WORD, kind.name(), &to.to_string()]);
        let output = from.inside(|| command.output()).expect("this executable starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{kind:?} to {to}: {errors}");
        let (seconds, opened) = text.trim().split_once(' ').unwrap_or_else(|| panic!("`{text}`"));
        let seconds: f64 = seconds.parse().expect("seconds");
        // What is on its way still counts, but not for long.
        thread::sleep(Duration::from_millis(20));
        let amount = match kind {
            Kind::Connections => opened.parse().expect("a count"),
            Kind::Datagrams => (self.datagrams.load(Relaxed) - datagrams) as f64,
            Kind::Stream => (self.bytes.load(Relaxed) - bytes) as f64 * 8e-9,
        };
        amount / seconds
    }
}

/// Listens with room for all that a second brings: a full queue would make clients wait a second.
fn listen(port: u16) -> TcpListener {
    const BACKLOG: i32 = 4_096;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).expect("free");
    socket.listen(BACKLOG).expect("a backlog");
    socket.into()
}
