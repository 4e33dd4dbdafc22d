//! Traffic that notices: connections that stay and are talked through without a pause, and new ones all the time.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use weir_tests::Namespace;

use super::echo::PATIENCE;

/// Connections that stay.
const LASTING: usize = 4;
/// Bytes that go each way at once.
const CHUNK: usize = 4_096;
/// Between two exchanges, and between two new connections.
const PACE: Duration = Duration::from_millis(2);

/// Runs until it is asked what it came to.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Exchanges over connections that stay, and new connections.
    counts: [AtomicU64; 2],
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn ends(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn fail(&self, failure: String) {
        self.failures.lock().unwrap().push(failure);
    }
}

/// Opens a connection; the stream, and the name of the echo that answers.
fn open(to: SocketAddr) -> std::io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = [0];
    stream.read_exact(&mut name)?;
    Ok((stream, String::from_utf8_lossy(&name).into_owned()))
}

/// Sends a chunk of a sequence and reads it back.
fn exchange(stream: &mut TcpStream, round: u64) -> std::io::Result<bool> {
    let sent: Vec<u8> = (0..CHUNK as u64)
        .map(|at| ((round * CHUNK as u64 + at).wrapping_mul(2_654_435_761) >> 16) as u8)
        .collect();
    stream.write_all(&sent)?;
    let mut received = vec![0; CHUNK];
    stream.read_exact(&mut received)?;
    Ok(received == sent)
}

impl Traffic {
    /// From a namespace to a service of echoes that have these names of one letter. Returns when the lasting connections
    /// stand.
    pub(crate) fn start(from: &Namespace, to: SocketAddr, names: &'static str) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for _ in 0..LASTING {
            let (mut stream, name) = from.inside(|| open(to)).unwrap();
            assert!(names.contains(&name), "{name} is none of {names}");
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || {
                for round in 0.. {
                    if shared.ends() {
                        break;
                    }
                    match exchange(&mut stream, round) {
                        Ok(true) => drop(shared.counts[0].fetch_add(1, Ordering::Relaxed)),
                        Ok(false) => return shared.fail(format!("{to}: exchange {round} came back changed")),
                        Err(error) => return shared.fail(format!("{to}: exchange {round}: {error}")),
                    }
                    thread::sleep(PACE);
                }
            }));
        }
        // Sockets are of the thread's namespace.
        threads.push(from.inside(|| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.ends() {
                    match open(to).and_then(|(mut stream, name)| {
                        let whole = exchange(&mut stream, 0)?;
                        stream.shutdown(Shutdown::Write)?;
                        Ok((name, whole))
                    }) {
                        Ok((name, true)) if names.contains(&name) => {
                            shared.counts[1].fetch_add(1, Ordering::Relaxed);
                        }
                        Ok((name, whole)) => shared.fail(format!("{to}: {name} answered, whole: {whole}")),
                        Err(error) => shared.fail(format!("{to}: a new connection: {error}")),
                    }
                    thread::sleep(PACE);
                }
            })
        }));
        Self { shared, threads }
    }

    /// Waits until so many more of both have gone well, so that what happened before it was seen by some.
    pub(crate) fn goes_on(&self) {
        let counts = || self.shared.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        let before = counts();
        while counts().iter().zip(before).any(|(now, before)| *now < before + 8) {
            assert_eq!(*self.shared.failures.lock().unwrap(), [""; 0], "traffic stopped");
            thread::sleep(PACE);
        }
    }

    /// Ends it: all was well. Exchanges over lasting connections, and new ones.
    pub(crate) fn finish(self) -> [u64; 2] {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("traffic counts its failures and does not panic");
        }
        assert_eq!(*self.shared.failures.lock().unwrap(), [""; 0]);
        self.shared.counts.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}
